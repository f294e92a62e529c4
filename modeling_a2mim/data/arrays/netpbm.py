"""PGM and PPM of more than 8 bits, which Pillow stretches or cuts."""

import math
import re

import numpy as np

from .array_image import ArrayImage, Box, BrokenImage
from .axes import native
from .limits import check_size, reading


CHANNELS = {b"P5": 1, b"P6": 3}
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_HEADER = re.compile(rb"P[56]" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,5})\s")


def _numbers(data: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, highest value, and where the values begin."""
    found = _HEADER.match(data[:1000])
    return (int(found[1]), int(found[2]), int(found[3]), found.end()) if found else None


def is_netpbm(data: bytes) -> bool:
    """Whether it is a PGM or PPM (binary) of 16 bits."""
    numbers = _numbers(data) if data[:2] in CHANNELS else None
    return numbers is not None and numbers[2] > 255


def open_netpbm(data: bytes, max_pixels: int) -> ArrayImage:
    """As `open_array`, of what `is_netpbm`."""
    numbers = _numbers(data)
    assert numbers is not None
    width, height, most, start = numbers
    if most > 65535:
        raise BrokenImage(f"values up to {most} in PPM; expected 65535 at most")
    shape = (CHANNELS[data[:2]], height, width)
    check_size("PPM", shape, 2, max_pixels, len(data) - start)
    return NetpbmImage(data, shape, start)


class NetpbmImage(ArrayImage):
    """The values as they are stored."""

    def __init__(self, data: bytes, shape: tuple[int, int, int], start: int):
        self.data, self.start = data, start
        super().__init__("PPM", shape, np.dtype(np.uint16))

    def read(self, box: Box | None = None) -> np.ndarray:
        shape = (self.height, self.width, self.channels)
        top, left, height, width = box or (0, 0, self.height, self.width)
        with reading("decoding PPM"):
            values = np.frombuffer(self.data, ">u2", math.prod(shape), self.start).reshape(shape).transpose(2, 0, 1)
            return native(values[:, top : top + height, left : left + width], self.dtype)
