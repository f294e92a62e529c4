"""What a model takes of a stored image: which channels, and which numbers its values become."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from ..arguments.data import MAX_PIXELS
from ..utils.value_range import PERCENTILE, STORED, ValueRange
from .arrays import ArrayImage, BrokenImage
from .arrays.array_image import Box


logger = logging.getLogger("a2mim")

NO_RANGE = "its values are of {}, the model takes those of 8 bits; --value_range says what they become"
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow


@dataclass(frozen=True)
class PixelSpec:
    """From stored images to the pixels that a model takes.

    Args:
        num_channels: of the pixels.
        channels: which of the stored channels they are, and in which order, counted from 1; `None` for all.
        value_range: what stored values become; `None` for images of 8 bits alone, 0 to 255.
        pages: what further pages of a file are (see `arrays.open_array`).
        max_pixels: images of more pixels are refused.
    """

    num_channels: int = 3
    channels: tuple[int, ...] | None = None
    value_range: ValueRange | None = None
    pages: str | None = None
    max_pixels: int = MAX_PIXELS

    @classmethod
    def from_config(cls, config: Any, max_pixels: int = MAX_PIXELS) -> Self:
        """Of any model: of this package, of timm or of transformers, whose part for images may have a configuration
        of its own."""
        parts = [config, *(getattr(config, name, None) for name in ("vision_config", "backbone_config"))]
        counts = [getattr(part, "num_channels", None) for part in parts]
        told: dict[str, Any] = next((found for part in parts if (found := getattr(part, STORED, None))), {})
        return cls.from_fields(next((count for count in counts if isinstance(count, int)), 3), told, max_pixels)

    @classmethod
    def from_fields(cls, num_channels: int, stored: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> Self:
        """Of fields of a configuration. `stored`: those of `STORED_FIELDS` that are known, and any others."""
        return cls(
            num_channels,
            tuple(stored["channels"]) if stored.get("channels") else None,
            ValueRange.from_config(stored.get("value_range")),
            stored.get("pages"),
            max_pixels,
        )

    def with_given(self, value_range: ValueRange | None, pages: str | None, say: bool = False) -> Self:
        """As this, with a range and a meaning of pages that a user gives, if any.

        Args:
            value_range, pages: as the fields; `None` for those of this one.
            say: log which of this one is not used.

        Raises:
            ValueError: naming `value_range`, if it is of other channels.
        """
        both: dict[str, Any] = {"value_range": value_range, "pages": pages}
        given = {name: value for name, value in both.items() if value is not None}
        if value_range is not None:
            value_range.check(self.num_channels)
        for name, value in given.items():
            own = getattr(self, name)
            if say and own is not None and own != value:
                logger.warning("%s: %s, as given; the model was trained with %s, which is not used", name, value, own)
        return replace(self, **given)

    @property
    def plain(self) -> bool:
        """Whether photographs of 8 bits are taken as they are."""
        return self.channels is None and self.value_range is None

    @property
    def stored_channels(self) -> int | None:
        """How many channels are expected in a file; `None` if any number of at least `max(channels)`."""
        return self.num_channels if self.channels is None else None


def given_as(pixels: torch.Tensor) -> dict[str, Any]:
    """How a processor of transformers is told what (channels, height, width) it is given: bytes, or numbers in
    [0, 1]."""
    return {"input_data_format": "channels_first", **({} if pixels.dtype == torch.uint8 else {"do_rescale": False})}


def read_values(image: ArrayImage, spec: PixelSpec, box: Box | None = None) -> torch.Tensor:
    """The pixels of a box, or of all of an image, as a model takes them.

    Returns:
        (channels, height, width): float32, 0 to 1 in the range of `spec`, and beyond it where that cuts nothing off.
        Without a range, uint8; of an array of float32, which must be in [0, 1], the same.

    Raises:
        BrokenImage: if they cannot be decoded, or are not of 8 bits and `spec` has no range.
        ValueError: naming `num_channels` or `channels`, if the image has not so many.
    """
    known = spec.value_range
    if known is None and image.dtype not in (np.uint8, np.float32):
        raise BrokenImage(NO_RANGE.format(image.dtype))
    choose = channel_choice(image, spec)
    if known is None:
        values = choose(image.read(box))
        if image.nodata is not None:
            values = np.where(values == image.nodata, values.dtype.type(0), values)
        if values.dtype == np.float32 and not (values.min() >= 0 and values.max() <= 1):
            raise BrokenImage(NO_RANGE.format("float32 beyond 0 and 1"))
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))  # torch warns of read-only memory
    try:
        if known.of == PERCENTILE:
            whole = choose(image.read())
            low, high = known.limits(known_values(whole, image))
            top, left, height, width = box or (0, 0, image.height, image.width)
            values = whole[:, top : top + height, left : left + width]
        else:
            values = choose(image.read(box))
            low, high = known.limits(values, _chosen_window(image, choose))
    except BrokenImage:
        raise
    except ValueError as error:
        raise BrokenImage(str(error)) from error
    scaled = known.scale(values, low, high)
    if image.nodata is not None:
        scaled[values == image.nodata] = 0
    return torch.from_numpy(scaled)


def _chosen_window(image: ArrayImage, choose: Callable[[np.ndarray], np.ndarray]) -> Sequence[Any] | None:
    """The window of the channels that are taken of an image."""
    if image.window is None or not isinstance(image.window[0], tuple):
        return image.window
    return [choose(np.array(end)[:, None, None])[:, 0, 0] for end in image.window]


def known_values(values: np.ndarray, image: ArrayImage) -> np.ndarray:
    """The values (channels, height, width) of an image, NaN where nothing is known."""
    if image.nodata is None or not (missing := values == image.nodata).any():
        return values
    return np.where(missing, np.nan, values.astype(np.float64))


def _grey(values: np.ndarray) -> np.ndarray:
    found = np.tensordot(LUMINANCE, values[:3].astype(np.float64), 1)[None]
    return found.round().astype(np.uint8) if values.dtype == np.uint8 else found


def channel_choice(image: ArrayImage, spec: PixelSpec) -> Callable[[np.ndarray], np.ndarray]:
    """What makes the channels of `spec` of those of an image, both (channels, height, width). Errors as
    `read_values`."""
    stored, wanted = image.channels, spec.num_channels
    if spec.channels is not None:
        if max(spec.channels) > stored:
            raise ValueError(
                f"channels: {max(spec.channels)} is asked for, but the image ({image.format}) has {stored} channel(s)"
            )
        indices = [channel - 1 for channel in spec.channels]
        return lambda values: values[indices]
    if stored == wanted:
        return lambda values: values
    if image.alpha and stored - 1 in (1, 3):  # transparency is dropped, as that of photographs
        stored = stored - 1
    if stored == wanted:
        return lambda values: values[:stored]
    if (stored, wanted) == (1, 3):
        return lambda values: np.repeat(values[:1], 3, axis=0)
    if (stored, wanted) == (3, 1):
        return _grey
    raise ValueError(
        f"num_channels: the image ({image.format}) has {image.channels} channel(s), the model takes {wanted}"
    )
