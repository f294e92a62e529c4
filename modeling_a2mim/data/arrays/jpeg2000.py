"""JPEG 2000 that Pillow stretches or cuts (more than 8 bits), or of which it takes a channel for transparency that is
none, by imagecodecs."""

import struct
from collections.abc import Iterator

import numpy as np

from .array_image import ArrayImage, Box, BrokenImage
from .axes import native
from .limits import EXTRA, check_size, jpeg2000_size, reading


BOX, STREAM = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"


CMYK = 12  # number of a colour space
OPACITY = (1, 2)  # types of channels: plain, and of colours that are multiplied by it


def is_jpeg2000(data: bytes) -> bool:
    """Whether it is a JPEG 2000 of more than 8 bits, or of other channels than photographs have."""
    size = jpeg2000_size(data) if data.startswith((BOX, STREAM)) else None
    if size is None or size[3] > 8:
        return size is not None
    return size[0] not in (1, 3) and not (size[0] in (2, 4) and (_has_alpha(data) or _is_cmyk(data)))


def _header(data: bytes, wanted: bytes) -> Iterator[bytes]:
    """What is in the boxes of a kind within the header of a file; nothing of a codestream alone, which has none."""
    if data.startswith(BOX):
        for kind, content in _boxes(data):
            if kind == b"jp2h":
                yield from (inner for kind, inner in _boxes(content) if kind == wanted)
                return


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        start = place + 8
        if length == 1 and place + 16 <= len(data):
            length, start = struct.unpack_from(">Q", data, start)[0], place + 16
        end = len(data) if length == 0 else place + length
        if end < start:
            return  # broken; the decoder says so
        yield kind, data[start:end]
        place = end


def _has_alpha(data: bytes) -> bool:
    """Whether the definition of channels names transparency; the decoder places it behind the colours."""
    return any(
        kind in OPACITY
        for content in _header(data, b"cdef")
        for _, kind, _ in struct.iter_unpack(">3H", content[2 : 2 + (len(content) - 2) // 6 * 6])
    )


def _is_cmyk(data: bytes) -> bool:
    colours = struct.pack(">I", CMYK)
    return any(content[:1] == b"\x01" and content[3:7] == colours for content in _header(data, b"colr"))


def open_jpeg2000(data: bytes, max_pixels: int) -> ArrayImage:
    """As `open_array`, of what `is_jpeg2000`."""
    size = jpeg2000_size(data)
    assert size is not None
    channels, height, width, bits = size
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        raise BrokenImage(f"JPEG 2000 of {channels} channels of {bits} bits needs imagecodecs: {EXTRA}") from None
    if not 8 <= bits <= 16:
        raise BrokenImage(f"JPEG 2000 of {bits} bits and {channels} channels; expected 8 to 16 bits")
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    check_size("JPEG 2000", (channels, height, width), dtype.itemsize, max_pixels, len(data), "jpeg2000")
    return Jpeg2000Image(data, (channels, height, width), dtype)


class Jpeg2000Image(ArrayImage):
    """The values as they are stored."""

    def __init__(self, data: bytes, shape: tuple[int, int, int], dtype: np.dtype):
        self.data = data
        super().__init__("JPEG 2000", shape, dtype, alpha=_has_alpha(data))

    def read(self, box: Box | None = None) -> np.ndarray:
        import imagecodecs

        with reading("decoding JPEG 2000"):
            values = imagecodecs.jpeg2k_decode(self.data)
            values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
            if values.shape != (self.channels, self.height, self.width) or values.dtype != self.dtype:
                raise BrokenImage(f"{values.shape} of {values.dtype}; its header says otherwise, or it has signs")
            top, left, height, width = box or (0, 0, self.height, self.width)
            return native(values[:, top : top + height, left : left + width], self.dtype)
