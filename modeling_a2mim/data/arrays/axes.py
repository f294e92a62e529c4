"""Which axis of an array is which, and which way up it is."""

import numpy as np

from .array_image import Box, BrokenImage


# How an image is stored: with rows and columns swapped, flipped from left to right, flipped from top to bottom.
ORIENTATIONS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
UPRIGHT = (False, False, False)
FEW = 16  # channels, those of satellites: an axis that is no longer is taken for them


def channels_first(values: np.ndarray, channels: int | None) -> np.ndarray:
    """An array (height, width), (channels, height, width) or (height, width, channels) as (channels, height, width).

    Args:
        values: the array.
        channels: how many are expected; if that tells nothing, the image is taken to be square, and if it cannot be,
            they are the shorter one of the first and last axis.

    Raises:
        BrokenImage: if it has another number of axes, or if nothing tells which of them are the channels.
    """
    if values.ndim == 2:
        return values[None]
    if values.ndim != 3:
        raise BrokenImage(f"an array {values.shape}; expected (height, width) or (channels, height, width)")
    first, middle, last = values.shape
    if (first == channels) != (last == channels):
        is_last = last == channels
    elif (first == middle) != (middle == last):  # spectra of a square may be longer than its sides
        is_last = first == middle
    else:
        is_last = last < first
        most, sides = (last, (first, middle)) if is_last else (first, (middle, last))
        if channels is None and (first == last or (most > FEW and 2 * most > min(sides))):
            raise BrokenImage(
                f"an array {values.shape}, of which nothing tells which axis are the channels; store it as TIFF, "
                "which says so, or train with --num_channels in place of --channels"
            )
    return values.transpose(2, 0, 1) if is_last else values


def stored_box(box: Box, size: tuple[int, int], orientation: tuple[bool, bool, bool]) -> Box:
    """Where the pixels of a box of an upright image are stored.

    Args:
        box: in the upright image.
        size: height and width as stored.
        orientation: as in `ORIENTATIONS`.
    """
    swapped, mirrored, upside_down = orientation
    top, left, height, width = box
    if swapped:
        top, left, height, width = left, top, width, height
    if mirrored:
        left = size[1] - left - width
    if upside_down:
        top = size[0] - top - height
    return top, left, height, width


def turned(values: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """(channels, height, width) as they are stored, the right way up."""
    swapped, mirrored, upside_down = orientation
    values = np.flip(values, tuple(axis for axis, flip in ((1, upside_down), (2, mirrored)) if flip))
    return values.transpose(0, 2, 1) if swapped else values


def native(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array as `ArrayImage.read` gives it: of `dtype`, contiguous and writable, which torch needs."""
    return np.require(values, dtype, ["C", "W"])
