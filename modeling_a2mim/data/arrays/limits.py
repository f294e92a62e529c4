"""What is refused by its header, before memory is taken for it, and how the errors of other libraries are told."""

import contextlib
import struct
from collections.abc import Iterator

from .array_image import BrokenImage


CHEAP_BYTES = 8 << 20  # below that a compressed image may claim what it likes
MAX_CHANNELS = 4096
VALUES_PER_PIXEL = 4  # of `max_pixels`: so many values are decoded at once at most
MAX_PAGES = 100_000
EXTRA = "pip install 'a2mim[formats]'"
# The most bytes that one byte of a codec can stand for. A code of 12 bits stands for 4096 bytes in LZW, 2 bytes stand
# for 128 in PackBits and in DICOM's RLE, and a block of 64 values takes 1 bit at least in a JPEG; the others say "all
# the same" in a few bytes, and here are as good as empty tiles.
RATIOS = {"none": 1, "deflate": 1032, "lzw": 2731, "packbits": 64, "jpeg": 1024}
DENSEST = 4096


def check_size(
    format: str,
    shape: tuple[int, int, int],
    itemsize: float,
    max_pixels: int,
    stored: int,
    codec: str = "none",
) -> None:
    """Refuse an image that is too large, or cannot be in its file.

    Args:
        format: for the message.
        shape: channels, height and width.
        itemsize: bytes of a value as it is stored.
        max_pixels: of the image.
        stored: bytes that there are for it.
        codec: as in `RATIOS`; another name is taken for as dense as `DENSEST`.

    Raises:
        BrokenImage: with the reason.
    """
    channels, height, width = (int(number) for number in shape)
    pixels, ratio = height * width, RATIOS.get(codec, DENSEST)
    if height < 1 or width < 1 or pixels > max_pixels:
        raise BrokenImage(f"{width} x {height} pixels; expected 1 to {max_pixels} (max_pixels)", "max_image_pixels")
    if not 1 <= channels <= MAX_CHANNELS:
        raise BrokenImage(f"{channels} channels; expected 1 to {MAX_CHANNELS}")
    if channels * pixels > VALUES_PER_PIXEL * max_pixels:
        raise BrokenImage(
            f"{width} x {height} pixels of {channels} channels; at most {VALUES_PER_PIXEL * max_pixels} values are "
            f"read at once ({VALUES_PER_PIXEL} x max_pixels)"
        )
    claimed = channels * pixels * itemsize
    if claimed > (stored if ratio == 1 else max(CHEAP_BYTES, stored * ratio)):
        raise BrokenImage(
            f"{width} x {height} pixels of {channels} channel(s) cannot be in {stored} bytes of {format}"
        )


def choose_pages(count: int, pages: str | None, page: int | None, what: str = "pages") -> list[int]:
    """The numbers of the pages that an image is made of.

    Args:
        count: how many there are.
        pages, page: as of `open_array`.
        what: they are called.

    Raises:
        BrokenImage: if `pages` does not say what several are, or there is no such page.
    """
    if not 1 <= count <= MAX_PAGES:
        raise BrokenImage(f"{count} {what}; expected 1 to {MAX_PAGES}")
    if page is not None and not 0 <= page < count:
        raise BrokenImage(f"there is no page {page} (from 0) among {count} {what}")
    if count == 1:
        return [0]
    if pages is None:
        raise BrokenImage(f"{count} {what}; --pages channels, samples or first says what they are")
    if pages == "channels":
        return list(range(count))
    if pages == "first":
        return [0]
    if page is None:
        raise BrokenImage(f"{count} {what}, each a sample; which one is meant is not said")
    return [page]


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Around code of a library that reads a file: its errors become BrokenImage. Broken files raise exceptions of a
    dozen types, which are documented nowhere, so all are caught."""
    try:
        yield
    except BrokenImage:
        raise
    except Exception as error:
        raise BrokenImage(f"{what}: {type(error).__name__}: {str(error)[:200]}") from error


def jpeg_size(data: bytes | memoryview) -> tuple[int, int, int] | None:
    """Components, height and width that a JPEG or JPEG-LS says it has; `None` if it does not say so. Its decoder takes
    memory for them."""
    place, end = 2, len(data)
    while place + 9 <= end:
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif marker in (0x01, *range(0xD0, 0xD9)):  # no parameters
            place += 2
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            _, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            return components, height, width
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def jpeg2000_size(data: bytes | memoryview) -> tuple[int, int, int, int] | None:
    """Components, height, width and bits of the values that a JPEG 2000 (a file or a codestream) says it has; `None`
    if it does not say so. Its decoder takes memory for them."""
    start = bytes(data).find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 43 > len(data):
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    components, depth = struct.unpack_from(">HB", data, start + 40)
    return components, bottom - top, right - left, (depth & 0x7F) + 1
