"""Weights of timm encoders as the files of other code hold them."""

import argparse
import re
from pathlib import Path

import timm
import torch
from torch import nn


ENCODERS = {
    "resnet": ("resnet10t", {}, 64),
    "vit": ("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 48}, 64),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}, 64),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 4), "window_size": 2},
        64,
    ),
}


def random_encoder(family: str, classes: int = 0, **kwargs) -> nn.Module:
    """A timm encoder of which nothing has its first value."""
    name, args, size = ENCODERS[family]
    args = {**args, **kwargs} if family in ("resnet", "convnext") else {"img_size": size, **args, **kwargs}
    encoder = timm.create_model(name, num_classes=classes, **args)
    generator = torch.Generator().manual_seed(0)
    for value in encoder.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.05)
    return encoder.eval()


def prefixed(weights: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def other(weights: dict) -> dict:
    """The same names, other values."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in weights.items()}


def head(prefix: str = "") -> dict:
    return {f"{prefix}head.mlp.0.weight": torch.rand(4, 4), f"{prefix}head.last_layer.weight": torch.rand(3, 4)}


def forms(weights: dict, family: str) -> dict[str, dict]:
    """What files hold, by who writes them so."""
    settings = argparse.Namespace(arch="x", output_dir=Path("/somewhere"), lr=0.1)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict()
    found = {
        "timm or lightly-train": weights,
        "timm's training": {"state_dict": other(weights), "state_dict_ema": weights, "args": settings, "epoch": 3},
        "DistributedDataParallel": {"state_dict": prefixed(weights, "module."), "optimizer": optimizer},
        "DINO": {
            "student": {**prefixed(other(weights), "module.backbone."), **head("module.")},
            "teacher": {**prefixed(weights, "backbone."), **head()},
            "optimizer": optimizer,
            "args": settings,
        },
        "MoCo": {
            "state_dict": prefixed(weights, "module.encoder_q.")
            | prefixed(other(weights), "module.encoder_k.")
            | {"module.queue": torch.rand(4, 8)}
        },
        "Lightning": {"state_dict": prefixed(weights, "model."), "hyper_parameters": {"lr": 0.1}, "epoch": 3},
        "torch.compile": prefixed(weights, "_orig_mod."),
    }
    if family in ("resnet", "convnext"):
        found["SparK"] = {
            "module": {**prefixed(weights, "sparse_encoder.sp_cnn."), "mask_tokens.0": torch.rand(1, 8, 1, 1)}
            | {"dense_decoder.dec.0.up_sample.weight": torch.rand(4, 4)},
            "args": str(settings),
        }
    if family == "vit":
        found["MAE"] = {
            "model": {**weights, "mask_token": torch.rand(1, 1, 8), "decoder_pos_embed": torch.rand(1, 5, 8)}
        }
        found["MAE"]["model"] |= {"decoder_blocks.0.norm1.weight": torch.rand(8), "decoder_pred.weight": torch.rand(8)}
    if family == "swin":
        found["SimMIM"] = {
            "model": {**prefixed(official_swin(weights), "encoder."), "encoder.mask_token": torch.rand(1, 1, 8)}
            | {"decoder.0.weight": torch.rand(8, 8, 1, 1)},
            "optimizer": optimizer,
        }
    if family == "convnext":
        found["Meta's ConvNeXt"] = {"model": official_convnext(weights)}
    return found


def official_swin(weights: dict) -> dict:
    """Downsampling at the end of a stage, and indices among the weights."""
    names = {
        name: re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        for name in weights
    }
    found = {names[name]: value for name, value in weights.items()}
    return {**found, "layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.long)}


def official_convnext(weights: dict) -> dict:
    found = {}
    for name, value in weights.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.norm", "norm")
        found[name] = value
    return {**found, "head.weight": torch.rand(3, 32), "head.bias": torch.rand(3)}
