"""Decoders that predict pixels from feature maps: the paper's, one convolution of the last map, and one that reads
every stage of a hierarchical encoder, which learns from fewer steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_a2mim import A2MIMConfig
from .encoders.meta import TimmEncoder
from .encoders.plan import EncoderPlan


FINEST_STRIDE = 4  # pixels per cell of the finest map that is read
WIDTH = 64  # channels that every map is brought to


def make_decoder(config: A2MIMConfig, plan: EncoderPlan, encoder: TimmEncoder) -> tuple[nn.Module, int]:
    """The decoder that `config.decoder` names, and the pixels per cell of what it gives.

    Raises:
        ValueError: naming `decoder`, if the encoder has not the maps that it needs.
    """
    kernel: dict[str, Any] = {"kernel_size": config.decoder_kernel_size, "padding": config.decoder_kernel_size // 2}
    if config.decoder == "linear":
        return nn.Conv2d(plan.map_layout.channels, plan.stride**2 * config.num_channels, **kernel), plan.stride
    if not hasattr(encoder, "forward_intermediates"):
        raise ValueError(f"decoder: multiscale needs timm's forward_intermediates; {config.architecture} has none")
    stages = list(encoder.feature_info)
    # Of stages with one stride the last; the last map of all is the one that `forward_features` gives.
    last = {stage["reduction"]: i for i, stage in enumerate(stages) if stage["reduction"] >= FINEST_STRIDE}
    indices = [index for stride, index in sorted(last.items()) if stride < plan.stride]
    if not indices:
        strides = sorted({stage["reduction"] for stage in stages})
        raise ValueError(
            f"decoder: multiscale reads maps of several resolutions, of {FINEST_STRIDE} px a cell and more; "
            f"{config.architecture} has {', '.join(map(str, strides))} px; use linear"
        )
    channels = [stages[index]["num_chs"] for index in indices] + [plan.map_layout.channels]
    stride = stages[indices[0]]["reduction"]
    return MultiscaleDecoder(indices, channels, stride**2 * config.num_channels, **kernel), stride


class MultiscaleDecoder(nn.Module):
    """From the deepest map upwards: each is brought to `WIDTH` channels by a 1x1 convolution, the result of the deeper
    ones is enlarged and added, and a 3x3 convolution with BatchNorm and GELU follows; a 1x1 convolution of the finest
    predicts its pixels. The decoders of U-Net and SparK (https://arxiv.org/abs/2301.03580) are of this kind.

    Args:
        indices: the stages of the encoder that are read beside the last map, the finest first.
        channels: of their maps and of the last one.
        out_channels: of what is predicted for each cell of the finest.
        kernel: size and padding of the convolution that predicts.
    """

    def __init__(self, indices: list[int], channels: Sequence[int], out_channels: int, **kernel: Any):
        super().__init__()
        self.indices = indices
        self.lateral = nn.ModuleList([nn.Conv2d(count, WIDTH, 1) for count in channels])
        self.fuse = nn.ModuleList([_fusion() for _ in channels])
        self.predict = nn.Conv2d(WIDTH, out_channels, **kernel)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (batch, channels, rows, columns), the finest first, to (batch, out_channels, rows, columns) at the
        resolution of the finest."""
        below = None
        for lateral, fuse, features in zip(self.lateral[::-1], self.fuse[::-1], reversed(maps), strict=True):
            features = lateral(features)
            if below is not None:
                features = features + F.interpolate(below, size=features.shape[-2:], mode="nearest")
            below = fuse(features)
        return self.predict(below)


def _fusion() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), _Norm(WIDTH), nn.GELU())


class _Norm(nn.BatchNorm2d):
    """Takes single values as well, which have no variance: the last batch of an epoch may be one image, and the
    deepest map of a small one is one cell."""

    takes_single_values = True  # see `batch_norm`

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training and features.numel() == features.shape[1]:
            statistics = self.running_mean, self.running_var
            return F.batch_norm(features, *statistics, self.weight, self.bias, eps=self.eps)
        return super().forward(features)


def init_decoder(decoder: nn.Module, module: nn.Module, std: float) -> None:
    """First values of one module of a decoder: small ones (`std`) for what predicts pixels."""
    if isinstance(module, nn.Conv2d):
        if module is getattr(decoder, "predict", decoder):
            init.normal_(module.weight, std=std)
        else:
            init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        init.ones_(module.weight)
        init.zeros_(module.bias)
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
        init.zeros_(module.num_batches_tracked)
