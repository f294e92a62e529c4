"""Which values of the pixels in annotated maps are which class: named in a file, or found by looking through all maps
before training."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ...arguments.data import MAX_PIXELS
from ...arguments.segmentation import IGNORED, LARGEST, parse_value
from ...data.arrays import ArrayImage
from ...data.arrays.netpbm import is_scaled, open_netpbm
from ...data.arrays.tiff import TiffImage, TiffPhotograph
from ...data.decoding import BrokenImage, count_images, encoded, open_stored, upright
from ...data.pixel_spec import PixelSpec


EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # of Pillow
STRETCHED = re.compile("(?:1|L;?([24]?));?(I?)R?")  # how Pillow writes grey of 1, 2, 4 and 8 bits in TIFF and PNG
FACTORS = {"2": 85, "4": 17}
LISTED = 8  # values, names or maps in a message


def show_value(value: int, colours: bool) -> str:
    """The value of a pixel in words: a number, or a colour as #rrggbb."""
    return f"#{value:06x}" if colours else str(value)


def read_labels(path: Path) -> tuple[dict[int, str], bool]:
    """The names of the classes by the values of their pixels, in the order of the file, and whether the values are
    colours (0xRRGGBB), from a JSON file: `{"0": "wall", ...}`, `{"#ff0000": "wall", ...}`, or a list of the names of
    0, 1, ...

    Raises:
        ValueError: if the file is missing or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    except (OSError, ValueError) as error:
        raise ValueError(f"labels_file: {path} cannot be read: {error}") from error
    pairs = data if isinstance(data, list) else []
    if not all(isinstance(pair, tuple) for pair in pairs):
        pairs = [(str(i), name) for i, name in enumerate(pairs)]
    if not pairs or not all(isinstance(name, str) for _, name in pairs):
        raise ValueError(f"labels_file: {path} must hold names of classes, by the values of their pixels or as a list")
    values = [parse_value(key) for key, _ in pairs]
    if wrong := [key for (key, _), value in zip(pairs, values, strict=True) if value is None]:
        raise ValueError(
            f"labels_file: {path} must name classes by the values of their pixels, 0 to {LARGEST - 1} or #rrggbb; it "
            f"has {', '.join(map(repr, wrong[:5]))}"
        )
    if len({colour for _, colour in values}) > 1:
        raise ValueError(f"labels_file: {path} has numbers and colours (#rrggbb); maps hold either")
    for what in ([name for _, name in pairs], [value for value, _ in values]):
        twice = [one for one, count in Counter(what).items() if count > 1]
        if twice:
            shown = repr(twice[0]) if isinstance(twice[0], str) else f"of {show_value(twice[0], values[0][1])}"
            raise ValueError(f"labels_file: {path} names two classes {shown}")
    colours = values[0][1]
    named = {value: name for (value, _), (_, name) in zip(values, pairs, strict=True)}
    return (named if colours else dict(sorted(named.items()))), colours


def open_map(value, max_pixels: int = MAX_PIXELS) -> Image.Image | ArrayImage:
    """The header of an annotated map; what Pillow would not give as it is stored is an `ArrayImage`.

    Args:
        value: the stored image (see `decoding.open_stored`).
        max_pixels: larger ones are refused.

    Raises:
        BrokenImage: if it cannot be decoded, or has several pages or frames.
    """
    data, path = encoded(value)
    if isinstance(data, Image.Image):
        return open_stored(data, PixelSpec(1))
    data = bytes(data)
    if is_scaled(data):
        return open_netpbm(data, max_pixels)
    if (count := count_images(data, path, 1)) > 1:
        raise BrokenImage(f"its map of classes has {count} pages or frames; expected one")
    return open_stored({"bytes": data, "path": path}, PixelSpec(1, max_pixels=max_pixels))


def read_pixels(value, colours: bool = False, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, bool]:
    """The values in an annotated map, int32 (height, width), the right way up, and whether they are colours. Those of
    images with a palette are the indices, or with `colours` the colours; transparency is dropped, and grey in three
    channels is one value.

    Args:
        value: of `open_map`, or what that takes.
        colours: read every pixel as a colour, 0xRRGGBB; without, only those of images that are not grey.

    Raises:
        BrokenImage: if it cannot be decoded, or as `open_map`.
        ValueError: if it is no image of numbers or colours.
    """
    image = value if isinstance(value, Image.Image | ArrayImage) else open_map(value, max_pixels)
    if isinstance(image, TiffPhotograph):  # what has no value is no question of maps
        image = image.opened()
    if isinstance(image, ArrayImage):
        pixels, kind = _stored_values(image), f"{image.channels} channel(s) of {image.dtype}"
        known = len(pixels) == 1 and pixels.dtype.kind in "biu"
        pixels = pixels[0]
    else:
        factor, inverted = _stretched(image)
        pixels, kind, known = _photograph(upright(image), colours), f"mode {image.mode}", image.mode in EIGHT_BITS
        if not colours:
            pixels = ~pixels if inverted else pixels
            pixels = pixels // factor if factor > 1 else pixels
    if not known or (colours and pixels.ndim == 2):
        wanted = "maps of colours, as in --labels_file" if colours else "maps with one class for each pixel"
        raise ValueError(f"label_column_name: expected {wanted}, found {kind}")
    if pixels.ndim == 2:
        limits = np.iinfo(np.int32)
        if pixels.dtype.itemsize > 2 and not limits.min <= pixels.min() <= pixels.max() <= limits.max:
            raise BrokenImage("its map of classes holds values of more than 32 bits, which are no classes")
        return pixels.astype(np.int32), False
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue, True


def _stored_values(image: ArrayImage) -> np.ndarray:
    """(channels, height, width) without transparency; one channel, if all are the same."""
    values = image.read()
    values = values[:-1] if image.alpha else values
    if isinstance(image, TiffImage) and image.min_is_white:
        values = image.turned_over(values)
    return values[:1] if (values == values[:1]).all() else values


def _stretched(image: Image.Image) -> tuple[int, bool]:
    """By what Pillow multiplies grey values of 2 or 4 bits, and whether it turns them over where 0 is white: known
    until it decodes the image."""
    if not isinstance(image, TiffImageFile | PngImageFile) or not image.tile:
        return 1, False
    args = image.tile[0].args
    found = STRETCHED.fullmatch(str(args if isinstance(args, str) else args[0]))
    return (FACTORS.get(found[1], 1), bool(found[2])) if found else (1, False)


def _photograph(image: Image.Image, colours: bool) -> np.ndarray:
    """(height, width) numbers, or (height, width, channels) colours."""
    try:
        if colours and image.mode in EIGHT_BITS:
            return np.asarray(image.convert("RGBA"))[..., :3]
        pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenImage(f"its map of classes cannot be decoded: {error}") from error
    if image.mode in ("LA", "PA"):
        return pixels[..., 0]
    if image.mode in ("RGB", "RGBA"):
        pixels = pixels[..., :3]
        return pixels[..., 0] if (pixels[..., :1] == pixels).all() else pixels
    return pixels


class LabelValues:
    """Which values in maps are which class, and how maps are read.

    Args:
        names: of the classes.
        values: of the pixels of each, `None` for a class that the maps do not have; default: 0, 1, ...
        ignore_value: of pixels that do not count; `None` for none.
        reduce_labels: 0 in the maps does not count, and every other value, but for `ignore_value`, stands for one
            less.
        colours: values are 0xRRGGBB.

    Attributes:
        ignored: what pixels that do not count are in the maps that `read` gives.
        not_counted: the values of these pixels, as they are stored.
    """

    def __init__(
        self,
        names: list[str],
        values: list[int | None] | None = None,
        ignore_value: int | None = IGNORED,
        reduce_labels: bool = False,
        colours: bool = False,
    ):
        self.names, self.values = list(names), list(range(len(names))) if values is None else list(values)
        self.ignore_value, self.reduce_labels, self.colours = ignore_value, reduce_labels, colours
        self.not_counted = ({0} if reduce_labels else set()) | ({ignore_value} - {None})
        # What users of the maps expect, where it is no class.
        given = ignore_value is not None and not colours and len(names) <= ignore_value < 2**15
        self.ignored = ignore_value if given else max(IGNORED, len(names))
        self._table = np.full(max([*self.stored, *self.not_counted, 0]) + 2, -1, dtype=np.int16)  # the last: others
        for value, index in self.stored.items():
            self._table[value] = index
        for value in self.not_counted:
            if value >= 0:
                self._table[value] = self.ignored

    @property
    def stored(self) -> dict[int, int]:
        """The classes by the values of pixels, as they are stored."""
        values = enumerate(self.values)
        return {value + self.reduce_labels: index for index, value in values if value is not None}

    def read(self, value, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """A map of classes, int32 (height, width), from a stored one; `ignored` where pixels do not count.

        Raises:
            BrokenImage: if it cannot be decoded, or holds a value of no class.
            ValueError: as `read_pixels`.
        """
        pixels, colours = read_pixels(value, self.colours, max_pixels)
        if colours != self.colours:
            raise BrokenImage("its map of classes holds colours, and --labels_file names none")
        last = len(self._table) - 1
        classes = self._table[np.where((pixels < 0) | (pixels > last), last, pixels)].astype(np.int32)
        if self.ignore_value is not None and self.ignore_value < 0:
            classes[pixels == self.ignore_value] = self.ignored
        if (classes < 0).any():
            wrong = show_value(int(pixels[classes < 0][0]), colours)
            raise BrokenImage(f"its map of classes holds the value {wrong}, which is no class")
        return classes

    def ordered_as(self, names: list[str]) -> "LabelValues":
        """The same values for classes in another order, in which there may be more; classes are told apart by their
        names.

        Raises:
            ValueError: naming `labels_file`, if a class is not among `names`.
        """
        if unknown := [repr(name) for name in self.names if name not in names]:
            raise ValueError(f"labels_file: {some(unknown)} is no class of the model, which knows {some(names)}")
        by_name = dict(zip(self.names, self.values, strict=True))
        values = [by_name.get(name) for name in names]
        return LabelValues(names, values, self.ignore_value, self.reduce_labels, self.colours)

    def describe(self) -> str:
        """Which value is which class, in words."""
        pairs = zip(self.values, self.names, strict=True)
        return some([f"{show_value(value, self.colours)} {name}" for value, name in pairs if value is not None], 20)


def some(words: Iterable[str], limit: int = LISTED) -> str:
    """The first of them, and how many more there are."""
    words = list(words)
    return ", ".join(words[:limit]) + (f" and {len(words) - limit:,} more" if len(words) > limit else "")
