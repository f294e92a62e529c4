"""PGM and PPM whose highest value is not 255, which Pillow stretches or cuts."""

import math
import re

import numpy as np

from .array_image import ArrayImage, Box, BrokenImage
from .axes import native
from .limits import check_size, reading


CHANNELS = {b"P5": 1, b"P6": 3}
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_HEADER = re.compile(rb"P[2356]" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,5})\s")


def _numbers(data: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, highest value, and where the values begin."""
    found = _HEADER.match(data[:1000])
    return (int(found[1]), int(found[2]), int(found[3]), found.end()) if found else None


def is_netpbm(data: bytes) -> bool:
    """Whether it is a PGM or PPM (binary) of 16 bits."""
    numbers = _numbers(data) if data[:2] in CHANNELS else None
    return numbers is not None and numbers[2] > 255


def is_scaled(data: bytes) -> bool:
    """Whether it is a PGM or PPM of which Pillow gives other values than there are: the highest one becomes 255 or
    65535."""
    numbers = _numbers(data)
    return numbers is not None and numbers[2] != 255


def open_netpbm(data: bytes, max_pixels: int) -> ArrayImage:
    """As `open_array`, of what `is_netpbm` or `is_scaled`."""
    numbers = _numbers(data)
    assert numbers is not None
    width, height, most, start = numbers
    if most > 65535:
        raise BrokenImage(f"values up to {most} in PPM; expected 65535 at most")
    if data[:2] not in CHANNELS:
        raise BrokenImage(f"values up to {most} as text in PPM; they are not read, save it as PNG")
    shape, dtype = (CHANNELS[data[:2]], height, width), np.dtype(np.uint8 if most < 256 else np.uint16)
    check_size("PPM", shape, dtype.itemsize, max_pixels, len(data) - start)
    return NetpbmImage(data, shape, start, dtype)


class NetpbmImage(ArrayImage):
    """The values as they are stored."""

    def __init__(self, data: bytes, shape: tuple[int, int, int], start: int, dtype: np.dtype):
        self.data, self.start = data, start
        super().__init__("PPM", shape, dtype)

    def read(self, box: Box | None = None) -> np.ndarray:
        shape = (self.height, self.width, self.channels)
        top, left, height, width = box or (0, 0, self.height, self.width)
        with reading("decoding PPM"):
            values = np.frombuffer(self.data, self.dtype.newbyteorder(">"), math.prod(shape), self.start)
            values = values.reshape(shape).transpose(2, 0, 1)
            return native(values[:, top : top + height, left : left + width], self.dtype)
