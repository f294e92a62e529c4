"""Which reader an image that is no photograph is for."""

import os
from pathlib import Path

from .array_image import ArrayImage


ARRAY_SUFFIXES: dict[str, str] = {".npy": "NumPy", ".npz": "NumPy", ".dcm": "DICOM", ".dicom": "DICOM", ".btf": "TIFF"}


def open_array(
    data: bytes,
    path: str | os.PathLike | None,
    num_channels: int,
    pages: str | None,
    page: int | None,
    max_pixels: int,
) -> ArrayImage | None:
    """The header of an image in TIFF, NumPy or DICOM; `None` if `data` begins like none of them.

    Args:
        data: of the file.
        path: how it is called, if that is known.
        num_channels: that are expected to be stored, which tells the axes of a NumPy array apart.
        pages: what further pages, frames or the leading axis of an array are: "channels", "samples" (`page` says which
            one is meant) or "first" (the others are left out); `None` refuses an image that has several.
        page: its number, from 0.
        max_pixels: images with more are refused, before memory is taken for them.

    Raises:
        BrokenImage: if it cannot be used, with the reason.
    """
    return None


def count_pages(data: bytes | Path, path: str | os.PathLike | None = None) -> int:
    """How many pages, frames or images along the leading axis of an array there are in a file; 1 of a photograph."""
    return 1
