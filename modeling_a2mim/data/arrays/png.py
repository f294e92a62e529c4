"""PNG in colour or with transparency of 16 bits, which Pillow cuts to 8; all others are left to it."""

import struct
import warnings

import numpy as np
from PIL import Image

from .array_image import ArrayImage, Box, BrokenImage
from .axes import ORIENTATIONS, UPRIGHT, native, stored_box, turned
from .limits import EXTRA, check_size, reading


SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {2: 3, 4: 2, 6: 4}  # by type of colour; grey alone (0) is read by Pillow without loss
ORIENTATION = 0x0112


def is_png(data: bytes) -> bool:
    """Whether it is a PNG that Pillow would cut to 8 bits."""
    return data[:8] == SIGNATURE and data[12:16] == b"IHDR" and data[24:25] == b"\x10" and data[25] in CHANNELS


def open_png(data: bytes, max_pixels: int) -> ArrayImage:
    """As `open_array`, of what `is_png`."""
    width, height = struct.unpack_from(">II", data, 16)
    channels = CHANNELS[data[25]]
    check_size("PNG", (channels, height, width), 2, max_pixels, len(data), "deflate")
    return PngImage(data, (channels, height, width), _orientation(data))


def _orientation(data: bytes) -> tuple[bool, bool, bool]:
    """By the chunk eXIf, which may be anywhere."""
    place = 8
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        if name == b"eXIf":
            exif = Image.Exif()
            with reading("PNG"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of broken metadata
                exif.load(b"Exif\0\0" + data[place + 8 : place + 8 + length])
                return ORIENTATIONS.get(exif.get(ORIENTATION), UPRIGHT)
        place += 12 + length
    return UPRIGHT


def _decode(data: bytes) -> np.ndarray:
    """(height, width, channels), by imagecodecs, or else by torchvision, which is going to give it up."""
    try:
        import imagecodecs
    except ImportError:
        pass
    else:
        return imagecodecs.png_decode(data)
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_png
    except ImportError:
        raise BrokenImage(f"PNG in colour of 16 bits needs imagecodecs: {EXTRA}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED)
    return pixels.numpy().transpose(1, 2, 0)


class PngImage(ArrayImage):
    """The values as they are stored."""

    def __init__(self, data: bytes, shape: tuple[int, int, int], orientation: tuple[bool, bool, bool]):
        self.data, self.stored, self.orientation = data, shape, orientation
        channels, height, width = shape
        size = (width, height) if orientation[0] else (height, width)
        super().__init__("PNG", (channels, *size), np.dtype(np.uint16), alpha=channels in (2, 4))

    def read(self, box: Box | None = None) -> np.ndarray:
        with reading("decoding PNG"):
            values = _decode(self.data)
            channels, *size = self.stored
            if (
                values.dtype != np.uint16
                or values.ndim != 3
                or values.shape[2] < channels
                or size != [*values.shape[:2]]
            ):
                raise BrokenImage(f"{values.shape} of {values.dtype}, which its header does not say")
            top, left, height, width = stored_box(
                box or (0, 0, self.height, self.width), self.stored[1:], self.orientation
            )
            values = values[top : top + height, left : left + width, :channels].transpose(2, 0, 1)
            return native(turned(values, self.orientation), self.dtype)
