"""ResNet (https://arxiv.org/abs/1512.03385), with the stride of a bottleneck on its 3x3 convolution, and RegNet
(https://arxiv.org/abs/2003.13678)."""

from typing import Any

from transformers import PreTrainedConfig

from .config import refuse, require
from .layout import KeyLayout


# (blocks of each stage, kind of block) -> timm's name, for stages of 64 to 512 channels (4 times that in bottlenecks)
RESNETS = {
    ((2, 2, 2, 2), "basic"): "resnet18",
    ((3, 4, 6, 3), "basic"): "resnet34",
    ((2, 2, 2, 2), "bottleneck"): "resnet26",
    ((3, 4, 6, 3), "bottleneck"): "resnet50",
    ((3, 4, 23, 3), "bottleneck"): "resnet101",
    ((3, 8, 36, 3), "bottleneck"): "resnet152",
    ((3, 24, 36, 3), "bottleneck"): "resnet200",
}
CHANNELS = [64, 128, 256, 512]
# (kind, blocks of each stage, channels of each stage, channels of a group) -> timm's name
REGNETS = {
    ("x", (1, 1, 4, 7), (24, 56, 152, 368), 8): "regnetx_002",
    ("x", (1, 2, 7, 12), (32, 64, 160, 384), 16): "regnetx_004",
    ("x", (1, 2, 7, 12), (32, 64, 160, 400), 16): "regnetx_004_tv",
    ("x", (1, 3, 5, 7), (48, 96, 240, 528), 24): "regnetx_006",
    ("x", (1, 3, 7, 5), (64, 128, 288, 672), 16): "regnetx_008",
    ("x", (2, 4, 10, 2), (72, 168, 408, 912), 24): "regnetx_016",
    ("x", (2, 6, 15, 2), (96, 192, 432, 1008), 48): "regnetx_032",
    ("x", (2, 5, 14, 2), (80, 240, 560, 1360), 40): "regnetx_040",
    ("x", (2, 4, 10, 1), (168, 392, 784, 1624), 56): "regnetx_064",
    ("x", (2, 5, 15, 1), (80, 240, 720, 1920), 120): "regnetx_080",
    ("x", (2, 5, 11, 1), (224, 448, 896, 2240), 112): "regnetx_120",
    ("x", (2, 6, 13, 1), (256, 512, 896, 2048), 128): "regnetx_160",
    ("x", (2, 7, 13, 1), (336, 672, 1344, 2520), 168): "regnetx_320",
    ("y", (1, 1, 4, 7), (24, 56, 152, 368), 8): "regnety_002",
    ("y", (1, 3, 6, 6), (48, 104, 208, 440), 8): "regnety_004",
    ("y", (1, 3, 7, 4), (48, 112, 256, 608), 16): "regnety_006",
    ("y", (1, 3, 8, 2), (64, 128, 320, 768), 16): "regnety_008",
    ("y", (1, 3, 8, 2), (64, 144, 320, 784), 16): "regnety_008_tv",
    ("y", (2, 6, 17, 2), (48, 120, 336, 888), 24): "regnety_016",
    ("y", (2, 5, 13, 1), (72, 216, 576, 1512), 24): "regnety_032",
    ("y", (2, 6, 12, 2), (128, 192, 512, 1088), 64): "regnety_040",
    ("y", (2, 7, 14, 2), (144, 288, 576, 1296), 72): "regnety_064",
    ("y", (2, 4, 10, 1), (168, 448, 896, 2016), 56): "regnety_080",
    ("y", (2, 4, 10, 1), (224, 448, 896, 2016), 56): "regnety_080_tv",
    ("y", (2, 5, 11, 1), (224, 448, 896, 2240), 112): "regnety_120",
    ("y", (2, 4, 11, 1), (224, 448, 1232, 3024), 112): "regnety_160",
    ("y", (2, 5, 12, 1), (232, 696, 1392, 3712), 232): "regnety_320",
    ("y", (2, 5, 12, 1), (328, 984, 1968, 4920), 328): "regnety_640",
    ("y", (2, 7, 17, 1), (528, 1056, 2904, 7392), 264): "regnety_1280",
}
RESNET_RENAMES = (
    (r"^resnet\.", ""),
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d+)\.layers\.", lambda match: f"layer{int(match[1]) + 1}."),
    (r"\.layer\.(\d+)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.layer\.(\d+)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
REGNET_RENAMES = (
    (r"^regnet\.", ""),
    (r"^embedder\.embedder\.", "stem."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", lambda match: f"s{int(match[1]) + 1}.b{int(match[2]) + 1}."),
    (r"\.shortcut\.", ".downsample."),
    (r"\.layer\.2\.attention\.0\.", ".se.fc1."),
    (r"\.layer\.2\.attention\.2\.", ".se.fc2."),
    (r"\.layer\.([01])\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.layer\.[23]\.", ".conv3."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
)
LEFT_OVER = (r"^classifier\.",)


def _resnet(config: PreTrainedConfig) -> dict[str, Any]:
    require(config, embedding_size=64, downsample_in_first_stage=False, downsample_in_bottleneck=False)
    require(config, hidden_act="relu")  # which transformers has inside of blocks in any case
    depths, kind = tuple(config.depths), config.layer_type
    reduction = 4 if kind == "bottleneck" else 1
    channels = [size // reduction for size in config.hidden_sizes]
    if not len(depths) == len(channels) == 4:
        refuse("depths", list(depths), "and timm's ResNet has four stages")
    if any(size % reduction for size in config.hidden_sizes):
        refuse("hidden_sizes", list(config.hidden_sizes), f"and timm's {kind} blocks have multiples of {reduction}")
    name = RESNETS.get((depths, kind)) if channels == CHANNELS else None
    args = {} if name else {"layers": list(depths), "channels": channels}
    return {"architecture": name or {"basic": "resnet18", "bottleneck": "resnet50"}[kind], "model_args": args}


def _regnet(config: PreTrainedConfig) -> dict[str, Any]:
    require(config, embedding_size=32, downsample_in_first_stage=True, hidden_act="relu")
    name = REGNETS.get((config.layer_type, tuple(config.depths), tuple(config.hidden_sizes), config.groups_width))
    if name is None:
        refuse("hidden_sizes", list(config.hidden_sizes), "and timm has no RegNet with these stages and groups")
    return {"architecture": name, "model_args": {}}


LAYOUTS = {
    "resnet": KeyLayout(_resnet, RESNET_RENAMES, LEFT_OVER, has_positions=False),
    "regnet": KeyLayout(_regnet, REGNET_RENAMES, LEFT_OVER, has_positions=False),
}
