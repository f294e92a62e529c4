"""DICOM by pydicom. Nothing of what a file says of a patient gets into a message: the texts of pydicom's errors and
warnings quote values, so they are not passed on."""

import contextlib
import io
import logging
import math
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from .array_image import ArrayImage, Box, BrokenImage, Window
from .axes import native
from .limits import EXTRA, check_size, choose_pages


SUFFIXES = (".dcm", ".dicom")
DEFLATED = "1.2.840.10008.1.2.1.99"
CODECS = {  # UIDs of transfer syntaxes: what is in them
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.2": "none",
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.57": "jpeg",
    "1.2.840.10008.1.2.4.70": "jpeg",
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
    "1.2.840.10008.1.2.5": "packbits",
}
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
PER_FRAME = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
HEADER = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", *PER_FRAME),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)
PIXEL_ELEMENTS: dict[tuple[int, int], np.dtype | None] = {  # type of the values, if they are real numbers
    (0x7FE0, 0x0008): np.dtype(np.float32),
    (0x7FE0, 0x0009): np.dtype(np.float64),
    (0x7FE0, 0x0010): None,
}
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
MOST = 2.0**53  # whole numbers beyond that are not exact in a slope or an intercept

_lock = threading.RLock()


def has_mark(data: bytes) -> bool:
    """Whether a file has the mark of DICOM behind its preamble."""
    return data[128:132] == b"DICM"


def is_named_dicom(path: Any) -> bool:
    """Whether a file, which may have no preamble, is called like DICOM."""
    return path is not None and os.path.splitext(path)[1].lower() in SUFFIXES


@contextlib.contextmanager
def _silent(action: str) -> Iterator[None]:
    """Around code of pydicom: its warnings and log are dropped, and its errors told by their type alone."""
    logger = logging.getLogger("pydicom")
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logger.propagate, logger.handlers
        logger.propagate, logger.handlers = False, [logging.NullHandler()]
        try:
            yield
        except BrokenImage:
            raise
        except Exception as error:
            kind = type(error).__name__
        else:
            return
        finally:
            logger.propagate, logger.handlers = before
    raise BrokenImage(f"{action} DICOM: {kind}") from None


def _dataset(file: BinaryIO, pixels: bool) -> Any:
    """The elements of `HEADER`, and of `PIXELS` if they are wanted; all others are skipped."""
    try:
        from pydicom import dcmread
        from pydicom.filereader import read_dataset
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
    except ImportError:
        raise BrokenImage(f"DICOM needs pydicom: {EXTRA}") from None
    file.seek(128)
    if file.read(4) == b"DICM":  # look at how it is written before pydicom inflates what may be a bomb
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        if str(meta.get("TransferSyntaxUID", "")) == DEFLATED:
            raise BrokenImage("a deflated DICOM file; it is not read, store it in another transfer syntax")
    file.seek(0)
    wanted = [*HEADER, *(PIXELS if pixels else ())]
    found = dcmread(file, force=True, stop_before_pixels=not pixels, specific_tags=wanted)
    if "TransferSyntaxUID" not in found.file_meta:
        implicit, little = found.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return found


def count_frames(file: BinaryIO) -> int:
    """How many frames there are by the header."""
    with _silent("opening"):
        return int(_dataset(file, False).get("NumberOfFrames") or 1)


@dataclass(frozen=True)
class _Header:
    """What is needed of a frame: numbers and words of the standard alone."""

    shape: tuple[int, int, int]
    frames: int
    frame: int
    codec: str
    stored: np.dtype
    bits: int  # that are used of a value
    dtype: np.dtype
    palette: bool
    inverted: bool
    slope: float
    intercept: float
    table: np.ndarray | None  # modality LUT
    first: int  # stored value of its first entry
    padding: tuple[int, int] | None  # stored values of pixels outside the image: the one that marks them, and a limit
    window: tuple[float, float] | None


def _functional(found: Any, frame: int, sequence: str) -> Any:
    """The item of an enhanced file's functional group for a frame; `None` if there is none."""
    for name, index in zip(PER_FRAME, (0, frame), strict=True):
        groups = found.get(name)
        if groups and len(groups) > index and groups[index].get(sequence):
            return groups[index].get(sequence)[0]
    return None


def _number(value: Any) -> float | None:
    """The first of one or several numbers."""
    if value is None or value == "":
        return None
    value = value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value
    number = float(value)
    if not math.isfinite(number):
        raise BrokenImage("a slope, intercept or window of DICOM that is no finite number")
    return number


def _header(found: Any, frame: int, remaining: int, real: np.dtype | None, max_pixels: int) -> _Header:
    """Of a frame, for whose pixels there are `remaining` bytes; `real` is the type of values that are no whole
    numbers."""
    rows, columns = int(found.get("Rows") or 0), int(found.get("Columns") or 0)
    samples, frames = int(found.get("SamplesPerPixel") or 1), int(found.get("NumberOfFrames") or 1)
    if not (rows and columns):
        raise BrokenImage("a DICOM file without an image")
    codec = CODECS.get(str(found.file_meta.TransferSyntaxUID))
    if codec is None:
        raise BrokenImage("a transfer syntax of DICOM that is not read (video, or one of its own)")
    colours = str(found.get("PhotometricInterpretation") or "MONOCHROME2")
    if colours not in (*GREY, *COLOURS, PALETTE) or samples != (3 if colours in COLOURS else 1):
        raise BrokenImage("a photometric interpretation of DICOM that is not read, or with other channels than it has")
    bits = int(found.get("BitsAllocated") or 16)
    if real is None and bits not in (1, 8, 16, 32):
        raise BrokenImage("a number of bits in DICOM that is not read; expected 1, 8, 16 or 32")
    bits = bits if real is None else real.itemsize * 8
    halved = colours == "YBR_FULL_422" and codec == "none"  # two pixels share their colour
    size = bits / 8 * (2 / 3 if halved else 1)
    check_size("DICOM", (samples, rows, columns), size, max_pixels, remaining, codec)
    claimed = frames * rows * columns * samples * size if codec == "none" else frames * 8  # of an item's header
    if claimed > remaining:
        raise BrokenImage(f"{frames} frames of {columns} x {rows} pixels cannot be in {remaining} bytes of DICOM")
    signed = bool(found.get("PixelRepresentation") or 0)
    stored = real or np.dtype(np.bool_ if bits == 1 else f"{'i' if signed else 'u'}{bits // 8}")
    bits = min(int(found.get("BitsStored") or bits), bits)

    modality = _functional(found, frame, "PixelValueTransformationSequence") or found
    slope, intercept = _number(modality.get("RescaleSlope")), _number(modality.get("RescaleIntercept"))
    table, first = _modality_table(found) if colours in GREY else (None, 0)
    palette = colours == PALETTE
    if colours not in GREY or table is not None:
        slope, intercept = None, None
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if slope == 0:
        raise BrokenImage("a rescale slope of 0 in DICOM, with which all values are the same")
    head = _Header(
        (3 if palette else samples, rows, columns), frames, frame, codec, stored, bits, stored, palette,
        colours == "MONOCHROME1", slope, intercept, table, first,
        _padding(found, stored) if colours in GREY else None, None,
    )  # fmt: skip
    window = _window(_functional(found, frame, "FrameVOILUTSequence") or found)
    if window and head.inverted:
        turn = sum(_span(head))
        window = turn - window[1], turn - window[0]
    return _Header(**{**vars(head), "dtype": _dtype(head, found), "window": window})


def _span(head: _Header) -> tuple[float, float]:
    """The lowest and highest value that the header makes possible, before a MONOCHROME1 is inverted."""
    if head.table is not None:
        return 0, float(np.iinfo(head.table.dtype).max)
    if head.stored.kind == "f":
        raise BrokenImage("real numbers in DICOM of which the lowest is white, without a highest")
    low, high = (
        (-(1 << head.bits - 1), (1 << head.bits - 1) - 1) if head.stored.kind == "i" else (0, (1 << head.bits) - 1)
    )
    ends = sorted((low * head.slope + head.intercept, high * head.slope + head.intercept))
    return ends[0], ends[1]


def _padding(found: Any, stored: np.dtype) -> tuple[int, int] | None:
    """The stored value of pixels outside the image, and the other end of the range of them."""
    mark, limit = found.get("PixelPaddingValue"), found.get("PixelPaddingRangeLimit")
    if mark is None or mark == "" or stored.kind not in "iu":
        return None
    ends = [mark, mark if limit is None or limit == "" else limit]
    low = np.iinfo(stored).min  # the header may say a value with a sign where pixels have none, or the reverse
    first, last = ((int(end) - low) % (1 << 8 * stored.itemsize) + low for end in ends)
    return first, last


def _stored_span(head: _Header) -> tuple[float, float]:
    """As `_span`, before the modality transformation."""
    return _span(_Header(**{**vars(head), "slope": 1.0, "intercept": 0.0, "table": None}))


def _dtype(head: _Header, found: Any) -> np.dtype:
    """Of the values that are read: whole numbers as long as all possible ones are exact."""
    if head.palette:
        return np.dtype(np.uint16 if int(found.RedPaletteColorLookupTableDescriptor[2]) == 16 else np.uint8)
    if head.table is not None:
        return head.table.dtype
    if head.slope == 1 and head.intercept == 0:
        return head.stored
    if head.stored.kind == "f":
        return np.dtype(np.float64)
    low, high = _span(head)
    if head.padding is not None:  # which may be beyond the bits that are stored
        turn = sum(_span(head)) if head.inverted else None
        mark = head.padding[0] * head.slope + head.intercept
        mark = mark if turn is None else turn - mark
        low, high = min(low, mark), max(high, mark)
    if not (head.slope.is_integer() and head.intercept.is_integer() and max(-low, high) < MOST):
        return np.dtype(np.float64)
    kinds = [np.dtype(f"{kind}{size}") for size in (1, 2, 4, 8) for kind in "ui"]
    return next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)


def _modality_table(found: Any) -> tuple[np.ndarray | None, int]:
    if not found.get("ModalityLUTSequence"):
        return None, 0
    item = found.ModalityLUTSequence[0]
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    order = "<" if found.original_encoding[1] else ">"
    table = np.frombuffer(data, order + "u2") if isinstance(data, bytes) else np.asarray(data)
    if bits not in (8, 16) or len(table) != (count or 1 << 16):
        raise BrokenImage("a modality table of DICOM whose length or type is not what it says")
    return table.astype(np.uint8 if bits == 8 else np.uint16), first


def _window(found: Any) -> tuple[float, float] | None:
    """The lowest and highest value that the first window shows, by the formulas of the standard (part 3, C.11.2.1.2
    and C.11.2.1.3); `None` without one, and for a sigmoid, which has no ends."""
    center, width = _number(found.get("WindowCenter")), _number(found.get("WindowWidth"))
    function = str(found.get("VOILUTFunction") or "LINEAR")
    if center is None or width is None or width <= 0 or function not in ("LINEAR", "LINEAR_EXACT"):
        return None
    if function == "LINEAR_EXACT":
        return center - width / 2, center + width / 2
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def open_dicom(data: bytes, pages: str | None, page: int | None, max_pixels: int) -> ArrayImage:
    """As `open_array`, of a DICOM file."""
    with _silent("opening"):
        file = io.BytesIO(data)
        found = _dataset(file, False)
        remaining = len(data) - file.tell()
        group, number = struct.unpack("<HH" if found.original_encoding[1] else ">HH", file.read(4).ljust(4, b"\0"))
        if (group, number) not in PIXEL_ELEMENTS:
            raise BrokenImage("a DICOM file without an image")
        real = PIXEL_ELEMENTS[group, number]
        head = _header(found, 0, remaining, real, max_pixels)
        chosen = choose_pages(head.frames, pages, page, "frames")
        check_size("DICOM", (head.shape[0] * len(chosen), *head.shape[1:]), 0, max_pixels, 0)
        return DicomImage(data, [_header(found, frame, remaining, real, max_pixels) for frame in chosen])


def _window_of_all(frames: list[_Header]) -> Window | None:
    """Of the channels that frames become; `None` if one has none."""
    windows = [head.window for head in frames for _ in range(head.shape[0])]
    if None in windows or len(set(windows)) == 1:
        return None if None in windows else windows[0]
    low, high = zip(*windows, strict=True)
    return low, high


class DicomImage(ArrayImage):
    """Some frames of a file, one behind the other as channels: after the modality transformation, with high values
    bright."""

    def __init__(self, data: bytes, frames: list[_Header]):
        self.data, self.frames = data, frames
        first = frames[0]
        channels, height, width = first.shape
        dtype = np.result_type(*{head.dtype for head in frames})
        super().__init__("DICOM", (channels * len(frames), height, width), dtype, _window_of_all(frames))
        marks = {None if head.padding is None else self._mark(head) for head in frames}
        self.nodata = next(iter(marks)) if len(marks) == 1 else None
        if len(marks) > 1:  # by the slope of each frame
            self.dtype = np.dtype(np.float64)

    def _mark(self, head: _Header) -> float:
        """What pixels outside the image become."""
        assert head.padding is not None
        return float(self._modality(np.full((1, 1, 1), head.padding[0], head.stored), head)[0, 0, 0])

    def read(self, box: Box | None = None) -> np.ndarray:
        with _silent("decoding"):
            found = _dataset(io.BytesIO(self.data), True)
            parts = [self._frame(found, head) for head in self.frames]
            if self.nodata is None:
                parts = [
                    part if head.padding is None else np.where(part == self._mark(head), np.nan, part)
                    for part, head in zip(parts, self.frames, strict=True)
                ]
            values = np.concatenate(parts)
            top, left, height, width = box or (0, 0, self.height, self.width)
            return native(values[:, top : top + height, left : left + width], self.dtype)

    def _frame(self, found: Any, head: _Header) -> np.ndarray:
        from pydicom.pixels.processing import apply_color_lut

        from .dicom_codecs import frame

        values = frame(found, head.frame, head.codec)
        if head.palette:
            values = apply_color_lut(values, found)[..., :3]
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        if values.shape != head.shape:
            raise BrokenImage("a frame of DICOM of another size than its header says")
        if head.palette or head.shape[0] == 3:
            return values
        if head.stored.kind != "f":
            low, high = _stored_span(head)
            if values.min() < low or values.max() > high:
                raise BrokenImage("values in DICOM beyond the bits that its header says are stored")
        if head.padding is not None:
            first, last = min(head.padding), max(head.padding)
            beyond = first < low or last > high  # where the bits that are used do not tell it from others
            whole = frame(found, head.frame, head.codec, all_bits=True)[None] if beyond else values
            values = np.where((whole >= first) & (whole <= last), head.stored.type(head.padding[0]), values)
        return self._modality(values, head)

    def _modality(self, values: np.ndarray, head: _Header) -> np.ndarray:
        if head.table is not None:
            values = head.table[np.clip(values.astype(np.int64) - head.first, 0, len(head.table) - 1)]
        elif head.slope != 1 or head.intercept != 0:
            wide = np.float64 if head.dtype.kind == "f" else np.int64
            values = values.astype(wide) * wide(head.slope) + wide(head.intercept)
        if head.inverted:
            turn = sum(_span(head))
            values = (turn if values.dtype.kind == "f" else np.int64(turn)) - values
        return values.astype(head.dtype, copy=False)
