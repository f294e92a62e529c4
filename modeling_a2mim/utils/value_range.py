"""From the values that an image file stores (of 12 bits, of radar, of a CT) to numbers in [0, 1]."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


AUTO, PERCENTILE, WINDOW = "auto", "percentile", "window"  # beside two numbers, what --value_range takes
NO_WINDOW = "its header has no window, which --value_range window asks for"
UNCLIPPED = "unclipped"  # the last word, where nothing is to be cut off
SAMPLES = "samples"
FIRST = "first"
PAGES = ("channels", SAMPLES, FIRST)  # what several pages of a file may be
FIELD = "value_range"
STORED_FIELDS = (FIELD, "channels", "pages", "display_channels")  # of `A2MIMConfig`, what is taken of stored images
STORED = "stored_images"  # where other configurations hold them, those that are given


@dataclass(frozen=True)
class ValueRange:
    """Stored values become (value - low) / (high - low), in float32. NaN becomes 0; infinities are cut off as other
    values, or become 0 as well where nothing is.

    Args:
        low, high: the values that become 0 and 1: one number for all channels, or one for each; of `PERCENTILE`, which
            percentiles of each channel of each image are.
        clip: whether what lies outside is cut off, as by the window of a radiologist, or goes on beyond 0 and 1.
        of: `None`, the same for all images; or `PERCENTILE`, or `WINDOW` (what the header of each DICOM file says).

    Raises:
        ValueError: naming `value_range`, if these are no ranges.
    """

    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    clip: bool = True
    of: str | None = None

    def __post_init__(self):
        pairs = list(zip(self.low, self.high, strict=False))
        if self.of not in (None, PERCENTILE, WINDOW):
            _refuse(f"expected {PERCENTILE} or {WINDOW}, got {self.of!r}")
        if len(self.low) != len(self.high) or bool(pairs) == (self.of == WINDOW):
            _refuse(f"expected as many lowest as highest values, got {list(self.low)} and {list(self.high)}")
        for low, high in pairs:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                _refuse(f"the lowest value must be below the highest, got {low:.12g} {high:.12g}")
            if self.of == PERCENTILE and not 0 <= low < high <= 100:
                _refuse(f"percentiles are in [0, 100], got {low:g} {high:g}")

    @classmethod
    def from_words(cls, words: Sequence[str]) -> Self | None:
        """What the command line says: LOW HIGH, once or for each channel; `percentile LOW HIGH`; `window`; with
        `unclipped` at its end if wanted. `None` for `auto`, which is found in the data. Raises ValueError naming
        `value_range`."""
        given = " ".join(map(str, words))  # in Python, "0 4095" may be one string
        words = given.split()
        clip = words[-1:] != [UNCLIPPED]
        words = words if clip else words[:-1]
        if not words:
            return _refuse(f"expected LOW HIGH{'' if clip else f' before {UNCLIPPED}'}, got {given!r}")
        kind, numbers = (None, words) if _is_number(words[0]) else (words[0], words[1:])
        if kind == AUTO and not numbers and clip:
            return None
        if kind == WINDOW and not numbers:
            return cls(clip=clip, of=WINDOW)
        if kind in (None, PERCENTILE) and numbers and len(numbers) % 2 == 0 and all(map(_is_number, numbers)):
            values = [float(number) for number in numbers]
            return cls(tuple(values[::2]), tuple(values[1::2]), clip, kind)
        return _refuse(
            f"expected LOW HIGH (once, or for each channel), {PERCENTILE} LOW HIGH, {WINDOW} or {AUTO}, got {given}"
        )

    @classmethod
    def from_config(cls, value: Any) -> Self | None:
        """What a configuration holds, as `to_config` gives it. Raises ValueError naming `value_range`."""
        if value is None or isinstance(value, cls):
            return value
        try:
            low, high = (tuple(float(number) for number in value.get(name, ())) for name in ("low", "high"))
            return cls(low, high, bool(value.get("clip", True)), value.get("of"))
        except (AttributeError, TypeError) as error:
            return _refuse(f"expected low, high, clip and of, got {value!r} ({error})")

    def to_words(self) -> list[str]:
        """What the command line would say."""
        numbers = [f"{limit!r}" for pair in zip(self.low, self.high, strict=True) for limit in pair]
        return [*([self.of] if self.of else []), *numbers, *([] if self.clip else [UNCLIPPED])]

    def to_config(self) -> dict[str, Any]:
        """JSON."""
        found: dict[str, Any] = {"low": list(self.low), "high": list(self.high), "clip": self.clip}
        return {**found, "of": self.of} if self.of else found

    def holds_bytes(self) -> bool:
        """Whether values of 8 bits, 0 to 255, may be meant: they fill this range, or it is that of each image."""
        if self.of is not None:
            return True
        return all(low >= 0 and 1 < high <= 255 for low, high in zip(self.low, self.high, strict=True))

    def check(self, channels: int) -> None:
        """Refuse a range of other channels. Raises ValueError naming `value_range`."""
        if len(self.low) not in (0, 1, channels):
            _refuse(f"has {len(self.low)} ranges; expected one, or one for each of the {channels} channels")

    def limits(self, values: np.ndarray, window: Sequence[Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The stored values that become 0 and 1, both (channels or 1, 1, 1) float64.

        Args:
            values: (channels, height, width) of the whole image; needed for percentiles alone.
            window: the lowest and highest value that the header of the image says, numbers or (channels,).

        Raises:
            ValueError: if a window is asked for and there is none.
        """
        low, high = np.array(self.low, dtype=np.float64), np.array(self.high, dtype=np.float64)
        if self.of == WINDOW:
            if window is None:
                raise ValueError(NO_WINDOW)
            low, high = (np.array(end, dtype=np.float64).reshape(-1) for end in window)
        elif self.of == PERCENTILE:
            low, high = _percentiles(values, low, high)
        return low[:, None, None], high[:, None, None]

    def scale(self, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Stored values (channels, height, width) by `limits`: float32, where low and high are the same, 0. A value
        becomes the same whatever type it is stored in: what float64 gives, rounded once."""
        width = np.where(high > low, high - low, np.inf)
        kind: np.dtype[Any] = np.dtype(np.float32 if _is_exact_in_float32(values.dtype, low, width) else np.float64)
        with np.errstate(over="ignore"):  # what is beyond a type, as some marks of nodata, is as good as infinite
            found = values.astype(kind, order="C")
            found -= low.astype(kind)
            found /= width.astype(kind)
            if self.clip:
                np.clip(found, 0, 1, out=found)
            found = found.astype(np.float32, copy=False)
        if not np.issubdtype(values.dtype, np.integer):
            found[~np.isfinite(found)] = 0
        return found

    def __str__(self) -> str:
        pairs = list(zip(self.low, self.high, strict=True))
        shown = ", ".join(" to ".join(short_limits(low, high)) for low, high in pairs[:4]) + (
            ", ..." if len(pairs) > 4 else ""
        )
        if self.of == WINDOW:
            return "the window of each file"
        return f"percentiles {shown} of each image" if self.of else shown + ("" if self.clip else ", not cut off")


def short_limits(low: float, high: float) -> tuple[str, str]:
    """Two finite numbers in six digits, or in as many more as change neither by over 0.01% of what lies between, and
    as leave no power of ten to numbers below 1e16."""
    most, found = abs(high - low) / 10_000, []
    for value in (low, high):
        texts = (f"{value:.{digits}g}" for digits in range(6, 18))
        found.append(next(t for t in texts if abs(float(t) - value) <= most and ("e+" not in t or abs(value) >= 1e16)))
    return found[0], found[1]


def stored_fields(data: dict[str, Any]) -> dict[str, Any]:
    """`STORED` of a config.json, as fields of `A2MIMConfig`.

    Raises:
        ValueError: naming it, if it holds anything else.
    """
    found = data.get(STORED) or {}
    if not isinstance(found, dict) or not found.keys() <= set(STORED_FIELDS):
        raise ValueError(f"{STORED}: expected an object with {', '.join(STORED_FIELDS)}, got {found!r}")
    return found


def checked_fields(fields: dict[str, Any], num_channels: int) -> dict[str, Any]:
    """Those of `STORED_FIELDS` that are given, as JSON gives them back. Raises ValueError naming the wrong one."""
    found, chosen, shown = dict(fields), fields.get("channels"), fields.get("display_channels")
    if (known := ValueRange.from_config(fields.get(FIELD))) is not None:
        known.check(num_channels)
        found[FIELD] = known.to_config()
    if fields.get("pages", PAGES[0]) not in PAGES:
        raise ValueError(f"pages: must be one of {', '.join(PAGES)}, got {fields['pages']!r}")
    if chosen is not None:
        if not _are_numbers(chosen) or not chosen or min(chosen) < 1:
            raise ValueError(f"channels: must be numbers of channels, from 1, got {chosen!r}")
        if len(chosen) != num_channels:
            raise ValueError(f"channels: {len(chosen)} are chosen, but num_channels is {num_channels}")
        found["channels"] = list(chosen)
    if shown is not None:
        ok = _are_numbers(shown) and len(shown) in (1, 3) and all(1 <= number <= num_channels for number in shown)
        if not ok:
            raise ValueError(f"display_channels: must be one or three numbers from 1 to {num_channels}, got {shown!r}")
        found["display_channels"] = list(shown)
    return found


def _are_numbers(values: Any) -> bool:
    whole = isinstance(values, (list, tuple)) and all(isinstance(value, int) for value in values)
    return whole and not any(isinstance(value, bool) for value in values)


def _percentiles(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    channels = len(values)
    found = np.zeros((2, channels))
    first, last = np.broadcast_to(low, channels), np.broadcast_to(high, channels)
    for i in range(channels):
        finite = values[i][np.isfinite(values[i])]
        if finite.size:  # else a channel that is missing
            found[:, i] = np.percentile(finite.astype(np.float64), [first[i], last[i]])
    return found[0], found[1]


def _is_exact_in_float32(dtype: np.dtype, low: np.ndarray, width: np.ndarray) -> bool:
    """Whether (value - low) / width, of integers of up to 16 bits, is the same computed in float32 (in a fifth of the
    time) as in float64 and then rounded. The difference has at most 24 bits here, so that it is exact in both; and a
    quotient of two numbers of 24 bits that is rounded to 53 bits first is rounded to 24 as it would be at once (double
    rounding is innocuous from 2 x 24 + 2 bits on: Figueroa, 1995)."""
    if not (np.issubdtype(dtype, np.integer) and dtype.itemsize <= 2):
        return False
    short = (np.abs(low) <= 2**16) & (low * 64 == np.rint(low * 64))
    with np.errstate(over="ignore"):
        return bool(np.all(short) and np.all(width.astype(np.float32) == width))


def _is_number(word: Any) -> bool:
    try:
        float(word)
    except (TypeError, ValueError):
        return False
    return True


def _refuse(message: str) -> Any:
    raise ValueError(f"{FIELD}: {message}")
