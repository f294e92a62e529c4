"""ViT (https://arxiv.org/abs/2010.11929), DeiT with its distillation token (https://arxiv.org/abs/2012.12877), the
encoders of MAE (https://arxiv.org/abs/2111.06377) and of I-JEPA (https://arxiv.org/abs/2301.08243)."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from .config import (
    activation_args,
    first_name,
    image_size,
    mlp_ratio,
    require_no_dropout,
    square_patch,
)
from .layout import KeyLayout


# timm's name of a size -> (embed_dim, depth, num_heads, hidden features of the MLP)
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
}
VIT_RENAMES = (
    (r"^(?:vit|deit|ijepa|dinov2(?:_with_registers)?|beit|data2vec_vision)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"\.attention(?:\.attention)?\.(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention(?:\.attention)?\.(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention(?:\.attention)?\.(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
)
# The heads of ...ForImageClassification, ...ForMaskedImageModeling, ...ForPreTraining; the pooler of the bare model.
VIT_LEFT_OVER = (
    r"^(?:cls_|distillation_)?classifier\.",
    r"^decoder\.",
    r"^(?:\w+\.)?pooler\.dense\.",
    r"^(?:\w+\.)?embeddings\.mask_token$",
)


def vit_args(config: PreTrainedConfig, names: Sequence[str], base: str, patch: int) -> tuple[str, dict[str, Any]]:
    """The architecture of a ViT, and the arguments that say its size where timm has no name for it.

    Args:
        config: of transformers, with `intermediate_size`.
        names: timm's, the preferred one first, with `{size}`, `{patch}` and `{image}`.
        base: the name to build other sizes from.
        patch: the side of a patch of the base in pixels.
    """
    dims = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    side = square_patch(config)
    known = next((size for size in SIZES if SIZES[size] == dims), None)
    found = first_name([name.format(size=known, patch=side, image=config.image_size) for name in names])
    if known and found:
        return found, {}
    args = {"embed_dim": dims[0], "depth": dims[1], "num_heads": dims[2], "mlp_ratio": mlp_ratio(dims[3], dims[0])}
    return base, args if side == patch else args | {"patch_size": side}


def _fields(config: PreTrainedConfig, names: Sequence[str], base: str, patch: int = 16) -> dict[str, Any]:
    require_no_dropout(config, "hidden_dropout_prob", "attention_probs_dropout_prob")
    architecture, args = vit_args(config, names, base, patch)
    args |= activation_args(config, "gelu")
    if not config.qkv_bias:
        args["qkv_bias"] = False
    return {"architecture": architecture, "model_args": args, "image_size": image_size(config)}


def _vit(config: PreTrainedConfig) -> dict[str, Any]:
    names = ("vit_{size}_patch{patch}_{image}", "vit_{size}_patch{patch}_224")
    return _fields(config, names, "vit_base_patch16_224")


def _deit(config: PreTrainedConfig) -> dict[str, Any]:
    names = ("deit_{size}_distilled_patch{patch}_{image}", "deit_{size}_distilled_patch{patch}_224")
    return _fields(config, names, "deit_base_distilled_patch16_224")


def _ijepa(config: PreTrainedConfig) -> dict[str, Any]:
    names = ("vit_{size}_patch{patch}_gap_{image}", "vit_{size}_patch{patch}_gap_224")
    # timm's base of this kind has 16 heads.
    large = config.hidden_size >= SIZES["huge"][0]
    return _fields(config, names if large else (), "vit_huge_patch14_gap_224", patch=14)


LAYOUTS = {
    "vit": KeyLayout(_vit, VIT_RENAMES, VIT_LEFT_OVER, norm_eps=1e-6),
    "deit": KeyLayout(_deit, VIT_RENAMES, VIT_LEFT_OVER, norm_eps=1e-6),
    "vit_mae": KeyLayout(_vit, VIT_RENAMES, VIT_LEFT_OVER, norm_eps=1e-6),
    "ijepa": KeyLayout(_ijepa, VIT_RENAMES, VIT_LEFT_OVER, norm_eps=1e-6),
}
