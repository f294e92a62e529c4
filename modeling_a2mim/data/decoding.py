"""Encoded images to pixels the right way up, or a reason why not: photographs to 8 bits of 1, 3 or 4 channels, all
else to the numbers that a `PixelSpec` says; JPEGs are decoded at a reduced scale where a crop is made smaller
anyway."""

import contextlib
import functools
import io
import itertools
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..arguments.data import MAX_PIXELS
from ..utils.value_range import FIRST, SAMPLES
from .arrays import ARRAY_SUFFIXES, ArrayImage, BooleanImage, BrokenImage, StoredArray, count_pages, open_array
from .arrays.axes import ORIENTATIONS, channels_first
from .arrays.limits import MAX_PAGES, choose_pages
from .pixel_spec import NO_RANGE, PixelSpec, read_values


try:
    import simplejpeg
except ImportError:  # there are platforms without it; the pixels are the same
    simplejpeg = None

logger = logging.getLogger("a2mim")

# HEIF and JXL are those of `PLUGINS`, where they are installed. EPS would run a program.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF", "JXL")
# Rare, and some begin with nothing that tells them from noise: tried where the file's name ends in their suffix.
NAMED_FORMATS = ("TGA", "PCX", "DIB", "SGI", "SUN", "PSD", "ICO", "DDS", "QOI", "FITS")
PLUGINS = {  # distributions that teach Pillow a format, and how its files are called
    "pillow-heif": (".heic", ".heif", ".hif", ".heics", ".heifs"),
    "pillow-jxl-plugin": (".jxl",),
}
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "HEIF", "JXL")  # what else there is in an MPO are previews
ANIMATED_START = (b"GIF8", b"\x89PNG", b"RIFF", b"\xff\x0a", b"\0\0\0\x0cJXL ")  # or "ftyp" behind four bytes
JPEGS = ("JPEG", "MPO")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MIN_REDUCTION = 1.5
# The most that a file of so many bytes can hold: a header that claims more is broken, and costs gigabytes. A block of
# 8x8 pixels takes a Huffman code of one bit at least in a JPEG, 12 bits stand for 4096 pixels at most in a GIF, and
# 16x16 pixels need 3.4 bits for their modes in a WebP (a lossless one gets by with less where nothing is to be seen).
PIXELS_PER_BYTE = {"JPEG": 512, "MPO": 512, "GIF": 2731, "WEBP": 640}
CHEAP_PIXELS = 4_000_000  # below that nothing needs to be checked


_lock, _decoding, _pillow_limit = threading.Lock(), 0, None
_cut_animations = itertools.count()  # how many were, in this process
_taken_as_shown = itertools.count()  # how many annotations were that may be of the image as it is stored


@contextlib.contextmanager
def _codec(action: str) -> Iterator[None]:
    """Around code of Pillow that reads a file: its errors become BrokenImage. Broken files raise exceptions of a dozen
    types, which are documented nowhere, so all are caught. Pillow's own limit of pixels is off meanwhile; ours holds.
    """
    global _decoding, _pillow_limit  # noqa: PLW0603 - of Pillow, which has one limit for all threads
    with _lock:
        if _decoding == 0:
            _pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _decoding += 1
    try:
        yield
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:  # its message is an address in memory
        raise BrokenImage(f"{action}: no {', '.join(_formats())}, or a broken header") from error
    except Exception as error:
        raise BrokenImage(f"{action}: {type(error).__name__}: {error}") from error
    finally:
        with _lock:
            _decoding -= 1
            if _decoding == 0:
                Image.MAX_IMAGE_PIXELS = _pillow_limit


@functools.cache
def _formats() -> list[str]:
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401 - registers itself
    return [name for name in FORMATS if name in Image.OPEN]


@functools.cache
def image_suffixes() -> dict[str, str]:
    """What the names of files end in that `open_stored` reads (lower case, with the dot), and their formats. Those of
    `PLUGINS` are among them where the plugin is installed."""
    known = {*_formats(), *NAMED_FORMATS}
    registered = {suffix: name for suffix, name in Image.registered_extensions().items() if name in known}
    return {**ARRAY_SUFFIXES, **registered, ".jif": "JPEG", ".mpo": "JPEG"}


def is_image_file(name: str) -> bool:
    """Whether the name of a file says that `open_stored` reads it."""
    suffix = ".nii.gz" if name.lower().endswith(".nii.gz") else os.path.splitext(name)[1].lower()
    return suffix in image_suffixes()


def open_stored(value: Any, spec: PixelSpec) -> Image.Image | ArrayImage:
    """An image of any kind, whose pixels are decoded when they are needed.

    Args:
        value: as `open_image` (a dict may hold the number of a `page`, too), or an array (height, width), (channels,
            height, width) or (height, width, channels).
        spec: what is wanted of it.

    Returns:
        A photograph of 8 bits as `open_image` gives it; all else as an ArrayImage, booleans as 0 and 255.

    Raises:
        BrokenImage: as `open_image`, and for several pages of which `spec` does not say what they are; animations are
            their first frame then, which is logged once.
        OSError: if the file cannot be read.
    """
    if isinstance(value, np.ndarray | torch.Tensor):
        return _of_numbers(StoredArray("array", channels_first(np.asarray(value), spec.stored_channels)))
    data, path = encoded(value)
    if isinstance(data, Image.Image):
        image = open_image(data)
    else:
        page = value.get("page") if isinstance(value, dict) else None
        found = open_array(bytes(data), path, spec.stored_channels, spec.pages, page, spec.max_pixels)
        if found is not None:
            return _of_numbers(found)
        image = open_image({"bytes": data, "path": path}, spec.max_pixels)
        if spec.pages != FIRST and _is_animation(image, data):
            _choose_frame(image, spec.pages, page, path)
    if image.mode[0] in "IF":  # more than 8 bits
        image = upright(image)
        with _codec("decoding"):
            return StoredArray(image.format or "PIL", np.asarray(image)[None])
    return image


def _of_numbers(image: ArrayImage) -> ArrayImage:
    return BooleanImage(image) if image.dtype == np.bool_ else image


def _is_animation(image: Image.Image, data: bytes) -> bool:
    """Whether an image that was opened from these bytes has several frames, by its header; a GIF is read up to the
    second one."""
    if image.format != "GIF":
        return image.format in ANIMATED and getattr(image, "is_animated", False)
    try:
        with _codec("looking for frames"):  # of another one, as a second frame that is broken uses it up
            return getattr(Image.open(io.BytesIO(data), formats=["GIF"]), "is_animated", False)
    except BrokenImage:
        return False


def count_images(data: bytes, path: Any = None, num_channels: int | None = None) -> int:
    """As `arrays.count_pages`, of the bytes of a file; frames of animations are pages, too."""
    count = count_pages(data, path, num_channels)
    if data.startswith(ANIMATED_START) or data[4:8] == b"ftyp":
        image = open_image({"bytes": data, "path": path})
        if _is_animation(image, data):
            count = _count_frames(image)
    if count > min(MAX_PAGES, len(data)):
        raise BrokenImage(f"{count} frames in {len(data)} bytes; expected {MAX_PAGES} at most, and a byte for each")
    return count


def _count_frames(image: Image.Image) -> int:
    with _codec("counting frames"):
        return getattr(image, "n_frames", 1)


def _choose_frame(image: Image.Image, pages: str | None, page: int | None, path: Any):
    if pages == SAMPLES:
        number = choose_pages(_count_frames(image), pages, page, "frames")[0]
        with _codec("decoding"):
            image.seek(number)
    elif pages is not None:
        raise BrokenImage("frames of an animation are no channels; --pages samples or first takes it")
    elif next(_cut_animations) == 0:
        name = "an image" if path is None else os.path.basename(path)
        logger.warning("%s is an animation; of these the first frame is taken, --pages samples takes all", name)


def load_pixels(value: Any, spec: PixelSpec) -> Image.Image | torch.Tensor:
    """The whole image, the right way up: a photograph as a PIL image of `spec.num_channels` channels of 8 bits, if
    `spec` takes it as it is; all else (channels, height, width), uint8 or float32 in [0, 1]. Arguments and errors as
    `open_stored` and `read_values`."""
    return _all_of(open_stored(value, spec), spec)


def load_tensor(value: Any, spec: PixelSpec) -> torch.Tensor:
    """As `load_pixels`, always (channels, height, width)."""
    return load_turned(value, spec)[0]


def load_turned(value: Any, spec: PixelSpec) -> tuple[torch.Tensor, tuple[int, int], tuple[bool, bool, bool]]:
    """As `load_tensor`; with height and width of the image as it is stored, and how it lies there (see
    `orientation`)."""
    image = open_stored(value, spec)
    stored = (image.height, image.width)  # before `_all_of` turns it
    turn = orientation(image) if isinstance(image, Image.Image) else (False, False, False)
    pixels = _all_of(image, spec)
    return F.pil_to_tensor(pixels) if isinstance(pixels, Image.Image) else pixels, stored, turn


def take_as_shown(turn: tuple[bool, bool, bool]):
    """Warn once of an annotation of an image that lies so (see `orientation`) and whose size does not tell whether it
    is of the image as it is stored or as it is shown."""
    if any(turn) and next(_taken_as_shown) == 0:
        logger.warning(
            "an image is shown turned (EXIF), and the size of its annotation does not tell whether that was made on "
            "the image as it is shown or as it is stored: these are taken as of the image as it is shown; if they "
            "were made on it as it is stored, remove the EXIF orientation from the files"
        )


def _all_of(image: Image.Image | ArrayImage, spec: PixelSpec) -> Image.Image | torch.Tensor:
    if isinstance(image, Image.Image) and spec.plain:
        return to_pixels(upright(image), spec.num_channels)
    return read_values(as_array(image) if isinstance(image, Image.Image) else image, spec)


def as_array(image: Image.Image) -> ArrayImage:
    """A photograph as an array of its own channels, the right way up."""
    image = upright(image)
    with _codec("decoding"):
        mode = image.mode if image.mode in ("L", "LA", "RGB", "RGBA") else None
        mode = mode or ("RGBA" if image.has_transparency_data else "L" if image.mode == "1" else "RGB")
        values = np.asarray(_to_mode(image, mode))
    values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return StoredArray(image.format or "PIL", values, alpha=mode in ("LA", "RGBA"))


def encoded(value: Any) -> tuple[Any, Any]:
    """Bytes or a PIL image, and the path, of what `open_image` takes. Raises BrokenImage if there is nothing."""
    path = value
    if isinstance(value, dict):
        path = value.get("path")
        value = path if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise BrokenImage("a sample holds no image")
    if isinstance(value, str | os.PathLike):
        value = Path(value).read_bytes()
    if not isinstance(value, Image.Image) and not value:
        raise BrokenImage("an empty file")
    return value, path if isinstance(path, str | os.PathLike) else None


def open_image(value: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The header of an image that Pillow reads; its pixels are decoded when they are needed.

    Args:
        value: what an undecoded row of a dataset holds (`{"bytes": ..., "path": ...}`), bytes, a path, or a PIL image,
            which is loaded and returned.
        max_pixels: larger images are refused before anything is decoded.

    Raises:
        BrokenImage: if there is no image, if it is too large, or in none of `FORMATS` (nor in that of `NAMED_FORMATS`
            that its path names).
        OSError: if the file cannot be read.
    """
    data, path = encoded(value)
    if isinstance(data, Image.Image):
        with _codec("decoding"):
            data.load()
        return data
    stream, formats = io.BytesIO(data), _formats()
    if path is not None:
        named = image_suffixes().get(os.path.splitext(path)[1].lower())
        formats = [*formats, named] if named in NAMED_FORMATS else formats
    with _codec("opening"):
        image = Image.open(stream, formats=formats)
    pixels = image.width * image.height
    if not 0 < pixels <= max_pixels:
        expected = f"expected 1 to {max_pixels} (max_pixels)"
        raise BrokenImage(f"{image.width} x {image.height} pixels; {expected}", "max_image_pixels")
    densest = PIXELS_PER_BYTE.get(image.format)
    if densest is not None and pixels > max(CHEAP_PIXELS, len(data) * densest):
        raise BrokenImage(f"{image.width} x {image.height} pixels cannot be in {len(data)} bytes of {image.format}")
    return image


def upright_size(image: Image.Image | ArrayImage) -> tuple[int, int]:
    """Height and width of an image the right way up."""
    if isinstance(image, ArrayImage):
        return image.height, image.width
    swapped, _, _ = orientation(image)
    width, height = image.size
    return (width, height) if swapped else (height, width)


def orientation(image: Image.Image) -> tuple[bool, bool, bool]:
    """How an image is stored, as in `ORIENTATIONS`."""
    with _codec("decoding"):
        if image.format not in JPEGS:  # may say so behind the pixels (PNG), or are turned by Pillow (TIFF)
            image.load()
        return ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation), (False, False, False))


def upright(image: Image.Image) -> Image.Image:
    """The whole image, decoded and the right way up."""
    if not any(orientation(image)):
        return image
    with _codec("decoding"):
        return ImageOps.exif_transpose(image)


def turned(array: np.ndarray, stored: tuple[bool, bool, bool]) -> np.ndarray:
    """An array (height, width) that lies as an image is stored (see `orientation`), the right way up."""
    swapped, mirrored, upside_down = stored
    array = np.flip(array, tuple(axis for axis, flip in ((0, upside_down), (1, mirrored)) if flip))
    return np.ascontiguousarray(array.T if swapped else array)


def to_pixels(image: Image.Image, num_channels: int) -> Image.Image:
    """A photograph with 1 (grey), 3 (RGB) or 4 (RGBA) channels of 8 bits.

    Where RGB is wanted, transparency is dropped and not blended: that is what `convert("RGB")` does, in timm and in
    transformers' image processors as well.

    Raises:
        BrokenImage: if its pixels cannot be decoded, or are of more than 8 bits.
        ValueError: if there are no photographs of so many channels.
    """
    if num_channels not in MODES:
        raise ValueError(f"num_channels: {num_channels}, but the dataset holds {image.mode} images")
    with _codec("decoding"):
        return _to_mode(image, MODES[num_channels])


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    if image.mode == mode:
        return image
    if image.mode[0] in "IF":
        raise BrokenImage(NO_RANGE.format(f"mode {image.mode}"))
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "RGBa" or (image.mode in ("P", "PA") and image.has_transparency_data):
        image = image.convert("RGBA")
    return image.convert(mode)


def resized_crop(
    image: Image.Image | ArrayImage,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    spec: PixelSpec,
) -> torch.Tensor:
    """A crop of an image the right way up, resized (bicubic, antialiased).

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if each side of the crop is then still at least 1.5 times as long
    as that of the result. Beside decoding all of it, the PSNR is 39 dB or more for photographs and text that are tiled
    to 12 megapixels, and 45 or more for photographs enlarged to that (at 1.3 instead of 1.5: 37).

    Args:
        image: from `open_stored`, and used up (a JPEG has another size then).
        box: top, left, height and width of the crop, in pixels of the upright image.
        size: height and width of the result.
        spec: what is wanted of it.

    Returns:
        uint8 (channels, height, width); float32, if `image` is that, or has values that are not of 8 bits.

    Raises:
        BrokenImage, ValueError: as `to_pixels` and `read_values`.
    """
    top, left, height, width = box
    if isinstance(image, Image.Image) and not spec.plain:
        image = as_array(image)
    if isinstance(image, ArrayImage):
        return _resize(read_values(image, spec, box), size)
    rows, columns = size
    swapped, mirrored, upside_down = orientation(image)
    if swapped:
        top, left, height, width, rows, columns = left, top, width, height, columns, rows
    if mirrored:
        left = image.width - left - width
    if upside_down:
        top = image.height - top - height

    reduction = min(height / rows, width / columns)
    scale = _draft(image, int(reduction / MIN_REDUCTION))
    whole = None if scale > 1 or reduction >= 6 else _plain_jpeg(image, spec.num_channels)
    image = image if whole is not None else to_pixels(image, spec.num_channels)
    assert isinstance(image, Image.Image)  # as that is what went in
    if whole is not None:
        values = np.ascontiguousarray(whole[top : top + height, left : left + width])  # torch copies it half as fast
        pixels = _resize(torch.from_numpy(values).permute(2, 0, 1), (rows, columns))
    elif scale > 1 or reduction >= 6 or image.mode == "RGBA":
        # A reduced crop begins between pixels, which only Pillow can; and there is no second copy of a large image.
        part = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
        image = image.resize((columns, rows), Image.Resampling.BICUBIC, part, reducing_gap=3.0)
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    else:
        crop = torch.from_numpy(np.array(image.crop((left, top, left + width, top + height))))
        pixels = _resize(crop[None] if crop.ndim == 2 else crop.permute(2, 0, 1), (rows, columns))

    flipped = [axis for axis, flip in ((1, upside_down), (2, mirrored)) if flip]
    pixels = pixels.flip(flipped) if flipped else pixels
    return pixels.transpose(1, 2) if swapped else pixels


def _plain_jpeg(image: Image.Image, num_channels: int) -> np.ndarray | None:
    """A grey or colour JPEG that is stored as such, (height, width, channels), from the same library as Pillow's, but
    without its copies. None for what is not so plain, or not in order, which is left to Pillow."""
    mode = {1: "L", 3: "RGB"}.get(num_channels)
    if simplejpeg is None or image.format not in JPEGS or image.mode != mode:
        return None
    if not isinstance(image, ImageFile.ImageFile) or not isinstance(image.fp, io.BytesIO):
        return None
    try:
        return simplejpeg.decode_jpeg(image.fp.getvalue(), "GRAY" if mode == "L" else "RGB")
    except ValueError:
        return None


def _draft(image: Image.Image, most: int) -> int:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size, but at most reduced by `most`; returns what came of it."""
    wanted = next((scale for scale in (8, 4, 2) if scale <= most), 1)
    if wanted == 1:
        return 1
    width, height = image.size
    with _codec("decoding"):
        drafted = image.draft(None, (width // wanted, height // wanted))
    return 1 if drafted is None else round(width / drafted[1][2])


def _resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    # Several times as fast for uint8 as other layouts and views; the values are the same.
    layout = torch.channels_last if pixels.dtype == torch.uint8 else torch.contiguous_format
    pixels = pixels[None].contiguous(memory_format=layout)
    return F.resize(pixels, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)[0]
