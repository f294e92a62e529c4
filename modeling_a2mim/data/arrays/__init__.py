"""Images that are arrays: of any type and any number of channels, as instruments and sensors write them."""

from .array_image import ArrayImage, BooleanImage, BrokenImage, StoredArray, at_fault
from .opening import ARRAY_SUFFIXES, count_pages, open_array


__all__ = [
    "ARRAY_SUFFIXES",
    "ArrayImage",
    "BooleanImage",
    "BrokenImage",
    "StoredArray",
    "at_fault",
    "count_pages",
    "open_array",
]
