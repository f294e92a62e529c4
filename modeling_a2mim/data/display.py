"""Stored images as people look at them: RGB of 8 bits, whatever they are of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..utils.value_range import FIRST, SAMPLES
from .decoding import open_stored, to_pixels, upright
from .pixel_spec import PixelSpec, known_values


STRETCHED = (0.5, 99.5)  # percentiles that become black and white


def display_image(value: Any, channels: Sequence[int] | None = None) -> Image.Image:
    """A stored image the right way up, in RGB; one that is not of 8 bits is stretched from its own 0.5 to its 99.5
    percentile, and what it marks as nodata is black. Of several pages or frames, the one that `value` names, else the
    first.

    Args:
        value: as `decoding.open_stored`.
        channels: one or three to show of an image that is no photograph, counted from 1; the first three, or the
            first, if not given.

    Raises:
        BrokenImage: if it cannot be decoded.
    """
    named = isinstance(value, dict) and value.get("page") is not None
    image = open_stored(value, PixelSpec(pages=SAMPLES if named else FIRST))
    if isinstance(image, Image.Image):
        return to_pixels(upright(image), 3)
    values = image.read() if image.dtype == np.uint8 else known_values(image.read(), image)
    chosen = [channel - 1 for channel in channels or ((1, 2, 3) if len(values) >= 3 else (1,))]
    shown = values[chosen if max(chosen) < len(values) else [0]]
    if shown.dtype != np.uint8:
        shown = stretched(shown.astype(np.float64))
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(shown.transpose(1, 2, 0), (*shown.shape[1:], 3))))


def stored_channels(config) -> list[int] | None:
    """Which channels of stored images show what figures of a model do, from 1; `None` if its configuration says
    nothing of it."""
    taken, shown = (getattr(config, name, None) for name in ("channels", "display_channels"))
    if shown is None:
        return list(taken) if taken is not None and len(taken) in (1, 3) else None
    return [taken[channel - 1] for channel in shown] if taken is not None else list(shown)


def stretched(values: np.ndarray) -> np.ndarray:
    """Any values as bytes; what is not finite is black."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, STRETCHED) if finite.size else (0.0, 1.0)
    scaled = (values - low) / (high - low if high > low else 1.0)
    return (np.nan_to_num(scaled.clip(0, 1)) * 255).round().astype(np.uint8)
