"""Official A2MIM and SimMIM pre-training checkpoints (.pth of OpenMixup) to this package.

    python -m modeling_a2mim.conversion IN.pth OUT_FOLDER

Keys of the official files and how they are wrapped: a dict with the weights under `state_dict`, made by mmcv, often a
legacy (not zip) pickle. They are read with `weights_only=True` and nothing else.
"""

import argparse
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from .configuration_a2mim import A2MIMConfig
from .export import export_model
from .modeling_a2mim import A2MIMForPreTraining


# (blocks per stage, bottleneck) -> timm name; the official ResNet is torchvision's, with identical keys.
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
# official name (a regular expression) -> timm name, applied in this order to every key of the encoder
RENAMES = {
    "convnext": [
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.depthwise_conv\.", ".conv_dw."),
        (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
        (r"^norm3\.", "head.norm."),
    ],
    "vit": [
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.", "blocks."),
        (r"\.ln([12])\.", r".norm\1."),
        (r"^ln1\.", "norm."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    ],
    "swin": [
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^stages\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
        (r"^stages\.", "layers."),
        (r"\.attn\.w_msa\.", ".attn."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"^norm3\.", "norm."),
    ],
    "resnet": [],
}


def load_official(path: str | Path, mask_site: int | str | None = None) -> A2MIMForPreTraining:
    """Read an official pre-training checkpoint.

    Args:
        path: a .pth file; a legacy pickle or a zip, the weights at top level or under `state_dict`.
        mask_site: overrides the site of the mask token, which is read from the configuration text inside the file
            (`mask_layer`) where there is one, and otherwise the release's for the family.

    Raises:
        ValueError: if the file cannot be read without running code from it, or is no pre-training checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a refused global, a truncated file, not a pickle at all: torch raises many kinds
        raise ValueError(f"{path}: not a checkpoint that torch reads with weights_only=True: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dict of weights, found a {type(content).__name__}")
    meta = content.get("meta") or {}
    text = meta.get("config", "") if isinstance(meta, Mapping) else ""
    return convert(content.get("state_dict", content), mask_site, text)


def convert(state_dict: Mapping, mask_site: int | str | None = None, config_text: str = "") -> A2MIMForPreTraining:
    """Official weights (keys `backbone.*`, `neck.*`) to a pre-training model in evaluation mode. Every weight must
    find its place. Arguments and errors as in `load_official`; `config_text` is the configuration inside the file."""
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    state = {key: value for key, value in state.items() if not key.startswith("ema_")}
    encoder = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    neck = {k: v for k, v in state.items() if k.startswith("neck.")}
    rest = sorted(set(state) - set(neck) - {f"backbone.{k}" for k in encoder})
    token, gamma = encoder.pop("mask_token", None), encoder.pop("mask_gamma", None)
    decoder = {k.split(".")[-1]: v for k, v in neck.items() if re.fullmatch(r"neck\.decoder(_pred)?\.0\.\w+", k)}
    if not encoder or token is None or set(decoder) != {"weight", "bias"} or rest or len(neck) != 2:
        raise ValueError(
            "not a full pre-training checkpoint with backbone.*, backbone.mask_token and a 1x1 decoder (neck.*)"
            + (f"; unknown keys: {', '.join(rest[:5])}" if rest else "")
            + (f"; decoder keys: {', '.join(sorted(neck)[:5])}" if neck else "")
        )
    family = _family(encoder)
    site = _site(family, config_text) if mask_site is None else mask_site
    simmim = "neck.decoder.0.weight" in neck
    config = {"resnet": _resnet, "convnext": _convnext, "vit": _vit, "swin": _swin}[family](encoder, site, simmim)
    config.mask_gamma_init = None if gamma is None else 1e-6
    model = A2MIMForPreTraining(config).eval()

    indices = {k: v for k, v in encoder.items() if k.endswith("relative_position_index")}
    weights = {_rename(k, family): v for k, v in encoder.items() if k not in indices}
    if family == "swin":
        weights = {k: _reorder_merging(v) if ".downsample." in k else v for k, v in weights.items()}
    buffers = dict(model.a2mim.encoder.named_buffers())
    for key, index in indices.items():
        ours = buffers.get(_rename(key, family))
        if ours is None or not torch.equal(ours, index):
            raise ValueError(f"backbone.{key}: the relative positions are not those of timm's encoder")
    full = {f"a2mim.encoder.{k}": v for k, v in weights.items()}
    full |= {f"decoder.{k}": v for k, v in decoder.items()}
    full["a2mim.mask_token.token"] = token.flatten()
    if gamma is not None:
        full["a2mim.mask_token.gamma"] = gamma.flatten()
    try:
        model.load_state_dict(full, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {config.architecture}: {error}") from error
    return model


def _family(encoder: Mapping) -> str:
    for family, key in (
        ("resnet", "layer1.0.conv1.weight"),
        ("convnext", "downsample_layers.0.0.weight"),
        ("vit", "layers.0.attn.qkv.weight"),
        ("swin", "stages.0.blocks.0.attn.w_msa.qkv.weight"),
    ):
        if key in encoder:
            return family
    raise ValueError(f"no official ResNet, ConvNeXt, ViT or Swin: {', '.join(sorted(encoder)[:5])}, ...")


def _site(family: str, config_text: str) -> int | str | None:
    """The official `mask_layer` as a site here: it counts completed stages or blocks, and 0 is the stem."""
    layer = re.search(r"mask_layer\s*=\s*(\d+)", config_text)
    if layer is None:
        return None
    layer = int(layer[1])
    if family == "vit":  # mask_layer 8 acts before block index 7
        return f"blocks.{layer - 2}" if layer > 1 else "patch_embed"
    return {
        "resnet": f"layer{layer}" if layer else "maxpool",
        "convnext": f"stages.{layer}.downsample" if layer else "stem",
        "swin": f"layers.{layer}.downsample" if layer else "patch_embed",
    }[family]


def _blocks(encoder: Mapping, pattern: str) -> tuple[int, ...]:
    found = [tuple(map(int, match.groups())) for key in encoder if (match := re.match(pattern, key))]
    return tuple(1 + max(block for stage, block in found if stage == s) for s in sorted({s for s, _ in found}))


def _named(table: dict, key, kind: str) -> str:
    if key not in table:
        raise ValueError(f"timm has no {kind} with {key}; known: {', '.join(map(str, table))}")
    return table[key]


def _resnet(encoder, site, simmim) -> A2MIMConfig:
    key = (_blocks(encoder, r"layer(\d+)\.(\d+)\."), "layer1.0.conv3.weight" in encoder)
    if simmim:
        return A2MIMConfig.simmim(_named(RESNETS, key, "ResNet"), mask_site=site or "maxpool")
    return A2MIMConfig.resnet(_named(RESNETS, key, "ResNet"), mask_site=site)


def _convnext(encoder, site, simmim) -> A2MIMConfig:
    width = encoder["downsample_layers.0.0.weight"].shape[0]
    name = _named(CONVNEXTS, (_blocks(encoder, r"stages\.(\d+)\.(\d+)\."), width), "ConvNeXt")
    if simmim:
        return A2MIMConfig.simmim(name, mask_site=site or "stem")
    return A2MIMConfig.convnext(name, mask_site=site or "stages.3.downsample")


def _vit(encoder, site, simmim) -> A2MIMConfig:
    """The official ViT has absolute and relative positions, as timm's Beit class can but no registered name does."""
    width = encoder["cls_token"].shape[-1]
    patch = encoder["patch_embed.projection.weight"].shape[-1]
    args = {
        "embed_dim": width,
        "depth": 1 + max(int(key.split(".")[1]) for key in encoder if key.startswith("layers.")),
        "num_heads": encoder["layers.0.attn.relative_position_bias_table"].shape[1],
        "mlp_ratio": encoder["layers.0.ffn.layers.0.0.weight"].shape[0] / width,
        "use_abs_pos_emb": True,
        "use_rel_pos_bias": True,
        "init_values": 0.1,
        "global_pool": "token",
    }
    if "layers.0.attn.q_bias" not in encoder:
        args["qkv_bias"] = False
    settings = {
        "architecture": f"beit_base_patch{patch}_224",
        "model_args": args,
        "image_size": math.isqrt(encoder["pos_embed"].shape[1] - 1) * patch,
        "mask_site": site or "patch_embed",
    }
    return A2MIMConfig.simmim(**settings) if simmim else A2MIMConfig.vit(**settings)


def _swin(encoder, site, simmim) -> A2MIMConfig:
    depths = _blocks(encoder, r"stages\.(\d+)\.blocks\.(\d+)\.")
    window = math.isqrt(encoder["stages.0.blocks.0.attn.w_msa.relative_position_index"].shape[0])
    tables = [encoder[f"stages.{s}.blocks.0.attn.w_msa.relative_position_bias_table"] for s in range(len(depths))]
    settings = {
        "architecture": "swin_tiny_patch4_window7_224",
        "model_args": {
            "embed_dim": encoder["patch_embed.projection.weight"].shape[0],
            "depths": list(depths),
            "num_heads": [table.shape[1] for table in tables],
            "window_size": window,
        },
        "image_size": 32 * window,  # the last stage is one window; 192 px for the release's windows of 6
        "mask_site": site or "patch_embed",
    }
    return A2MIMConfig.simmim(**settings) if simmim else A2MIMConfig.swin(**settings)


def _rename(key: str, family: str) -> str:
    for pattern, replacement in RENAMES[family]:
        key = re.sub(pattern, replacement, key)
    return key


def _reorder_merging(weight: torch.Tensor) -> torch.Tensor:
    """Inputs of Swin's patch merging: the official order is (channel, row, column), timm's (column, row, channel)."""
    channels = weight.shape[-1] // 4
    return weight.unflatten(-1, (channels, 2, 2)).movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m modeling_a2mim.conversion", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="an official pre-training checkpoint, .pth")
    parser.add_argument("output_folder", help="where the plain encoder and pretraining/ are written")
    parser.add_argument("--mask_site", help="module of the timm encoder whose output the mask token enters")
    args = parser.parse_args(argv)
    try:
        model = load_official(args.checkpoint, args.mask_site)
        export_model(model, args.output_folder)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    parameters = sum(p.numel() for p in model.parameters())
    name, site = model.config.architecture, model.a2mim.site.module
    print(f"{name}: {parameters:,} parameters, token at {site}, to {args.output_folder}")


if __name__ == "__main__":
    main()
