"""A histogram of values whose range is not known before."""

from typing import Any

import numpy as np


BINS = 2**16


class EqualBins:
    """Counts of values in bins of equal width, a power of two that grows with the range: at least 2**14 of them lie
    between the lowest and the highest value, unless these are whole numbers of which there are fewer. Counts are the
    same in whatever order values come.

    Args:
        whole: whether values are whole numbers, each of which may have a bin of its own.

    Attributes:
        counts: (2**16,) int64, from the bin of the lowest value on.
        low, high: the lowest and the highest value; infinity and its negative if there is none.
    """

    def __init__(self, whole: bool):
        self.whole = whole
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.low, self.high = np.inf, -np.inf

    @property
    def exponent(self) -> int:
        """The width of a bin is 2 to this."""
        if not self.low <= self.high:
            return 0
        most, half = max(abs(self.low), abs(self.high)), self.high / 2 - self.low / 2
        narrowest = 0 if self.whole else max(int(np.frexp(most)[1]) - 53, -1074) if most else -1074  # of float64
        return max(narrowest, int(np.frexp(half)[1]) - 14) if half else narrowest

    def _place(self, values: Any) -> Any:
        """The bin of values, counted from that of 0."""
        return np.floor(np.ldexp(values, -self.exponent)).astype(np.int64)

    def _widen(self, low: float, high: float):
        """Have bins for values between these limits, too."""
        if self.low <= low and high <= self.high:
            return
        counts, first, exponent, some = self.counts, self._first, self.exponent, self.low <= self.high
        self.low, self.high = min(self.low, low), max(self.high, high)
        if some:
            places = (np.arange(BINS) + first >> self.exponent - exponent) - self._first
            self.counts = np.zeros(BINS, dtype=np.int64)
            np.add.at(self.counts, np.minimum(places, BINS - 1), counts)  # bins beyond the last one are empty

    @property
    def _first(self) -> int:
        return int(self._place(self.low)) if self.low <= self.high else 0

    def add(self, values: np.ndarray):
        """Count finite values, (count,) float64."""
        if values.size:
            self._widen(float(values.min()), float(values.max()))
            self.counts += np.bincount(self._place(values) - self._first, minlength=BINS)

    def merge(self, other: "EqualBins"):
        """Count what another has counted as well."""
        if other.low <= other.high:
            self._widen(other.low, other.high)
            both = EqualBins(self.whole)
            both.counts, both.low, both.high = other.counts, other.low, other.high
            both._widen(self.low, self.high)
            self.counts = self.counts + both.counts

    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """(bins,) float64 each: the middle of each bin, and how far apart its values may lie."""
        with np.errstate(over="ignore"):  # beyond the highest value
            starts = np.ldexp((np.arange(BINS) + self._first).astype(np.float64), self.exponent)
        width = np.ldexp(1.0, self.exponent) - self.whole
        return starts + width / 2, np.full(BINS, width)
