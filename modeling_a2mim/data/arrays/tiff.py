"""TIFF of any type of values and any number of channels, by tifffile; photographs of 8 bits are left to Pillow."""

import functools
import io
import logging
import math
import re
from decimal import Decimal, InvalidOperation
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from .array_image import ArrayImage, Box, BrokenImage
from .axes import ORIENTATIONS, UPRIGHT, native, stored_box, turned
from .limits import CHEAP_BYTES, EXTRA, check_size, choose_pages, jpeg2000_size, jpeg_size, reading
from .tiff_pages import Directory, directories, full_pages, planes


MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
CHANNELS = {MIN_IS_WHITE: 1, MIN_IS_BLACK: 1, RGB: 3, PALETTE: 1, SEPARATED: 4, YCBCR: 3, CIELAB: 3}
LINEAR, DEPTH = 34892, 51177  # of DNG
READ = (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, LINEAR, DEPTH)  # values as they are, or looked up
CODECS = {  # those that are decoded here: nothing else is known to be safe with broken files
    1: "none",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    33003: "jpeg2000",
    33004: "jpeg2000",
    33005: "jpeg2000",
    34712: "jpeg2000",
    34925: "lzma",
    50000: "zstd",
}
WITHOUT_EXTRA = ("none", "deflate", "lzma", "packbits")  # what tifffile decodes by itself
PREDICTORS = (1, 2, 3)
TYPES = "biuf"


@functools.cache
def _tifffile() -> ModuleType:
    import tifffile

    # It tells of every odd tag of every image; what matters is checked here.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


@functools.cache
def _has_imagecodecs() -> bool:
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        return False
    return True


GDAL_NODATA = 42113  # number of a tag
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def count_tiff_pages(file: BinaryIO) -> int:
    """How many pages a TIFF has; those that its header says are channels of one image count once."""
    found = full_pages(directories(file))
    if not found:
        return 1  # broken: opening it says why
    file.seek(0)
    with reading("opening TIFF"):
        return len(_planes(_page(_tifffile().TiffFile(file, _multifile=False), found[0]), found))


def _page(opened: Any, directory: Directory) -> Any:
    if directory.number == 0:
        return opened.pages.first  # which was read when the file was opened
    opened.filehandle.seek(directory.offset)
    return _tifffile().TiffPage(opened, directory.number)


def _planes(first: Any, found: list[Directory]) -> np.ndarray:
    """(pages, channels) numbers of planes; see `tiff_pages.planes`."""
    count, samples = len(found), first.samplesperpixel
    if first.is_stk:
        raise BrokenImage("a stack of MetaMorph, whose planes have no directories; save it as TIFF with pages")
    if len(found) == 1:
        count = _imagej_count(first)
    return planes(first.description, count, samples)


def _imagej_count(first: Any) -> int:
    """Planes behind one directory, as ImageJ writes stacks of more than 4 GB."""
    said = re.search(r"^images=(\d{1,6})\s*$", first.description, re.MULTILINE)
    return int(said[1]) if said and first.description.startswith("ImageJ=") and int(said[1]) > 0 else 1


def open_tiff(data: bytes, pages: str | None, page: int | None, max_pixels: int) -> ArrayImage | None:
    """As `open_array`, of a TIFF."""
    found = full_pages(directories(io.BytesIO(data)))
    if not found:
        return None  # Pillow says what is wrong
    try:
        opened = _tifffile().TiffFile(io.BytesIO(data), _multifile=False)
        first = _page(opened, found[0])
    except Exception as error:
        if len(found) == 1:
            return None  # Pillow may read it all the same; if not, it says what is wrong
        raise BrokenImage(f"opening TIFF: {type(error).__name__}: {error}") from error
    with reading("opening TIFF"):
        groups = _planes(first, found)
        chosen = [int(i) for group in choose_pages(len(groups), pages, page) for i in groups[group]]
        if len(chosen) == 1 and (len(found) > 1 or chosen[0] == 0):
            where = found[chosen[0]]
            only = first if chosen[0] == 0 else _page(opened, where)
            if _left_to_pillow(only):  # which begins with the first directory, and knows nothing of nodata
                plain = where.number == 0 and _photograph_mark(only) is None
                return None if plain else TiffPhotograph(data, only, where.number, max_pixels)
        check_size("TIFF", (len(chosen), 1, 1), 0, max_pixels, 0)
        if len(found) == 1:  # the planes of ImageJ
            return TiffImage(data, [first] * len(chosen), chosen, max_pixels)
        parts = [first if i == 0 else _page(opened, found[i]) for i in chosen]
        return TiffImage(data, parts, [0] * len(parts), max_pixels)


def _left_to_pillow(page: Any) -> bool:
    """Whether Pillow reads all that there is in a page: 8 bits or less, a colour that it knows, transparency at
    most."""
    colours, extra = CHANNELS.get(page.photometric), page.extrasamples
    sparse = 0 in page.dataoffsets and 0 in page.databytecounts
    if sparse or (page.parent.is_bigtiff and page.parent.byteorder == ">"):  # neither of which it knows
        if page.bitspersample in (2, 4) and page.photometric != PALETTE:  # which it would make 0 to 255
            raise BrokenImage(f"{page.bitspersample} bits in a sparse TIFF or a big-endian BigTIFF; store them in 8")
        return False
    if page.bitspersample not in (1, 2, 4, 8) or page.sampleformat != 1 or page.imagedepth != 1:
        plain_grey = page.samplesperpixel == 1 and page.photometric == MIN_IS_BLACK and page.sampleformat in (1, 2, 3)
        # Without the extra, Pillow reads at least these without loss.
        size = (page.sampleformat, page.bitspersample)
        plain = plain_grey and size in ((1, 16), (2, 16), (2, 32), (3, 32)) and page.index == 0
        return plain and _needs_extra(page) and _mark(page) is None
    if page.photometric not in CHANNELS or page.compression not in TiffImagePlugin.COMPRESSION_INFO:
        return False
    return page.samplesperpixel == colours + len(extra) and (
        not extra or (len(extra) == 1 and int(extra[0]) in (1, 2))
    )


def _needs_extra(page: Any) -> bool:
    odd = page.bitspersample not in (8, 16, 32, 64) or page.fillorder == 2 or page.predictor == 3
    return (odd or CODECS.get(page.compression) not in WITHOUT_EXTRA) and not _has_imagecodecs()


def _stored_mark(page: Any) -> float | None:
    """The value that marks pixels of which nothing is known, as it is stored; `None` if the header names none, or one
    that no value can be. tifffile takes 0 for these, and for marks that are not written as it expects."""
    try:
        mark = Decimal(str(page.tags.valueof(GDAL_NODATA)).strip().replace(",", "."))
    except InvalidOperation:
        return None
    if page.dtype.kind != "f":
        limits = np.iinfo(page.dtype) if page.dtype.kind == "i" else None
        low, high = (limits.min, limits.max) if limits else (0, (1 << page.bitspersample) - 1)
        return int(mark) if mark.is_finite() and low <= mark <= high and mark == int(mark) else None
    value, largest = float(mark), float(np.finfo(page.dtype).max)
    if mark.is_finite():
        value = min(max(value, -largest), largest)
        for limit in (LARGEST_FLOAT32, largest):  # which are written with fewer digits than they have; as GDAL
            value = math.copysign(limit, value) if math.isclose(abs(value), limit, rel_tol=1e-10) else value
    return float(page.dtype.type(value))


def _mark(page: Any) -> float | None:
    """As `_stored_mark`, of the values that are read. Of a palette it is the number of a colour, which others may
    have, too."""
    mark = _stored_mark(page) if page.photometric != PALETTE else None
    if mark is None or page.photometric != MIN_IS_WHITE:
        return mark
    return (-1 if page.dtype.kind == "i" else (1 << page.bitspersample) - 1) - mark


def _photograph_mark(page: Any) -> float | None:
    """As `_mark`, of the 0 to 255 that Pillow makes of 8 bits or less."""
    mark = _mark(page) if page.photometric in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, YCBCR) else None
    return None if mark is None else mark * (255 // ((1 << page.bitspersample) - 1))


def _orientation(page: Any) -> tuple[bool, bool, bool]:
    return ORIENTATIONS.get(page.tags.valueof(274, 1), UPRIGHT)


def _check(page: Any, max_pixels: int, stored: int) -> None:
    """Refuse what is not read, or too large. Raises BrokenImage."""
    bits, kind, codec = page.bitspersample, page.dtype and page.dtype.kind, CODECS.get(page.compression)
    if kind == "c":
        raise BrokenImage(f"complex values ({page.dtype}); store their parts as channels")
    if kind is None or kind not in TYPES or not isinstance(bits, int) or bits > 64:
        raise BrokenImage(f"values of {bits} bits in sample format {page.sampleformat}; they are not read from TIFF")
    if codec is None:
        raise BrokenImage(f"compression {page.compression!s} of TIFF; it is not read with this type of values")
    if page.predictor not in PREDICTORS:
        raise BrokenImage(f"predictor {page.predictor!s} of TIFF; it is not read")
    if page.photometric not in READ:
        raise BrokenImage(
            f"colours in {page.photometric!s} of {bits} bits; expected grey, RGB or channels of any kind"
        )
    if page.photometric == MIN_IS_WHITE and kind == "f":
        raise BrokenImage("real numbers of which the lowest is white, without a highest")
    if page.imagedepth != 1 or page.is_subsampled:
        raise BrokenImage("a volume or subsampled channels; expected an image")
    if _needs_extra(page):
        raise BrokenImage(f"compression {page.compression!s}, or packed bits, needs imagecodecs: {EXTRA}")
    planes_, _, height, width, samples = page.shaped
    sparse = codec == "none" and 0 in page.databytecounts
    check_size("TIFF", (planes_ * samples, height, width), bits / 8, max_pixels, stored, "sparse" if sparse else codec)
    rows, columns = _tile_size(page)
    if min(rows, columns) < 1 or rows * columns * samples * page.dtype.itemsize > max(CHEAP_BYTES, 4 * page.nbytes):
        raise BrokenImage(f"tiles of {columns} x {rows} pixels; they are larger than the image")
    if page.photometric == PALETTE and (page.colormap is None or page.colormap.shape != (3, 1 << bits)):
        raise BrokenImage("a palette of another number of colours than the values have")


def _tile_size(page: Any) -> tuple[int, int]:
    """Height and width of what is decoded at once: a tile, or a strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


class TiffImage(ArrayImage):
    """The channels of some pages, one behind the other. Only the tiles, or strips, of a box are decoded.

    Args:
        data: the file.
        pages: of tifffile.
        planes: which of the images behind its directory each is.
        max_pixels: larger ones are refused.
    """

    def __init__(self, data: bytes, pages: list[Any], planes: list[int], max_pixels: int):
        self.data, self.pages, self.planes = data, pages, planes
        first = pages[0]
        for page in {id(page): page for page in pages}.values():
            _check(page, max_pixels, len(data))
            same = (page.shaped, page.dtype, page.photometric, _orientation(page))
            if same != (first.shaped, first.dtype, first.photometric, _orientation(first)):
                raise BrokenImage("pages of different sizes or types; they cannot be the channels of one image")
        if max(planes) and not first.is_contiguous:
            raise BrokenImage("a stack of ImageJ behind one directory that is compressed")
        self.orientation = _orientation(first)
        count, _, height, width, samples = first.shaped
        self.samples = count * samples  # of a page, as stored
        channels = (3 if first.photometric == PALETTE else self.samples) * len(pages)
        check_size("TIFF", (channels, height, width), 0, max_pixels, len(data))
        size = (width, height) if self.orientation[0] else (height, width)
        extra = [int(kind) for kind in first.extrasamples]
        alpha = len(pages) == 1 and bool(extra) and extra[-1] in (1, 2)
        dtype = first.dtype.newbyteorder("=")
        if first.photometric == PALETTE:
            dtype = np.dtype(np.uint8 if first.bitspersample <= 8 else np.uint16)
        super().__init__("TIFF", (channels, *size), dtype, alpha=alpha)
        marks = {str(mark): mark for page in pages if (mark := _mark(page)) is not None}
        if len(marks) > 1:
            raise BrokenImage(f"pages of different nodata ({', '.join(marks)}); they cannot be channels of one image")
        self.nodata = next(iter(marks.values()), None)

    def read(self, box: Box | None = None) -> np.ndarray:
        _, _, height, width, _ = self.pages[0].shaped
        stored = stored_box(box or (0, 0, self.height, self.width), (height, width), self.orientation)
        with reading("decoding TIFF"):
            parts = [self._read_page(page, plane, stored) for page, plane in zip(self.pages, self.planes, strict=True)]
            values = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return native(turned(values, self.orientation), self.dtype)

    def turned_over(self, values: np.ndarray) -> np.ndarray:
        """Stored values of which the lowest is white as those of which the highest is, and back."""
        if values.dtype.kind == "u":
            return np.array((1 << self.pages[0].bitspersample) - 1, values.dtype) - values
        return ~values

    @property
    def min_is_white(self) -> bool:
        """Whether `read` turns values over."""
        return self.pages[0].photometric == MIN_IS_WHITE

    def _read_page(self, page: Any, plane: int, box: Box) -> np.ndarray:
        values = self._whole(page, plane, box) if page.is_contiguous else None
        values = self._tiles(page, box) if values is None else values
        if page.photometric == MIN_IS_WHITE:
            return self.turned_over(values)
        if page.photometric == PALETTE:
            colours = page.colormap >> 8 if page.bitspersample <= 8 else page.colormap  # of 8 bits as Pillow
            return colours.astype(self.dtype)[:, values[0]]
        return values

    def _whole(self, page: Any, plane: int, box: Box) -> np.ndarray | None:
        """What is stored in one piece, without a copy; `None` if it has to be decoded all the same."""
        if page.fillorder != 1 or page.predictor != 1:
            return None
        shape, dtype = page.shaped, page.dtype.newbyteorder(page.parent.byteorder)
        count = math.prod(shape)
        start = page.dataoffsets[0] + plane * count * dtype.itemsize
        values = np.frombuffer(self.data, dtype, count, start).reshape(shape)[:, 0]
        top, left, height, width = box
        values = values[:, top : top + height, left : left + width].transpose(0, 3, 1, 2)
        return values.reshape(self.samples, height, width).astype(page.dtype.newbyteorder("="), copy=False)

    def _tiles(self, page: Any, box: Box) -> np.ndarray:
        top, left, height, width = box
        count, _, page_height, page_width, samples = page.shaped
        rows, columns = _tile_size(page)
        down, across = -(-page_height // rows), -(-page_width // columns)
        if len(page.dataoffsets) < count * down * across or len(page.databytecounts) < count * down * across:
            raise BrokenImage(f"{len(page.dataoffsets)} tiles or strips; expected {count * down * across}")
        found = np.empty((self.samples, height, width), page.dtype.newbyteorder("="))
        for plane in range(count):
            for i in range(top // rows, (top + height - 1) // rows + 1):
                for j in range(left // columns, (left + width - 1) // columns + 1):
                    y, x = i * rows - top, j * columns - left  # of the tile in the box, which may begin before it
                    into = found[
                        plane * samples : (plane + 1) * samples, max(y, 0) : y + rows, max(x, 0) : x + columns
                    ]
                    tile = self._decode(page, (plane * down + i) * across + j)
                    if tile is None:  # left out of a sparse file
                        into[:] = _stored_mark(page) or 0
                        continue
                    part = tile[max(-y, 0) : height - y, max(-x, 0) : width - x].transpose(2, 0, 1)
                    if part.shape != into.shape:
                        raise BrokenImage(f"a tile or strip of {part.shape}; expected {into.shape}")
                    into[:] = part
        return found

    def _decode(self, page: Any, index: int) -> np.ndarray | None:
        """(height, width, samples) of a tile or strip."""
        start, length = page.dataoffsets[index], page.databytecounts[index]
        if length == 0:
            return None
        data: Any = self.data[start : start + length]
        if len(data) < length:
            raise BrokenImage("the file ends before its pixels do")
        codec, arguments = CODECS[page.compression], {}
        if codec == "jpeg":
            arguments = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        if codec in ("jpeg", "jpeg2000"):  # which have sizes of their own
            size = jpeg_size(data) if codec == "jpeg" else jpeg2000_size(data)
            rows, columns = _tile_size(page)
            if size is None or size[1] > rows or size[2] > columns or size[0] > page.shaped[-1]:
                raise BrokenImage(f"a tile or strip in {codec} whose header says that it is larger")
        tile = page.decode(data, index, **arguments)[0]
        return tile[0].reshape(*tile.shape[1:3], -1)


class TiffPhotograph(ArrayImage):
    """A page of 8 bits or less that is not the first one, or has nodata, by Pillow: the same as without."""

    def __init__(self, data: bytes, page: Any, number: int, max_pixels: int):
        self.data, self.number = data, number
        swapped, _, _ = _orientation(page)
        size = (page.imagewidth, page.imagelength) if swapped else (page.imagelength, page.imagewidth)
        self.mode = "L" if page.photometric in (MIN_IS_WHITE, MIN_IS_BLACK) else "RGB"
        self.mode += "A" if page.extrasamples else ""
        stored, codec = (page.samplesperpixel, *size), CODECS.get(page.compression, "")
        check_size("TIFF", stored, page.bitspersample / 8, max_pixels, len(data), codec)
        super().__init__("TIFF", (len(self.mode), *size), np.dtype(np.uint8), alpha=self.mode.endswith("A"))
        self.nodata = _photograph_mark(page)

    def opened(self) -> Image.Image:
        """The page as Pillow opens it."""
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(self.data))
        image.seek(self.number)
        return image

    def read(self, box: Box | None = None) -> np.ndarray:
        with reading("decoding TIFF"):
            image = self.opened()
            image.load()
            image = ImageOps.exif_transpose(image).convert(self.mode)
            values = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
            top, left, height, width = box or (0, 0, self.height, self.width)
            return native(values[:, top : top + height, left : left + width], self.dtype)
