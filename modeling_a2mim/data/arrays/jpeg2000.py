"""JPEG 2000 of more than 8 bits, which Pillow stretches or cuts, by imagecodecs."""

import numpy as np

from .array_image import ArrayImage, Box, BrokenImage
from .axes import native
from .limits import EXTRA, check_size, jpeg2000_size, reading


BOX, STREAM = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"


def is_jpeg2000(data: bytes) -> bool:
    """Whether it is a JPEG 2000 of more than 8 bits."""
    size = jpeg2000_size(data) if data.startswith((BOX, STREAM)) else None
    return size is not None and size[3] > 8


def open_jpeg2000(data: bytes, max_pixels: int) -> ArrayImage:
    """As `open_array`, of what `is_jpeg2000`."""
    size = jpeg2000_size(data)
    assert size is not None
    channels, height, width, bits = size
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        raise BrokenImage(f"JPEG 2000 of {bits} bits needs imagecodecs: {EXTRA}") from None
    if bits > 16:
        raise BrokenImage(f"JPEG 2000 of {bits} bits; expected 16 at most")
    check_size("JPEG 2000", (channels, height, width), 2, max_pixels, len(data), "jpeg2000")
    return Jpeg2000Image(data, (channels, height, width))


class Jpeg2000Image(ArrayImage):
    """The values as they are stored."""

    def __init__(self, data: bytes, shape: tuple[int, int, int]):
        self.data = data
        super().__init__("JPEG 2000", shape, np.dtype(np.uint16), alpha=shape[0] in (2, 4))

    def read(self, box: Box | None = None) -> np.ndarray:
        import imagecodecs

        with reading("decoding JPEG 2000"):
            values = imagecodecs.jpeg2k_decode(self.data)
            values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
            if values.shape != (self.channels, self.height, self.width) or values.dtype != np.uint16:
                raise BrokenImage(f"{values.shape} of {values.dtype}; its header says otherwise, or it has signs")
            top, left, height, width = box or (0, 0, self.height, self.width)
            return native(values[:, top : top + height, left : left + width], self.dtype)
