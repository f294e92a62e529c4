"""The pages of a TIFF, and which of them belong together, from its directories alone."""

import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from .array_image import BrokenImage
from .limits import MAX_PAGES


SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUBFILE, WIDTH, HEIGHT = 254, 256, 257
REDUCED, MASK = 1, 4  # bits of NewSubfileType
SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of whole numbers
FARTHEST = 1 << 60  # no file is that long
FIRST_TAGS = 8  # of a directory, whose tags ascend: those above are among them


@dataclass(frozen=True)
class Directory:
    """One page: its place in the file, its number in the chain, and whether it is a smaller copy or a mask of
    another."""

    offset: int
    number: int
    derived: bool


def directories(file: BinaryIO) -> list[Directory]:
    """All pages of a chain of directories; those of SubIFDs are none.

    Raises:
        BrokenImage: if the chain is a loop, or longer than `MAX_PAGES`.
    """
    file.seek(0)
    head = file.read(16)
    order, big = ("<" if head[:2] == b"II" else ">"), b"+" in head[2:4]
    counter, offset_code, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    offset = struct.unpack_from(order + offset_code, head.ljust(16, b"\0"), 8 if big else 4)[0]
    found: list[Directory] = []
    seen: set[int] = set()
    while 0 < offset < FARTHEST:
        if offset in seen:
            raise BrokenImage("the pages of the TIFF are a loop")
        if len(found) == MAX_PAGES:
            raise BrokenImage(f"a TIFF of more than {MAX_PAGES} pages")
        seen.add(offset)
        file.seek(offset)
        data = file.read(struct.calcsize(counter) + FIRST_TAGS * entry)
        if len(data) < struct.calcsize(counter):
            break  # behind the end of the file; what there is before is whole
        count = struct.unpack_from(order + counter, data)[0]
        tags = _first_tags(data[struct.calcsize(counter) :], min(count, FIRST_TAGS), order, big)
        found.append(Directory(offset, len(found), bool(tags.get(SUBFILE, 0) & (REDUCED | MASK))))
        behind = offset + struct.calcsize(counter) + count * entry
        file.seek(min(behind, FARTHEST))
        data = file.read(struct.calcsize(offset_code))
        if len(data) < struct.calcsize(offset_code):
            break
        offset = struct.unpack(order + offset_code, data)[0]
    return found


def _first_tags(data: bytes, count: int, order: str, big: bool) -> dict[int, int]:
    size, value_place = (20, 12) if big else (12, 8)
    tags = {}
    for place in range(0, min(count * size, len(data) - size + 1), size):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if tag in (SUBFILE, WIDTH, HEIGHT) and kind in SIZES:
            tags[tag] = struct.unpack_from(order + SIZES[kind], data, place + value_place)[0]
    return tags


def full_pages(found: list[Directory]) -> list[Directory]:
    """Without overviews and masks; all, if there is nothing else."""
    return [page for page in found if not page.derived] or found[:1]


def planes(description: str, count: int, samples: int) -> np.ndarray:
    """Which planes are the channels of one image, by what ImageJ or OME wrote into the first page.

    Args:
        description: the ImageDescription of the first page.
        count: number of planes.
        samples: channels that each plane has by itself.

    Returns:
        (pages, channels) numbers of planes; (count, 1) if there is nothing said, or it does not fit.
    """
    alone = np.arange(count)[:, None]
    if description.startswith("ImageJ="):
        channels = re.search(r"^channels=(\d{1,6})\s*$", description, re.MULTILINE)
        number = int(channels[1]) if channels else 1
        return alone.reshape(-1, number) if samples == 1 and number and count % number == 0 else alone
    pixels = re.search(r"<(?:\w+:)?Pixels\s[^>]*>", description) if "<" in description[:200] else None
    if pixels is None:
        return alone
    said = dict(re.findall(r'(\w+)="([^"]*)"', pixels[0]))
    order = said.get("DimensionOrder", "")
    sizes = {axis: int(said.get(f"Size{axis}", "0")) for axis in "CZT" if said.get(f"Size{axis}", "").isdigit()}
    if sorted(order) != sorted("XYCZT") or len(sizes) != 3 or description.count("<Image ") > 1:
        return alone
    sizes["C"] //= samples
    axes = order[:1:-1]  # from the slowest
    if sizes["C"] < 1 or sizes["C"] * sizes["Z"] * sizes["T"] != count:
        return alone
    numbers = alone.reshape([sizes[axis] for axis in axes])
    if not _in_order(description, axes, numbers):
        return alone
    return np.moveaxis(numbers, axes.index("C"), -1).reshape(-1, sizes["C"])


def _in_order(description: str, axes: str, numbers: np.ndarray) -> bool:
    """Whether OME places the planes in the file as their order says; it may also name them one by one."""
    for tag in re.findall(r"<(?:\w+:)?TiffData\s[^>]*>", description):
        said = {name: int(value) for name, value in re.findall(r'(\w+)="(\d+)"', tag)}
        index = tuple(said.get(f"First{axis}", 0) for axis in axes)
        if any(i >= size for i, size in zip(index, numbers.shape, strict=True)):
            return False
        if said.get("IFD", 0) != numbers[index]:
            return False
    return True
