"""What the prediction is compared with, if that is not the pixels: those of each cell of the mask less their mean,
divided by their deviation (He et al., 2022, https://arxiv.org/abs/2111.06377)."""

from typing import NamedTuple

import torch


EPSILON = 1e-6  # beside the variance, as in MAE


class CellStatistics(NamedTuple):
    """Mean and standard deviation (over n - 1, as in MAE) of each cell's pixels and channels, (batch, 1, rows, 1,
    columns, 1)."""

    mean: torch.Tensor
    deviation: torch.Tensor


def cell_statistics(images: torch.Tensor, cell: tuple[int, int]) -> CellStatistics:
    """Those of images (batch, channels, height, width) with cells of (height, width) in pixels; in float32 or more.

    Raises:
        ValueError: if the images are no whole number of cells.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    variance, mean = torch.var_mean(_cells(images, cell), (1, 3, 5), keepdim=True)
    return CellStatistics(mean, (variance + EPSILON).sqrt())


def normalise_cells(images: torch.Tensor, statistics: CellStatistics) -> torch.Tensor:
    """The target: each cell less its mean, divided by its deviation."""
    cells = _cells(images, _size_of_cells(images, statistics))
    return ((cells - statistics.mean) / statistics.deviation).reshape(images.shape)


def restore_cells(prediction: torch.Tensor, statistics: CellStatistics) -> torch.Tensor:
    """Predicted normalised cells as pixels; 0 becomes the mean of its cell."""
    cells = _cells(prediction, _size_of_cells(prediction, statistics))
    return (cells * statistics.deviation + statistics.mean).reshape(prediction.shape)


def _size_of_cells(images: torch.Tensor, statistics: CellStatistics) -> tuple[int, int]:
    return images.shape[-2] // statistics.mean.shape[2], images.shape[-1] // statistics.mean.shape[4]


def _cells(images: torch.Tensor, cell: tuple[int, int]) -> torch.Tensor:
    batch, channels, height, width = images.shape
    if height % cell[0] or width % cell[1]:
        raise ValueError(
            f"pixel_values: {height} x {width} px are no whole number of cells of {cell[0]} x {cell[1]} px, each of "
            "which is normalised (`target` of the configuration)"
        )
    return images.reshape(batch, channels, height // cell[0], cell[0], width // cell[1], cell[1])
