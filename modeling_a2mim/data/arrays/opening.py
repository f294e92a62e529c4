"""Which reader an image that is no photograph is for."""

import io
import os
from pathlib import Path, PurePath
from typing import BinaryIO

from ...utils.value_range import SAMPLES
from .array_image import ArrayImage, BrokenImage
from .dicom import count_frames, has_mark, is_named_dicom, open_dicom
from .jpeg2000 import is_jpeg2000, open_jpeg2000
from .limits import MAX_PAGES
from .netpbm import is_netpbm, open_netpbm
from .nifti import HEADER, count_slices, is_nifti, open_nifti
from .numpy_files import NPY, ZIP, is_numpy, open_numpy, page_count, read_header
from .png import is_png, open_png
from .tiff import count_tiff_pages, open_tiff
from .tiff_pages import SIGNATURES


JPEG = b"\xff\xd8\xff"
ARRAY_SUFFIXES: dict[str, str] = {
    **dict.fromkeys((".npy", ".npz"), "NumPy"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".btf", ".tf8"), "TIFF"),
    **dict.fromkeys((".nii", ".nii.gz"), "NIfTI"),
}


def open_array(
    data: bytes,
    path: str | os.PathLike | None,
    num_channels: int | None,
    pages: str | None,
    page: int | None,
    max_pixels: int,
) -> ArrayImage | None:
    """The header of an image whose values are not of 8 bits, or that has other channels or pages than photographs;
    `None` for what Pillow reads without loss, or does not know either.

    Args:
        data: of the file.
        path: how it is called, if that is known.
        num_channels: that are expected to be stored, which tells the axes of a NumPy array apart; `None` if any.
        pages: what further pages, frames or the leading axis of an array are: "channels", "samples" (`page` says which
            one is meant) or "first" (the others are left out); `None` refuses an image that has several.
        page: its number, from 0.
        max_pixels: images with more are refused, before memory is taken for them.

    Raises:
        BrokenImage: if it cannot be used, with the reason.
    """
    if has_mark(data):  # before TIFF: its first 128 bytes may be anything
        return open_dicom(data, pages, page, max_pixels)
    if data[:3] == JPEG and not is_named_dicom(path):  # most images: no need to ask the others
        return None
    if data[:4] in SIGNATURES:
        return open_tiff(data, pages, page, max_pixels)
    if is_png(data):
        return open_png(data, max_pixels)
    if is_numpy(data):
        return open_numpy(data, num_channels, pages, page, max_pixels)
    if is_netpbm(data):
        return open_netpbm(data, max_pixels)
    if is_jpeg2000(data):
        return open_jpeg2000(data, max_pixels)
    if is_named_dicom(path):
        return open_dicom(data, pages, page, max_pixels)
    if is_nifti(data, path):
        return open_nifti(data, pages, page, max_pixels)
    return None


def count_pages(data: bytes | Path, path: str | os.PathLike | None = None, num_channels: int | None = None) -> int:
    """How many pages, frames, slices or images along the leading axis of an array there are in a file, by its header;
    1 of a photograph.

    Args:
        data: the file, or where it is.
        path: how it is called, if `data` does not say so.
        num_channels: that are expected: an array of 3 axes is several images if neither end has so many.

    Raises:
        BrokenImage: if its header cannot be read.
        OSError: if the file cannot.
    """
    path = data if isinstance(data, Path) and path is None else path
    with open(data, "rb") if isinstance(data, Path) else io.BytesIO(data) as file:
        count = _count(file, path, num_channels)
        size = file.seek(0, os.SEEK_END)
    if not 1 <= count <= min(MAX_PAGES, max(size, 1)):
        raise BrokenImage(f"{count} pages in {size} bytes; expected 1 to {MAX_PAGES}, and a byte for each at least")
    return count


def _count(file: BinaryIO, path: str | os.PathLike | None, num_channels: int | None) -> int:
    head = file.read(HEADER)
    if has_mark(head):
        return count_frames(file)
    if head[:4] in SIGNATURES:
        return count_tiff_pages(file)
    if head[:6] == NPY or (head[:4] == ZIP and path is not None and PurePath(path).suffix.lower() == ".npz"):
        return page_count(read_header(file), num_channels, SAMPLES)
    if is_named_dicom(path):
        return count_frames(file)
    return count_slices(file) if is_nifti(head, path) else 1
