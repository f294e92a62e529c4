"""Which encoder an official checkpoint holds, from the names and shapes of its weights, and its configuration here.

ResNet: the official code builds torchvision's (stem of 7x7, bottlenecks with their stride on the 3x3), which timm has
with the same names, order and shapes and, with the same weights, the same outputs. That holds for the ResNet-200 of
stages (3, 24, 36, 3), too: it is timm's `resnet200` (64,673,832 parameters, the release's 64.7M), not `resnet200d`,
whose stem is deep. Not known: whether the release's ResNet-200 has these stages. No list of its weights was recorded,
and the public versions of its ResNet that could be read know depths up to 152. Other stages are refused.

ConvNeXt: the official norms before downsampling have an eps of 1e-5, timm's 1e-6; measured, features differ by 8e-6.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping

import torch
from timm.data import ImageNetInfo

from ..configuration_a2mim import A2MIMConfig
from ..utils.labels import label_fields


# (blocks per stage, bottleneck) -> timm name
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
    ((3, 24, 36, 3), True): "resnet200",
}
# (blocks per stage, width) -> timm name
CONVNEXTS = {
    ((3, 3, 9, 3), 96): "convnext_tiny",
    ((3, 3, 27, 3), 96): "convnext_small",
    ((3, 3, 27, 3), 128): "convnext_base",
    ((3, 3, 27, 3), 192): "convnext_large",
    ((3, 3, 27, 3), 256): "convnext_xlarge",
}
# A weight that only encoders of the family have
LANDMARKS = {
    "resnet": "layer1.0.conv1.weight",
    "convnext": "downsample_layers.0.0.weight",
    "vit": "layers.0.attn.qkv.weight",
    "swin": "stages.0.blocks.0.attn.w_msa.qkv.weight",
}
IMAGENET_CLASSES = 1000


def official_family(encoder: Mapping[str, torch.Tensor]) -> str:
    """`resnet`, `convnext`, `vit` or `swin`.

    Raises:
        ValueError: if it is none of them.
    """
    for family, key in LANDMARKS.items():
        if key in encoder:
            return family
    raise ValueError(f"no official ResNet, ConvNeXt, ViT or Swin: {', '.join(sorted(encoder)[:5]) or 'no weights'}")


def official_config(
    encoder: Mapping[str, torch.Tensor],
    token: torch.Tensor | None = None,
    has_gamma: bool = False,
    num_labels: int = 0,
    simmim: bool = False,
    mask_site: int | str | None = None,
    config_text: str = "",
) -> A2MIMConfig:
    """The configuration of an official model, with the settings of its family in the release.

    Args:
        encoder: its weights under their official names, without `backbone.` and without token and gamma.
        token: the mask token, `None` if there is none.
        has_gamma: whether there is a gamma, too.
        num_labels: how many classes its classifier has, 0 for none. 1000 get ImageNet's names.
        simmim: whether it is SimMIM's, not A2MIM's.
        mask_site: overrides the token's site, which otherwise is read from `config_text` (`mask_layer`) or, without
            that, told from the token's width (`patch_embed` for ViTs, which keep one width).
        config_text: the official configuration, as text.

    Raises:
        ValueError: if it is no official encoder, weights of it are missing, or there is no token for `mask_site`.
    """
    family = official_family(encoder)
    settings = {"resnet": _resnet, "convnext": _convnext, "vit": _vit, "swin": _swin}[family](encoder)
    if token is not None:
        settings["mask_site"] = _site(family, encoder, token, config_text) if mask_site is None else mask_site
        settings["mask_gamma_init"] = 1e-6 if has_gamma else None
    elif mask_site is not None:
        raise ValueError(f"mask_site: {mask_site!r} given, but there is no mask token")
    if num_labels == IMAGENET_CLASSES:
        settings |= label_fields(imagenet_labels())
    elif num_labels:
        settings |= label_fields([f"LABEL_{i}" for i in range(num_labels)])
    return A2MIMConfig.simmim(**settings) if simmim else getattr(A2MIMConfig, family)(**settings)


def imagenet_labels() -> list[str]:
    """The names of ImageNet's 1000 classes in their usual order: WordNet's words, as in the configurations of
    transformers. Where two classes share them (there are two cranes), WordNet's number follows in brackets."""
    info = ImageNetInfo()
    names = info.label_descriptions()
    count = Counter(names)
    return [f"{n} ({s})" if count[n] > 1 else n for n, s in zip(names, info.label_names(), strict=True)]


def _shape(encoder: Mapping, key: str, dimensions: int) -> tuple[int, ...]:
    if key not in encoder:
        raise ValueError(f"weights missing: {key}")
    shape = tuple(encoder[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"{key}: expected {dimensions} dimensions, found the shape {shape}")
    return shape


def _count(encoder: Mapping, start: str) -> int:
    """How many blocks there are whose names begin with `start` and a number."""
    numbers = {int(m[1]) for key in encoder if (m := re.match(rf"{re.escape(start)}(\d+)\.", key))}
    # One key with a large number must not make a large model.
    if len(numbers) != 1 + max(numbers, default=-1):
        raise ValueError(f"weights missing: {start}{max(numbers)} is there, but not all before it")
    return len(numbers)


def _stages(encoder: Mapping, start: str, first: int = 0) -> tuple[int, ...]:
    """Blocks of each stage; `start` has `{}` for the number of the stage."""
    counts: list[int] = []
    while count := _count(encoder, start.format(first + len(counts))):
        counts.append(count)
    return tuple(counts)


def _named(table: dict, key, kind: str) -> str:
    if key not in table:
        raise ValueError(f"timm has no {kind} with {key}; known: {', '.join(map(str, table))}")
    return table[key]


def _resnet(encoder) -> dict:
    key = (_stages(encoder, "layer{}.", first=1), "layer1.0.conv3.weight" in encoder)
    return {"architecture": _named(RESNETS, key, "ResNet")}


def _convnext(encoder) -> dict:
    width = _shape(encoder, "downsample_layers.0.0.weight", 4)[0]
    return {"architecture": _named(CONVNEXTS, (_stages(encoder, "stages.{}."), width), "ConvNeXt")}


def _vit(encoder) -> dict:
    """The official ViT has absolute and relative positions, as timm's Beit class can but no registered name does.

    Fine-tuned, the official `MIMVisionTransformer` has `fc_norm` and no `ln1`: patch tokens are averaged, then
    normalised. Where there is `ln1` (pre-training, and the plain `VisionTransformer` that DeiT-S is fine-tuned as),
    all tokens are normalised, and a classifier reads the class token."""
    width, patch = _shape(encoder, "patch_embed.projection.weight", 4)[::3]
    args = {
        "embed_dim": width,
        "depth": _count(encoder, "layers."),
        "num_heads": _shape(encoder, "layers.0.attn.relative_position_bias_table", 2)[1],
        "mlp_ratio": _shape(encoder, "layers.0.ffn.layers.0.0.weight", 2)[0] / width,
        "use_abs_pos_emb": True,
        "use_rel_pos_bias": True,
        "init_values": 0.1,
        "global_pool": "avg" if "fc_norm.weight" in encoder else "token",
    }
    if "layers.0.attn.q_bias" not in encoder:
        args["qkv_bias"] = False
    return {
        "architecture": f"beit_base_patch{patch}_224",
        "model_args": args,
        "image_size": math.isqrt(_shape(encoder, "pos_embed", 3)[1] - 1) * patch,
    }


def _swin(encoder) -> dict:
    depths, attention = _stages(encoder, "stages.{}.blocks."), "stages.{}.blocks.0.attn.w_msa.{}"
    window = math.isqrt(_shape(encoder, attention.format(0, "relative_position_index"), 2)[0])
    tables = [attention.format(stage, "relative_position_bias_table") for stage in range(len(depths))]
    return {
        "architecture": "swin_tiny_patch4_window7_224",
        "model_args": {
            "embed_dim": _shape(encoder, "patch_embed.projection.weight", 4)[0],
            "depths": list(depths),
            "num_heads": [_shape(encoder, table, 2)[1] for table in tables],
            "window_size": window,
        },
        # The last stage is one window: 192 px for windows of 6 (pre-training), 224 px for windows of 7.
        "image_size": 32 * window,
    }


def _site(family: str, encoder: Mapping, token: torch.Tensor, config_text: str) -> str:
    """The official `mask_layer` as a site here: it counts completed stages or blocks, and 0 is the stem."""
    found = re.search(r"mask_layer\s*=\s*(\d+)", config_text)
    layer = int(found[1]) if found else _layer_of_width(family, encoder, token.numel())
    if family == "vit":  # mask_layer 8 acts before block index 7
        return f"blocks.{layer - 2}" if layer > 1 else "patch_embed"
    return {
        "resnet": f"layer{layer}" if layer else "maxpool",
        "convnext": f"stages.{layer}.downsample" if layer else "stem",
        "swin": f"layers.{layer}.downsample" if layer else "patch_embed",
    }[family]


def _layer_of_width(family: str, encoder: Mapping, width: int) -> int:
    if family == "resnet":
        last = "conv3" if "layer1.0.conv3.weight" in encoder else "conv2"
        kernels = ["conv1.weight", *(f"layer{i}.0.{last}.weight" for i in range(1, 4))]
    elif family == "convnext":
        kernels = [f"downsample_layers.{i}.{min(i, 1)}.weight" for i in range(4)]
    else:
        kernels = ["patch_embed.projection.weight"]
    widths = [_shape(encoder, kernel, 4)[0] for kernel in kernels]
    if family == "swin":
        widths = [widths[0] * 2**i for i in range(4)]
    if width not in widths:
        raise ValueError(f"mask_token: it has {width} channels, the stages have {', '.join(map(str, widths))}")
    return widths.index(width)
