"""Slices of NIfTI along its last axis, by nibabel."""

import io
import zlib
from pathlib import PurePath
from typing import Any, BinaryIO

import numpy as np

from .array_image import ArrayImage, Box, BrokenImage
from .axes import native
from .limits import EXTRA, VALUES_PER_PIXEL, check_size, choose_pages, reading


MAGIC, MAGIC_2, GZIP = b"n+1\0", b"n+2\0", b"\x1f\x8b"
HEADER = 544  # the longer one of both versions


def is_nifti(data: bytes, path: Any) -> bool:
    """NIfTI in one file, or that with gzip by its name."""
    return (
        data[344:348] == MAGIC
        or _is_second(data)
        or (data[:2] == GZIP and path is not None and PurePath(path).suffixes[-2:] == [".nii", ".gz"])
    )


def _is_second(data: bytes) -> bool:
    """Whether a header is of NIfTI-2."""
    return data[4:8] == MAGIC_2


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise BrokenImage(f"NIfTI needs nibabel: {EXTRA}") from None
    return nibabel


def _header(head: bytes) -> tuple[Any, tuple[int, int, int]]:
    with reading("NIfTI header"):
        if head[:2] == GZIP:
            head = zlib.decompressobj(31).decompress(head, HEADER)
        kind = _nibabel().Nifti2Header if _is_second(head) else _nibabel().Nifti1Header
        header = kind.from_fileobj(io.BytesIO(head), check=False)
        shape = tuple(int(number) for number in header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise BrokenImage(f"a NIfTI image {shape}; expected a slice or a volume of slices")
        dtype = header.get_data_dtype()
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise BrokenImage(f"NIfTI values of {dtype}; expected whole or real numbers of at most 64 bits")
        return header, (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)


def count_slices(file: BinaryIO) -> int:
    """How many slices there are."""
    file.seek(0)
    return _header(file.read(1 << 16))[1][2]


def open_nifti(data: bytes, pages: str | None, page: int | None, max_pixels: int) -> ArrayImage:
    """As `open_array`, of NIfTI."""
    zipped = data[:2] == GZIP
    header, (first, second, slices) = _header(data[: 1 << 16])
    itemsize = header.get_data_dtype().itemsize
    check_size("NIfTI", (1, second, first), itemsize, max_pixels, len(data), "deflate" if zipped else "none")
    whole = first * second * slices
    kind = "deflate" if zipped else "none"
    check_size("NIfTI", (1, 1, whole), itemsize, VALUES_PER_PIXEL * max_pixels if zipped else whole, len(data), kind)
    chosen = choose_pages(slices, pages, page, "slices")
    check_size("NIfTI", (len(chosen), second, first), 0, max_pixels, 0)
    with reading("NIfTI header"):
        return NiftiImage(data, header, (first, second, slices), chosen)


class NiftiImage(ArrayImage):
    """Some slices: rows are the second axis from its end, columns the first, as an image is shown with the front, or
    top, of the body up."""

    def __init__(self, data: bytes, header: Any, shape: tuple[int, int, int], chosen: list[int]):
        self.data, self.header, self.stored, self.chosen = data, header, shape, chosen
        slope, intercept = header.get_slope_inter()
        self.slope, self.intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
        dtype = header.get_data_dtype().newbyteorder("=")
        dtype = dtype if (self.slope, self.intercept) == (1, 0) else np.dtype(np.float64)
        super().__init__("NIfTI", (len(chosen), shape[1], shape[0]), dtype)

    def read(self, box: Box | None = None) -> np.ndarray:
        top, left, height, width = box or (0, 0, self.height, self.width)
        first, second, slices = self.stored
        with reading("decoding NIfTI"):
            start, dtype = int(self.header["vox_offset"]), self.header.get_data_dtype()
            end, data = start + first * second * slices * dtype.itemsize, self.data
            if data[:2] == GZIP:
                data = zlib.decompressobj(31).decompress(data, end)
            values = np.frombuffer(data[start:end], dtype).reshape(slices, second, first)[self.chosen, ::-1]
            values = values[:, top : top + height, left : left + width]
            if self.dtype.kind == "f" and (self.slope, self.intercept) != (1, 0):
                values = values * np.float64(self.slope) + np.float64(self.intercept)
            return native(values, self.dtype)
