"""Swin (https://arxiv.org/abs/2103.14030) and Swin V2 (https://arxiv.org/abs/2111.09883).

In training, timm drops both branches of a block at random (`drop_path_rate`), transformers only the first one.
"""

import re
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedConfig

from .config import activation_args, first_name, image_size, refuse, require, require_no_dropout, square_patch
from .layout import KeyLayout


# timm's name of a size -> (embed_dim, depths, num_heads)
SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
RENAMES = (
    (r"^(?:swin|swinv2)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.", ""),
    # transformers downsamples at the end of a stage, timm at the start of the next one.
    (r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
    (r"\.attention\.(?:self\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:self\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:self\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (
        r"\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table$",
        ".attn.relative_position_bias_table",
    ),
    (r"\.attention\.self\.continuous_position_bias_mlp\.", ".attn.cpb_mlp."),
    (r"\.attention\.self\.logit_scale$", ".attn.logit_scale"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^(?:layernorm|hidden_states_norms\.stage\d+)\.", "norm."),
)
LEFT_OVER = (
    r"^classifier\.",
    r"^decoder\.",
    r"embeddings\.mask_token$",
    r"\.(?:relative_position_index|relative_coords_table)$",  # which earlier releases of transformers stored
)


def _swin(config: PreTrainedConfig) -> dict[str, Any]:
    require(config, hidden_act="gelu")
    backbone = "SwinBackbone" in (config.architectures or ())
    _check_windows(config, smaller=False)
    names = ("swin_{size}_patch4_window{window}_{image}",)
    others = ("swin_{size}_patch4_window7_224", "swin_tiny_patch4_window7_224")
    fields = _fields(config, names, others)
    if backbone:  # which shifts its windows also where there is but one
        fields["model_args"]["always_partition"] = True
    return fields


def _swinv2(config: PreTrainedConfig) -> dict[str, Any]:
    _check_windows(config, smaller=True)
    pretrained = tuple(config.pretrained_window_sizes)
    names: tuple[str, ...] = ("swinv2_{size}_window{window}_{image}",)
    others = ("swinv2_{size}_window8_256", "swinv2_tiny_window8_256")
    if any(pretrained):
        names = ("swinv2_{size}_window12to{window}_192to{image}",) if pretrained == (12, 12, 12, 6) else ()
    fields = _fields(config, names, others)
    fields["model_args"] |= activation_args(config, "gelu")
    if any(pretrained) and "window12to" not in fields["architecture"]:
        fields["model_args"]["pretrained_window_sizes"] = list(pretrained)
    return fields


def _fields(config: PreTrainedConfig, names: tuple[str, ...], others: tuple[str, str]) -> dict[str, Any]:
    """`names` are of the size and its windows; `others` of the size with other windows, and of another size."""
    require(config, use_absolute_embeddings=False)
    require_no_dropout(config, "hidden_dropout_prob", "attention_probs_dropout_prob")
    dims = (config.embed_dim, tuple(config.depths), tuple(config.num_heads))
    size = next((size for size in SIZES if SIZES[size] == dims), None)
    values = {"size": size, "window": config.window_size, "image": config.image_size}
    architecture, args = first_name([name.format(**values) for name in names]), {}
    if architecture is None:
        architecture, args = first_name([others[0].format(**values)]), {"window_size": config.window_size}
    if architecture is None:
        architecture = others[1]
        args |= {"embed_dim": dims[0], "depths": list(dims[1]), "num_heads": list(dims[2])}
    if square_patch(config) != 4:
        args["patch_size"] = square_patch(config)
    if config.mlp_ratio != 4:
        args["mlp_ratio"] = config.mlp_ratio
    if not config.qkv_bias:
        args["qkv_bias"] = False
    if config.drop_path_rate != 0.1:  # timm's
        args["drop_path_rate"] = config.drop_path_rate
    return {"architecture": architecture, "model_args": args, "image_size": image_size(config)}


def _check_windows(config: PreTrainedConfig, smaller: bool) -> None:
    """Refuse images whose maps are not made of whole windows, which transformers pads before it shifts them, and timm
    after that.

    Args:
        smaller: whether windows may become smaller where a map is: V2 has no table of positions.

    Raises:
        ValueError: naming `model_name_or_path`, `image_size` and its value.
    """
    size, window, stages = config.image_size, config.window_size, len(config.depths)
    cell = square_patch(config) * 2 ** (stages - 1)
    sides = [size, size] if isinstance(size, int) else list(size)
    if any(side % cell for side in sides):
        refuse("image_size", size, f"which is no multiple of {cell}, so that transformers and timm pad differently")
    for stage in range(stages):
        maps = [side // cell * 2 ** (stages - 1 - stage) for side in sides]
        below = [side < window for side in maps]
        whole = all(side % min(side, window) == 0 for side in maps)
        alike = len(set(maps)) == 1 or min(maps) > window
        if not whole or not alike or (any(below) and not smaller):
            reason = f"of which stage {stage + 1} makes a map of {maps[0]} x {maps[1]}, no whole windows of {window}"
            refuse("image_size", size, reason)


def _unused(config: PreTrainedConfig, names: Collection[str]) -> set[str]:
    """A backbone has norms of the maps that it returns: that of the last stage is the encoder's last one then, in
    place of one that it never computes."""
    last = f"hidden_states_norms.stage{len(config.depths)}."
    norms = {name for name in names if name.startswith("hidden_states_norms.")}
    if any(name.startswith(last) for name in norms):
        return {name for name in norms if not name.startswith(last)} | {
            name for name in names if re.match(r"^(?:swin\.)?layernorm\.", name)
        }
    return norms


LAYOUTS = {
    "swin": KeyLayout(_swin, RENAMES, LEFT_OVER, norm_eps=1e-5, unused=_unused),
    "swinv2": KeyLayout(_swinv2, RENAMES, LEFT_OVER, norm_eps=1e-5, unused=_unused, separate_biases=True),
}
