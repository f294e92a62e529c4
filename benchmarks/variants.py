"""Changes of A2MIM that are tried in `factors.py` and are no options of the package: what the pixels of masked cells
do to BatchNorm, and another target."""

import torch
from torch import nn

from benchmarks.rivals import A2MIM, HogTarget
from modeling_a2mim.masking import resize_mask


class VisibleBatchNorm(nn.BatchNorm2d):
    """Statistics of the visible cells alone; all are normalised by them."""

    mask: torch.Tensor | None = None  # (batch, rows, columns), 1 = masked

    def forward(self, input):
        if not self.training or self.mask is None:
            return super().forward(input)
        visible = (~resize_mask(self.mask, tuple(input.shape[-2:])))[:, None].to(input.dtype)
        count = (visible.sum()).clamp_min(1)
        mean = (input * visible).sum((0, 2, 3)) / count
        variance = ((input - mean.view(1, -1, 1, 1)).square() * visible).sum((0, 2, 3)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return input * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)


class VisibleNorm(A2MIM):
    """BatchNorm of the encoder takes its statistics from visible cells."""

    def __init__(self, config, steps, **options):
        super().__init__(config, steps, **options)
        self.norms = [module for module in self.a2mim.encoder.modules() if type(module) is nn.BatchNorm2d]
        if not self.norms:
            raise ValueError(f"{config.architecture} has no BatchNorm")
        for module in self.norms:
            module.__class__ = VisibleBatchNorm

    def forward(self, views, mask):
        for module in self.norms:
            module.mask = mask
        return super().forward(views, mask)


class RunningNorm(A2MIM):
    """BatchNorm of the encoder normalises masked images by the statistics of whole ones: before each step its averages
    follow the same images without a mask."""

    def forward(self, views, mask):
        encoder = self.a2mim.encoder
        with torch.no_grad():
            self.a2mim.encode(views)
        norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in norms:
            module.eval()
        loss = super().forward(views, mask)
        for module in norms:
            module.train()
        return loss


VARIANTS = {"visible norm": VisibleNorm, "running norm": RunningNorm, "HOG": HogTarget}


@torch.no_grad()
def recalibrated(core: nn.Module, batches) -> None:
    """Give BatchNorm the mean and variance of whole images, averaged over batches of them (normalised)."""
    norms = [module for module in core.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean of all
    core.train()
    for pixels in batches:
        core.encode(pixels)
    core.eval()
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
