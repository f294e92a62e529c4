"""How much of an image is content, and not background."""

from collections.abc import Callable

import numpy as np


BACKGROUND = 0.05  # of the range of a channel, within which values are those of the background


class Content:
    """How much of a part of an image is content, and not background.

    The background of an image has the values that half of its outermost pixels or more have, within 5% of the range
    of each channel: the glass of a slide, the black beside a satellite's swath, the air of an X-ray. An image without
    such a border has no background.

    Args:
        border: (channels, pixels) the outermost pixels of the image.
        low, high: (channels,) the range of each channel.
    """

    def __init__(self, border: np.ndarray, low: np.ndarray, high: np.ndarray):
        border = _finite(border)
        self.background = np.median(border, axis=1)
        self.tolerance = BACKGROUND * (np.asarray(high, dtype=np.float64) - np.asarray(low, dtype=np.float64))
        self.known = self._share(border[:, None]) <= 0.5

    @classmethod
    def of(cls, values: np.ndarray) -> "Content":
        """Of a whole image, (channels, height, width), whose channels have the range of its own values."""
        return cls(border_of(values.shape[1], values.shape[2], lambda box: _part(values, box)), *finite_limits(values))

    def share(self, values: np.ndarray) -> float:
        """The share of the pixels of (channels, height, width) that are not background; 1 if there is none."""
        return self._share(_finite(values)) if self.known else 1.0

    def _share(self, values: np.ndarray) -> float:
        away = np.abs(values - self.background[:, None, None]) > self.tolerance[:, None, None]
        return float(away.any(0).mean())


def border_of(height: int, width: int, read: Callable[[tuple[int, int, int, int]], np.ndarray]) -> np.ndarray:
    """(channels, pixels) the outermost pixels of an image, of which `read` gives the values (channels, rows, columns)
    of a box (top, left, height, width)."""
    boxes = {(0, 0, 1, width), (height - 1, 0, 1, width), (0, 0, height, 1), (0, width - 1, height, 1)}
    sides = [read(box) for box in sorted(boxes)]
    return np.concatenate([side.reshape(len(side), -1) for side in sides], axis=1)


def _part(values: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    top, left, height, width = box
    return values[:, top : top + height, left : left + width]


def finite_limits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest finite value of each channel of (channels, height, width), 0 where there is none;
    without a wider copy of a large image."""
    if np.issubdtype(values.dtype, np.integer):
        return values.min((1, 2)), values.max((1, 2))
    finite = np.isfinite(values)
    lows = np.min(values, (1, 2), initial=np.inf, where=finite)
    highs = np.max(values, (1, 2), initial=-np.inf, where=finite)
    return np.where(np.isfinite(lows), lows, 0), np.where(np.isfinite(highs), highs, 0)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
