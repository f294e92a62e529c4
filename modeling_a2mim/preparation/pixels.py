"""A stored image to the pieces that are written of it: made smaller, or cut in tiles."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..data.arrays import BrokenImage
from ..data.content import Content, finite_limits
from ..data.decoding import (
    JPEGS,
    as_array,
    channels_first,
    count_images,
    open_stored,
    orientation,
    resized_crop,
    to_pixels,
    upright,
    upright_size,
)
from ..data.pixel_spec import PixelSpec
from ..utils.value_range import SAMPLES
from .options import NPY, SHORTER, Options


TRANSPARENCY, WINDOW = "transparency", "DICOM window"


@dataclass
class Piece:
    """What is written of an image.

    Attributes:
        place: of which page and tile it is, the end of its name: "_p0003_r002_c011"; empty for the whole image.
        values: (channels, height, width), as they are stored.
        alpha: whether the last channel is transparency.
        jpeg: whether the image came as a JPEG.
        original: the bytes of a JPEG that is written as it is.
        unknown: the value of pixels of which nothing is known, if there are such.
        lost: what is not written of the image (`TRANSPARENCY`, `WINDOW`).
    """

    place: str
    values: np.ndarray
    alpha: bool = False
    jpeg: bool = False
    original: bytes | None = None
    unknown: float | None = None
    lost: tuple[str, ...] = ()


def pieces_of(value: Any, options: Options) -> Iterator[Piece | None]:
    """The pieces of an image, in order; `None` for a tile that is left out for its content.

    Args:
        value: as `data.decoding.open_stored`.
        options: what is made of it.

    Raises:
        BrokenImage: with the reason, if it cannot be used.
    """
    pages: list[int | None] = [None]
    if options.pages == SAMPLES and isinstance(value, dict) and value.get("bytes"):
        count = count_images(value["bytes"], value.get("path"))
        pages = list(range(count)) if count > 1 else pages
    for page in pages:
        spec = PixelSpec(1, (1,), None, options.pages, options.max_pixels)  # opens whatever there is
        stored = value if page is None else {**value, "page": page}
        image = open_stored(stored, spec)
        for piece in _pieces(image, stored, options):
            if piece is not None and page is not None:
                piece.place = f"_p{page:04d}{piece.place}"
            if piece is not None:
                _leave_out(piece, image, options)
            yield piece


def _leave_out(piece: Piece, image: Any, options: Options):
    """Drop what the file that is written has no place for: an array does not say that a channel is transparency, and
    nothing but DICOM holds a window."""
    if piece.alpha and (piece.values.dtype != np.uint8 or options.encode == NPY):
        piece.values, piece.alpha, piece.lost = piece.values[:-1], False, (TRANSPARENCY,)
    if getattr(image, "window", None) is not None:
        piece.lost += (WINDOW,)


def _pieces(image: Any, value: Any, options: Options) -> Iterator[Piece | None]:
    jpeg = isinstance(image, Image.Image) and image.format in JPEGS
    if isinstance(image, Image.Image) and options.tile is None and options.channels is None:
        yield _photograph(image, value, options, jpeg)
        return
    image = as_array(image) if isinstance(image, Image.Image) else image
    values, alpha = image.read(), image.alpha
    if options.channels is not None:
        if max(options.channels) > len(values):
            raise BrokenImage(f"has {len(values)} channel(s); --channels asks for {max(options.channels)}")
        values, alpha = values[[channel - 1 for channel in options.channels]], False
    known, unknown = _without_nodata(values, image.nodata)
    if options.tile is None:
        smaller = _smaller(known, target_size(values.shape[1], values.shape[2], options))
        yield Piece("", smaller, alpha, jpeg, unknown=unknown)
        return
    content = None if options.min_content is None else Content.of(values)
    for place, box in tiles(values.shape[1], values.shape[2], options.tile, options.tile_overlap):
        top, left, height, width = box
        inside = np.s_[:, top : top + height, left : left + width]
        if content is not None and content.share(values[inside]) < options.min_content:
            yield None
        else:
            yield Piece(place, np.ascontiguousarray(known[inside]), alpha, jpeg, unknown=unknown)


def _without_nodata(values: np.ndarray, nodata: float | None) -> tuple[np.ndarray, float | None]:
    """Values with NaN where a file marks that nothing is known, as no file that is written has such a mark, and the
    mark that is left, if any: integers become floating-point values for NaN, unless 0 is the mark; those of 8 bits
    become 0, as in training."""
    if nodata is None or not (missing := values == nodata).any():
        return values, None
    if values.dtype.itemsize == 1:
        return np.where(missing, values.dtype.type(0), values), 0
    if np.issubdtype(values.dtype, np.integer):
        if nodata == 0:
            return values, 0
        values = values.astype(np.float32 if values.dtype.itemsize == 2 else np.float64)
    return np.where(missing, values.dtype.type(np.nan), values), None


def _photograph(image: Image.Image, value: Any, options: Options, jpeg: bool) -> Piece:
    alpha = image.has_transparency_data
    channels = 4 if alpha else 1 if image.mode in ("1", "L") else 3
    height, width = upright_size(image)
    size = target_size(height, width, options)
    if size != (height, width):
        pixels = resized_crop(image, (0, 0, height, width), size, PixelSpec(channels))
        return Piece("", np.ascontiguousarray(pixels.numpy()), alpha, jpeg)
    data = value.get("bytes") if isinstance(value, dict) else None
    as_it_is = image.format == "JPEG" and image.mode in ("L", "RGB") and not any(orientation(image))
    values = channels_first(np.asarray(to_pixels(upright(image), channels)), channels)
    return Piece("", np.ascontiguousarray(values), alpha, jpeg, bytes(data) if data and as_it_is else None)


def target_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """Height and width that an image becomes: never larger than it is."""
    if options.size is None:
        return height, width
    side = (min if options.resize_mode == SHORTER else max)(height, width)
    if side <= options.size:
        return height, width
    return max(1, round(height * options.size / side)), max(1, round(width * options.size / side))


def _smaller(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bicubic, computed in floating point and rounded to the type of the values; none lies beyond the
    finite ones of its channel. Values that are not finite spread over the pixels that they would be part of."""
    if size == values.shape[1:]:
        return np.ascontiguousarray(values)
    wide = values.dtype.itemsize > 2 and values.dtype != np.float32
    pixels = torch.from_numpy(values.astype(np.float64 if wide else np.float32))
    found = F.resize(pixels, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True).numpy()
    low, high = (limit[:, None, None] for limit in finite_limits(values))
    found = np.where(np.isfinite(found), np.clip(found, low, high), found)
    found = np.rint(found) if np.issubdtype(values.dtype, np.integer) else found
    return found.astype(values.dtype)


def tiles(height: int, width: int, tile: int, overlap: int) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Tiles that cover an image: the name of each by row and column, and top, left, height and width. The last of a
    row or column is moved inwards; where the image is smaller than a tile, so is the tile."""
    for row, top in enumerate(_starts(height, tile, tile - overlap)):
        for column, left in enumerate(_starts(width, tile, tile - overlap)):
            yield f"_r{row:03d}_c{column:03d}", (top, left, min(tile, height), min(tile, width))


def _starts(length: int, tile: int, step: int) -> list[int]:
    last = max(0, length - tile)
    return [*range(0, last, step), last]
