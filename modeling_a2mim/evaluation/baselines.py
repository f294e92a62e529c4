"""Errors of a reconstruction on masked pixels, beside those of two baselines without learning: the mean colour of the
image (what masked pixels are filled with), or of each cell where the model is given that, and a blur of the visible
pixels."""

import torch
from torchvision.transforms.v2.functional import gaussian_blur

from ..configuration_a2mim import A2MIMConfig
from ..masking import fill_masked, pixel_mask
from ..targets import cell_statistics, restore_cells


GUESSES = ("masked", "mean_fill", "blur")  # the model's, as in `masked_psnr`, and the two others
BLUR_SIGMA = 0.35  # of the shorter side of a cell; the best of those tried on photographs
RADIUS = 4  # standard deviations


def blur_visible(images: torch.Tensor, mask: torch.Tensor, sigma: float) -> torch.Tensor:
    """Each pixel as the mean of the visible ones around it, weighed by a Gaussian; the mean of the image where none is
    within 4 standard deviations.

    Args:
        images: (batch, channels, height, width), float32.
        mask: (batch, rows, columns), 1 = masked.
        sigma: standard deviation in pixels.
    """
    size = images.shape[-2], images.shape[-1]
    visible = (~pixel_mask(mask, size)).to(images.dtype)
    # Borders are mirrored, which takes more pixels than the blur reaches. Rows and columns one after the other, as one
    # convolution with both would take as many times longer as the blur is wide.
    height, width = (2 * min(int(RADIUS * sigma + 1), side - 1) + 1 for side in size)
    total, weight = (
        gaussian_blur(gaussian_blur(x, [width, 1], [sigma, sigma]), [1, height], [sigma, sigma])
        for x in (images * visible, visible)
    )
    return torch.where(weight > 1e-4, total / weight.clamp_min(1e-4), images.mean((2, 3), keepdim=True))


def mean_guess(pixel_values: torch.Tensor, mask: torch.Tensor, config: A2MIMConfig) -> torch.Tensor:
    """What a model knows that predicts nothing: images whose masked pixels are the mean colour of the image; or of the
    cell, for a model whose target is normalised cells, as its reconstruction is given that.

    Args:
        pixel_values: (batch, channels, height, width), normalised by `config`.
        mask: (batch, rows, columns), 1 = masked.
    """
    if config.target == "pixels":
        return fill_masked(pixel_values, mask)
    means = restore_cells(torch.zeros_like(pixel_values), cell_statistics(pixel_values, config.mask_cell_size))
    return torch.where(pixel_mask(mask, pixel_values.shape[-2:]), means, pixel_values)


def masked_errors(
    reconstruction: torch.Tensor, pixel_values: torch.Tensor, mask: torch.Tensor, config: A2MIMConfig
) -> torch.Tensor:
    """Sums over the masked pixels of each image, in float32: how many values there are, and of each of `GUESSES` the
    squared and the absolute error, for pixels in [0, 1] (guesses are clipped to that). Shape (batch, 7).

    Args:
        reconstruction: (batch, channels, height, width), normalised as `pixel_values`.
        pixel_values: (batch, channels, height, width), normalised by `config`.
        mask: (batch, rows, columns), 1 = masked.
        config: says how the images are normalised and how large a cell of the mask is.
    """
    mean, std = (
        torch.tensor(values, device=pixel_values.device).view(-1, 1, 1)
        for values in (config.image_mean, config.image_std)
    )
    fill = mean_guess(pixel_values.float(), mask, config)
    images, guess, fill = (x.float() * std + mean for x in (pixel_values, reconstruction, fill))
    guesses = (guess, fill, blur_visible(images, mask, BLUR_SIGMA * min(config.mask_cell_size)))
    masked = pixel_mask(mask, (images.shape[-2], images.shape[-1])).float()
    sums = [masked.sum((1, 2, 3)) * images.shape[1]]
    for values in guesses:
        error = (values.clamp(0, 1) - images) * masked
        sums += [error.square().sum((1, 2, 3)), error.abs().sum((1, 2, 3))]
    return torch.stack(sums, dim=1)


def summarise_errors(errors: torch.Tensor) -> dict[str, float]:
    """`masked_psnr` (dB) and `masked_l1` (0 to 1), the same of `mean_guess` and of the blur; errors are averaged over
    all masked pixels of all images before the logarithm, so that no image that is of one colour makes it infinite.

    Args:
        errors: of `masked_errors`, (images, 7).
    """
    count, *sums = errors.double().sum(0).tolist()
    found = {}
    for name, square, absolute in zip(GUESSES, sums[::2], sums[1::2], strict=True):
        found[f"{name}_psnr"] = psnr(square / count)
        found[f"{name}_l1"] = absolute / count
    return found


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [0, 1]; no error counts as one of 1e-10, 100 dB."""
    return -10 * torch.tensor(max(mean_squared_error, 1e-10)).double().log10().item()
