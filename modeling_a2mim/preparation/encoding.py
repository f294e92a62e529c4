"""Pieces of images to bytes, and back."""

import io

import numpy as np
from PIL import Image

from .options import AUTO, JPEG, NPY, PNG, Options
from .pixels import Piece


def encode(piece: Piece, options: Options) -> tuple[bytes, str]:
    """The bytes of a piece and the suffix of its name.

    `AUTO` writes JPEG for photographs that came as such (as they are, if nothing was changed), PNG for others of 8
    bits and for grey ones of 16 bits without sign, and the bytes of a `.npy`, (height, width) or (channels, height,
    width), for all else.

    Raises:
        ValueError: naming the option that would cut values off.
    """
    values, kind = piece.values, options.encode
    grey_or_rgb = len(values) in (1, 3) and not piece.alpha
    if kind == AUTO:
        kind = JPEG if piece.jpeg and grey_or_rgb else PNG if _png_holds(values, piece.alpha) else NPY
    if kind == JPEG:
        if values.dtype != np.uint8 or not grey_or_rgb:
            raise ValueError(f"encode: jpeg holds 8 bits of 1 or 3 channels, not {_described(piece)}; use {_auto()}")
        if piece.original is not None and options.encode == AUTO:
            return piece.original, ".jpg"
        return _pillow(_photo(values), "JPEG", quality=options.quality), ".jpg"
    if kind == PNG:
        if not _png_holds(values, piece.alpha):
            raise ValueError(
                f"encode: png holds 8 bits of 1 or 3 channels (and transparency) or 16 bits of 1 channel, not "
                f"{_described(piece)}; use {_auto()}"
            )
        return _pillow(_photo(values), "PNG"), ".png"
    file = io.BytesIO()
    np.save(file, values[0] if len(values) == 1 else values, allow_pickle=False)
    return file.getvalue(), ".npy"


def decode(data: bytes, suffix: str) -> np.ndarray:
    """What `encode` wrote: (channels, height, width)."""
    if suffix == ".npy":
        values = np.load(io.BytesIO(data), allow_pickle=False)
        return values if values.ndim == 3 else values[None]
    values = np.asarray(Image.open(io.BytesIO(data)))
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _auto() -> str:
    return "--encode auto, which stores each as it has to be"


def _described(piece: Piece) -> str:
    return f"{piece.values.dtype} of {len(piece.values)} channel(s)" + (", one of them transparency" * piece.alpha)


def _png_holds(values: np.ndarray, alpha: bool) -> bool:
    channels = len(values)
    return (values.dtype == np.uint8 and channels in ((2, 4) if alpha else (1, 3))) or (
        values.dtype == np.uint16 and channels == 1
    )


def as_type(values: np.ndarray, dtype: str | None) -> np.ndarray:
    """Floating-point values in another type, if one is asked for.

    Raises:
        ValueError: naming `dtype`, if it cannot hold them, or they are integers.
    """
    if dtype is None:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"dtype: is of floating-point values, and these are {values.dtype}, which stay so; leave it out"
        )
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    if (np.isfinite(values) & ~np.isfinite(found)).any():
        raise ValueError(f"dtype: values up to {np.nanmax(np.abs(values)):.3g} do not fit in {dtype}")
    return found


def _photo(values: np.ndarray) -> Image.Image:
    if len(values) == 1:
        return Image.fromarray(np.ascontiguousarray(values[0]))  # of 16 bits: mode I;16
    return Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))  # L, LA, RGB, RGBA


def _pillow(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
