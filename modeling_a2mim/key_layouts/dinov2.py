"""DINOv2 (https://arxiv.org/abs/2304.07193), without and with registers (https://arxiv.org/abs/2309.16588).

Positions are those of `image_size`, 518 px in the published configurations. For images of another size both resample
them: timm as transformers does it for DINOv2 with registers (bicubic with antialias), which for DINOv2 without
registers leaves the antialias out.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig

from .config import (
    activation_args,
    first_name,
    image_size,
    mlp_ratio,
    require_no_dropout,
    require_square_images,
    square_patch,
)
from .layout import KeyLayout
from .names import Weights
from .vit import VIT_LEFT_OVER, VIT_RENAMES


# timm's name of a size -> (embed_dim, depth, num_heads, mlp_ratio, whether the MLP is a SwiGLU)
SIZES = {
    "small": (384, 12, 6, 4, False),
    "base": (768, 12, 12, 4, False),
    "large": (1024, 24, 16, 4, False),
    "giant": (1536, 40, 24, 4, True),
}
RENAMES = (
    *VIT_RENAMES,
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
)


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    require_square_images(config)
    # All blocks have the same rate here; timm's rises from block to block.
    require_no_dropout(config, "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
    registers = getattr(config, "num_register_tokens", None)
    name = "vit_{}_patch14_dinov2" if registers is None else "vit_{}_patch14_reg4_dinov2"
    dims = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.mlp_ratio)
    known = next((size for size in SIZES if SIZES[size] == (*dims, config.use_swiglu_ffn)), None)
    args: dict[str, Any] = {}
    if known is None:
        args = {"embed_dim": dims[0], "depth": dims[1], "num_heads": dims[2]}
        args["mlp_ratio"] = mlp_ratio(_hidden(config), dims[0])
        known = "giant" if config.use_swiglu_ffn else "base"
    if not config.use_swiglu_ffn:
        args |= activation_args(config, "gelu")
    if square_patch(config) != 14:
        args["patch_size"] = square_patch(config)
    if registers not in (None, 4):
        args["reg_tokens"] = registers
    if not config.qkv_bias:
        args["qkv_bias"] = False
    return {"architecture": first_name([name.format(known)]), "model_args": args, "image_size": image_size(config)}


def _hidden(config: PreTrainedConfig) -> int:
    """Features between the two layers of the MLP; a SwiGLU has them twice, two thirds of the size, in steps of 8."""
    hidden = int(config.hidden_size * config.mlp_ratio)
    return 2 * ((int(hidden * 2 / 3) + 7) // 8 * 8) if config.use_swiglu_ffn else hidden


def _finish(weights: Weights) -> Weights:
    """Gate and values of a SwiGLU in one layer, where they are two. With registers, timm's positions are those of the
    patches alone: that of the class token becomes part of the token."""
    weights = dict(weights)
    for name in [name for name in weights if ".mlp.gate_proj." in name]:
        other = name.replace("gate_proj", "up_proj")
        if other in weights:
            weights[name.replace("gate_proj", "fc1")] = torch.cat([weights.pop(name), weights.pop(other)])
    if {"reg_token", "cls_token", "pos_embed"} <= weights.keys():
        positions = weights["pos_embed"].float()
        weights["cls_token"] = weights["cls_token"].float() + positions[:, :1]
        weights["pos_embed"] = positions[:, 1:]
        if weights["reg_token"].numel() == 0:
            del weights["reg_token"]
    return weights


LAYOUTS = {
    name: KeyLayout(_fields, RENAMES, VIT_LEFT_OVER, norm_eps=1e-6, finish=_finish)
    for name in ("dinov2", "dinov2_with_registers")
}
