"""Arrays of NumPy: `.npy`, and `.npz` with one of them."""

import io
import math
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ...utils.value_range import FIRST, SAMPLES
from .array_image import ArrayImage, Box, BrokenImage
from .axes import channels_first, native
from .limits import CHEAP_BYTES, RATIOS, VALUES_PER_PIXEL, check_size, choose_pages, reading


NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
NAMES = ("image", "img", "arr_0", "x")  # of the array that is meant, if there are several
HEADER = 65_536  # bytes; NumPy itself takes 10,000 characters at most
NUMBERS = "biuf"
LONGEST = 8  # bytes of a number; what is longer differs from machine to machine


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int  # of the values
    stored: int  # bytes that there are for them
    codec: str = "none"
    member: str | None = None  # of the archive


def is_numpy(data: bytes) -> bool:
    """Whether a file begins like one of NumPy; an archive must hold an array."""
    return data[:6] == NPY or (data[:4] == ZIP and bool(_members(io.BytesIO(data))))


def _members(file: BinaryIO) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [member for member in archive.infolist() if member.filename.endswith(".npy")]
    except Exception:  # no archive that can be read is none of arrays
        return []


def read_header(file: BinaryIO) -> _Header:
    """Shape and type of the array in a file. Raises BrokenImage for what is no image."""
    file.seek(0)
    if file.read(4) != ZIP:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        return _npy_header(file.read(HEADER), size)
    with reading("NumPy archive"), zipfile.ZipFile(file) as archive:
        member = _choose(_members(file))
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise BrokenImage(f"{member.filename} is encrypted, or compressed by something else than deflate")
        with archive.open(member) as content:
            head = content.read(HEADER)
        header = _npy_header(head, member.file_size)
        codec = "none" if member.compress_type == zipfile.ZIP_STORED else "deflate"
        stored = header.stored if codec == "none" else member.compress_size
        return _Header(header.shape, header.fortran, header.dtype, header.start, stored, codec, member.filename)


def _choose(members: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    if len(members) == 1:
        return members[0]
    by_name = {member.filename.removesuffix(".npy"): member for member in members}
    for name in NAMES:
        if name in by_name:
            return by_name[name]
    raise BrokenImage(f"{len(members)} arrays ({', '.join(sorted(by_name)[:8])}); one of them must be called image")


def _npy_header(head: bytes, size: int) -> _Header:
    stream = io.BytesIO(head)
    with reading("NumPy header"):
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise BrokenImage(f"an array in version {version[0]}.{version[1]} of NumPy's format; expected 1.0 or 2.0")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject or dtype.kind == "O":
            raise BrokenImage("an array of objects, which are not loaded; expected one of numbers")
        if dtype.kind == "c":
            raise BrokenImage(f"complex values ({dtype}); store their parts as channels")
        if dtype.kind not in NUMBERS or dtype.names or dtype.itemsize > LONGEST:
            raise BrokenImage(f"values of {dtype}; expected whole or real numbers of at most 64 bits")
        if any(number < 1 for number in shape):
            raise BrokenImage(f"an array {shape}, which is empty")
        return _Header(tuple(map(int, shape)), bool(fortran), dtype, stream.tell(), size - stream.tell())


def page_count(header: _Header, num_channels: int | None, pages: str | None = None) -> int:
    """How many images there are along the leading axis: of 4 axes, and of 3 if `pages` is given and neither end has
    the channels that are expected. Raises BrokenImage for another number of axes, and for 3 of which the first may be
    either."""
    shape = header.shape
    if len(shape) not in (2, 3, 4):
        raise BrokenImage(f"an array {shape}; expected (height, width), with channels, with pages, or with both")
    if len(shape) == 3 and pages in (SAMPLES, FIRST) and num_channels is None:
        raise BrokenImage(
            f"an array {shape}: nothing says whether its first axis are pages or channels; make it 4 axes (pages, "
            "channels, height, width), or give no --pages if they are channels"
        )
    leading = len(shape) == 4 or (
        len(shape) == 3 and pages is not None and num_channels not in (None, shape[0], shape[-1])
    )
    return shape[0] if leading else 1


class NumpyImage(ArrayImage):
    """Some pages (all, if `chosen` is `None`) of an array in a file."""

    def __init__(self, data: bytes, header: _Header, chosen: list[int] | None, num_channels: int | None):
        self.data, self.header, self.chosen, self.num_channels = data, header, chosen, num_channels
        one = np.broadcast_to(np.zeros((), header.dtype), header.shape if chosen is None else header.shape[1:])
        channels, height, width = channels_first(one, num_channels).shape
        shape = (channels * len(chosen or [0]), height, width)
        super().__init__("NumPy", shape, header.dtype.newbyteorder("="))

    def read(self, box: Box | None = None) -> np.ndarray:
        header = self.header
        with reading("decoding NumPy"):
            count = math.prod(header.shape)
            data, start = self.data, header.start
            if header.member is not None:
                with zipfile.ZipFile(io.BytesIO(self.data)) as archive, archive.open(header.member) as content:
                    content.read(header.start)
                    data, start = content.read(count * header.dtype.itemsize), 0
            array = np.frombuffer(data, header.dtype, count, start)
            array = array.reshape(header.shape, order="F" if header.fortran else "C")
            pages = [array] if self.chosen is None else [array[page] for page in self.chosen]
            top, left, height, width = box or (0, 0, self.height, self.width)
            parts = [channels_first(page, self.num_channels) for page in pages]
            parts = [part[:, top : top + height, left : left + width] for part in parts]
            return native(parts[0] if len(parts) == 1 else np.concatenate(parts), self.dtype)


def open_numpy(
    data: bytes, num_channels: int | None, pages: str | None, page: int | None, max_pixels: int
) -> NumpyImage:
    """As `open_array`, of a file of NumPy."""
    header = read_header(io.BytesIO(data))
    count = page_count(header, num_channels, pages)
    leading = len(header.shape) == 4 or count > 1
    size = math.prod(header.shape) * header.dtype.itemsize
    if header.codec == "none" and size > header.stored:
        raise BrokenImage(f"an array {header.shape} of {header.dtype} cannot be in {header.stored} bytes")
    if header.codec != "none" and size > max(CHEAP_BYTES, header.stored * RATIOS[header.codec]):
        raise BrokenImage(f"an array {header.shape} of {header.dtype} cannot be in {header.stored} packed bytes")
    if header.codec != "none" and math.prod(header.shape) > VALUES_PER_PIXEL * max_pixels:
        raise BrokenImage(
            f"an array {header.shape} in one piece; at most {VALUES_PER_PIXEL * max_pixels} values are read at once "
            f"({VALUES_PER_PIXEL} x max_pixels)"
        )
    chosen = choose_pages(count, pages, page, "images along the first axis") if leading else None
    with reading("NumPy header"):
        image = NumpyImage(data, header, chosen, num_channels)
    check_size("NumPy", (image.channels, image.height, image.width), image.dtype.itemsize, max_pixels, size)
    return image
