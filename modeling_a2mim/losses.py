"""The two terms of the A2MIM loss, pure functions of tensors (https://arxiv.org/abs/2205.13943, section 4.2).

Images are (batch, channels, height, width); a mask is (batch, rows, columns), 1 = masked, and is scaled to the image
by the nearest cell. Half-precision input is computed in float32, also under autocast.
"""

import contextlib

import torch
from torch.nn import functional as F


# How much of the prediction, without gradient, replaces the visible prediction; the target is the rest.
REPLACEMENT_SHARE = {"prediction": 1.0, "mixed": 0.5}


def spatial_loss(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, kind: str = "l1", alpha: float = 0.2
) -> torch.Tensor:
    """Mean error of the masked pixels: sum(e * M) / (sum(M) + 1e-5) / channels.

    e is |prediction - target| (`"l1"`), or with d = that, d * (2 * sigmoid(alpha * d) - 1) (`"focal_l1"`).
    """
    prediction, target, mask = _prepare(prediction, target, mask)
    error = _criterion(prediction - target, kind, alpha)
    return (error * mask).sum() / (mask.sum() + 1e-5) / prediction.shape[1]


def frequency_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    *,
    focal: bool = True,
    replacement: str = "mixed",
    unmasked_weight: float = 0.0,
    batch_average: bool = True,
    kind: str = "l1",
    alpha: float = 0.2,
) -> torch.Tensor:
    """The loss in the Fourier domain (equation 4 of the paper; focal frequency loss, https://arxiv.org/abs/2012.12821).

    The prediction is taken inside the mask; outside, a share `unmasked_weight` of it, and for the rest `replacement`,
    without gradient. D is the orthonormal 2D transform of the residual to the target;
    focal: mean(W * |D|^2) with W = log(1 + |D|) / max, detached; else the spatial criterion `kind` of |D|.
    Since the transform is linear and the input real, one real transform of the residual is all it takes. With
    `batch_average` the focal form transforms the mean residual of the batch, and W is taken over that; without, each
    image has its own. The other form never averages.
    """
    prediction, target, mask = _prepare(prediction, target, mask)
    with _full_precision(prediction.device.type):
        residual = _residual(prediction, target, mask + (1 - mask) * unmasked_weight, replacement)
        if not focal:
            return _full_spectrum_mean(_criterion(_spectrum(residual), kind, alpha), residual.shape[-1])
        return _focal_loss(residual.mean(0, keepdim=True) if batch_average else residual)


def _full_precision(device_type: str) -> contextlib.AbstractContextManager:
    """No autocast; the meta device knows none."""
    if device_type == "meta":  # torch.amp.is_autocast_available cannot be compiled by torch 2.11
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def _spectrum(residual: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft2(residual, norm="ortho")


def _focal_loss(residual: torch.Tensor) -> torch.Tensor:
    spectrum = _spectrum(residual)
    # |D|^2 without a square root keeps the gradient finite where D is 0.
    power = spectrum.real.square() + spectrum.imag.square()
    weight = power.detach().sqrt().log1p()
    largest = weight.amax((1, 2, 3), keepdim=True)
    weight = (weight / largest.clamp_min(torch.finfo(weight.dtype).tiny)).clamp(0, 1)
    return _full_spectrum_mean(weight * power, residual.shape[-1])


def _prepare(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    mask = F.interpolate(mask[:, None].to(dtype), size=prediction.shape[-2:], mode="nearest")
    return prediction.to(dtype), target.to(dtype), mask


def _criterion(difference: torch.Tensor, kind: str, alpha: float) -> torch.Tensor:
    distance = difference.abs()
    return distance if kind == "l1" else distance * (2 * torch.sigmoid(alpha * distance) - 1)


def _residual(prediction: torch.Tensor, target: torch.Tensor, visible: torch.Tensor, replacement: str) -> torch.Tensor:
    """prediction * visible + replacement * (1 - visible) - target, where `visible` is the share with gradient."""
    difference = prediction - target
    if replacement == "target":
        return difference * visible
    if replacement == "mean":
        return difference * visible + (target.mean((2, 3), keepdim=True) - target) * (1 - visible)
    return difference * visible + difference.detach() * (REPLACEMENT_SHARE[replacement] * (1 - visible))


def _full_spectrum_mean(half: torch.Tensor, width: int) -> torch.Tensor:
    """The mean over the full spectrum of a real image, from the half that `rfft2` gives: all columns but the first
    and, for an even width, the last count twice."""
    total = 2 * half.sum() - half[..., 0].sum()
    if width % 2 == 0:
        total = total - half[..., -1].sum()
    return total / (half.numel() // half.shape[-1] * width)
