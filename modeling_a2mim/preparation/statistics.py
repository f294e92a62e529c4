"""Mean, standard deviation, range and percentiles of each channel, summed up part by part to the same numbers."""

import math
import os
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from ..utils.value_range import short_limits
from .equal_bins import EqualBins


PERCENTILES = (0.5, 99.5)
INFINITE = 0x7F800000  # bits that all are set in float32 that are not finite
COARSE = 0.02  # of a range: values that are not known better give none
PHOTOGRAPHS = ("uint8-1", "uint8-3", "uint8-2-alpha", "uint8-4-alpha")  # which training makes RGB of


class Group:
    """What is counted of images of one type and number of channels.

    Values of up to 16 bits are counted one by one, so that all is exact. Of others, mean and standard deviation are
    those of float64, and percentiles come from two histograms, of which the one counts that has the narrower bin: by
    the upper 16 bits of float32, to within 0.4% of a value, and by bins of equal width (`EqualBins`), for values far
    from 0 that lie close together.

    Args:
        dtype: of the values.
        channels: of the images.
    """

    def __init__(self, dtype: np.dtype, channels: int):
        self.dtype, self.images = np.dtype(dtype), 0
        self.exact = self.dtype.kind in "iu" and self.dtype.itemsize <= 2
        bins = 256 if self.dtype.itemsize == 1 else 2**16
        self.counts = np.zeros((channels, bins), dtype=np.int64)
        self.unknown = np.zeros(channels, dtype=np.int64)  # values that are not finite, or marked
        self.moments = np.zeros((channels, 2))  # mean, and sum of the squared differences from it
        self.equal = [] if self.exact else [EqualBins(self.dtype.kind in "iu") for _ in range(channels)]

    def add(self, values: np.ndarray, unknown: float | None = None):
        """Count an image (channels, height, width), but for values of which nothing is known."""
        self.images += 1
        for channel, own in enumerate(values.reshape(len(values), -1)):
            if unknown is not None:
                self.unknown[channel] += np.count_nonzero(own == unknown)
                own = own[own != unknown]
            if self.exact:
                bins = own.astype(np.int64) - np.iinfo(self.dtype).min
            else:
                finite = own[np.isfinite(own)]
                self.unknown[channel] += own.size - finite.size
                wide = finite.astype(np.float64)
                if finite.size:
                    mean = wide.mean()
                    self._add_moments(channel, finite.size, np.array([mean, np.square(wide - mean).sum()]))
                self.equal[channel].add(wide)
                bins = _bins(finite)
            self.counts[channel] += np.bincount(bins, minlength=self.counts.shape[1])

    def _add_moments(self, channel: int, count: int, moments: np.ndarray):
        """To be called before `count` values are counted (Chan et al., 1979: no difference of large sums)."""
        before, own = self.counts[channel].sum(), self.moments[channel]
        share, far = count / (before + count), moments[0] - own[0]
        own += far * share, moments[1] + far**2 * before * share

    def merge(self, other: "Group"):
        """Count what another has counted as well."""
        self.images += other.images
        self.unknown += other.unknown
        for channel, bins in enumerate(self.equal):
            if count := other.counts[channel].sum():
                self._add_moments(channel, count, other.moments[channel])
                bins.merge(other.equal[channel])
        self.counts += other.counts

    def _limits(self, channel: int) -> tuple[float, float]:
        """The lowest and the highest value, 0 if there is none."""
        there = np.flatnonzero(self.counts[channel])
        if not len(there):
            return 0.0, 0.0
        if self.exact:
            least = np.iinfo(self.dtype).min
            return float(there[0] + least), float(there[-1] + least)
        return self.equal[channel].low, self.equal[channel].high

    def _histograms(self, channel: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each, (bins,): the middle of each bin, how far apart its values may lie, and their count."""
        counts = self.counts[channel]
        if self.exact:
            levels = np.arange(len(counts), dtype=np.float64) + np.iinfo(self.dtype).min
            return [(levels, np.zeros(len(counts)), counts)]
        return [(*_float32_bins(), counts), (*self.equal[channel].levels(), self.equal[channel].counts)]

    def summary(self) -> dict[str, Any]:
        """What is known of each channel, in the values that are stored; those of 8 bits have mean and standard
        deviation in [0, 1]. All is 0 of a channel without any finite value."""
        total, channels = self.counts.sum(1), range(len(self.counts))
        some = np.maximum(total, 1)
        if self.exact:
            levels = self._histograms(0)[0][0]
            mean = self.counts @ levels / some
            squares = np.array([own @ np.square(levels - m) for own, m in zip(self.counts, mean, strict=True)])
        else:
            mean, squares = self.moments.T
        std = np.sqrt(squares / some)
        limits = [self._limits(channel) for channel in channels]
        scale = 255 if self.dtype == np.uint8 else 1
        found = {
            "dtype": str(self.dtype),
            "channels": len(self.counts),
            "images": self.images,
            "pixels": int(total.max()),
            "mean": (mean / scale).tolist(),
            "std": (std / scale).tolist(),
            "min": [low for low, _ in limits],
            "max": [high for _, high in limits],
            "percentiles": {f"{p:g}": [self._percentile(channel, p) for channel in channels] for p in PERCENTILES},
        }
        return {**found, "unknown": int(self.unknown.sum())} if self.unknown.any() else found

    def _percentile(self, channel: int, percent: float) -> float:
        """The smallest value that so many percent of the pixels do not exceed, 0 if there are none."""
        total = int(self.counts[channel].sum())
        rank, found = max(math.ceil(total * percent / 100), 1), []
        for levels, widths, counts in self._histograms(channel) if total else ():
            place = int(np.searchsorted(np.cumsum(counts), rank))
            found.append((widths[place], levels[place]))
        low, high = self._limits(channel)
        return float(np.clip(min(found)[1], low, high)) if found else 0.0

    def in_range(self, low: float, high: float) -> tuple[list[float], list[float], float]:
        """Mean and standard deviation of each channel where `low` becomes 0 and `high` 1, and what lies outside is cut
        off; and within how much each value between is known."""
        means, stds, widest = [], [], 0.0
        for channel in range(len(self.counts)):
            found = []
            for levels, widths, counts in self._histograms(channel):
                inside = (counts > 0) & (levels + widths / 2 > low) & (levels - widths / 2 < high)
                found.append((widths[inside].max(initial=0), levels, counts))
            width, levels, counts = min(found, key=lambda one: one[0])
            scaled, total = np.clip((levels - low) / (high - low), 0, 1), max(counts.sum(), 1)
            means.append(float(counts @ scaled / total))
            stds.append(float(np.sqrt(counts @ np.square(scaled - means[-1]) / total)))
            widest = max(widest, float(width))
        return means, stds, widest


def _float32_bins() -> tuple[np.ndarray, np.ndarray]:
    """(2**16,) float64 each: the middle of each bin of `_bins`, and its width."""
    keys = np.arange(2**16, dtype=np.uint32)
    bits = np.where(keys >= 2**15, keys ^ 2**15, keys ^ (2**16 - 1)) << 16
    bits = np.where(bits & INFINITE == INFINITE, 0, bits).astype(np.uint32)  # infinity and NaN, of which are none
    ends = [(bits | inner).astype(np.uint32).view(np.float32).astype(np.float64) for inner in (0, 2**15, 2**16 - 1)]
    return ends[1], np.abs(ends[2] - ends[0])


def _bins(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits of values as float32, in an order that is that of the values."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32) >> 16
    return np.where(bits >= 2**15, bits ^ (2**16 - 1), bits ^ 2**15).astype(np.int64)


class Statistics:
    """Groups of images by type, number of channels and transparency."""

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}

    def add(self, values: np.ndarray, alpha: bool = False, unknown: float | None = None):
        """Count an image (channels, height, width), but for values of which nothing is known."""
        key = f"{values.dtype}-{len(values)}" + "-alpha" * alpha
        self.groups.setdefault(key, Group(values.dtype, len(values))).add(values, unknown)

    def save(self, path: str | os.PathLike):
        """Write what was counted to a file."""
        arrays = {}
        for key, group in self.groups.items():
            arrays[f"{key}/images"] = np.array(group.images)
            arrays |= {f"{key}/{name}": getattr(group, name) for name in ("counts", "moments", "unknown")}
            arrays[f"{key}/equal"] = np.array([bins.counts for bins in group.equal])
            arrays[f"{key}/limits"] = np.array([(bins.low, bins.high) for bins in group.equal])
        with open(path, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """What `save` wrote."""
        found = cls()
        with np.load(path, allow_pickle=False) as arrays:
            for key in dict.fromkeys(entry.split("/")[0] for entry in arrays.files):
                dtype, channels = key.split("-")[:2]
                group = found.groups[key] = Group(np.dtype(dtype), int(channels))
                group.images = int(arrays[f"{key}/images"])
                for name in ("counts", "moments", "unknown"):
                    setattr(group, name, arrays[f"{key}/{name}"])
                for channel, bins in enumerate(group.equal):
                    bins.counts = arrays[f"{key}/equal"][channel]
                    bins.low, bins.high = arrays[f"{key}/limits"][channel].tolist()
        return found

    @classmethod
    def total(cls, parts: Iterable["Statistics"]) -> Self:
        """All parts together. Photographs of several numbers of channels become those of RGB, as training makes them:
        grey is the same in all channels, and transparency is dropped."""
        found = cls()
        for part in parts:
            for key, group in part.groups.items():
                found.groups.setdefault(key, Group(group.dtype, len(group.counts))).merge(group)
        kinds = [key for key in PHOTOGRAPHS if key in found.groups]
        if len(kinds) > 1 or "uint8-4-alpha" in kinds:
            rgb = Group(np.dtype(np.uint8), 3)
            for key in kinds:
                own = found.groups.pop(key)
                own.counts = np.repeat(own.counts[:1], 3, 0) if len(own.counts) < 3 else own.counts[:3]
                own.unknown = own.unknown[:1]
                rgb.merge(own)
            found.groups = {"uint8-3": rgb, **found.groups}
        return found

    def summary(self) -> list[dict[str, Any]]:
        """`Group.summary` of each, with the `flags` of a run that trains on them, or `no_flags`, why there are none;
        the largest first."""
        groups = sorted(self.groups.values(), key=lambda group: -group.images)
        return [{**group.summary(), **flags_of(group)} for group in groups]


def flags_of(group: Group) -> dict[str, str]:
    """The `flags` of a run that trains on the images of a group; where these are empty, `no_flags` says why."""
    known, channels = group.summary(), len(group.counts)
    flags = [] if channels == 3 else ["--num_channels", str(channels)]
    mean, std = known["mean"], known["std"]
    if group.dtype != np.uint8:
        some = np.flatnonzero(group.counts.any(1))  # channels with a finite value
        if not len(some):
            return {"flags": "", "no_flags": "there is no finite value"}
        lows, highs = (np.array(known["percentiles"][f"{p:g}"])[some] for p in PERCENTILES)
        low, high = lows.min(), highs.max()
        if not low < high:
            return {"flags": "", "no_flags": f"all but 1% of the values are {low:.12g}; give --value_range LOW HIGH"}
        words = short_limits(low, high)
        mean, std, width = group.in_range(*map(float, words))
        if width > COARSE * (high - low):
            most = short_limits(min(known["min"]), max(known["max"]))
            reason = (
                f"percentiles are known to within {width:.3g} alone, as values are {most[0]} to {most[1]}; mark those "
                "that mean nothing as nodata, or give --value_range LOW HIGH"
            )
            return {"flags": "", "no_flags": reason}
        flags += ["--value_range", *words]
    flags += ["--image_mean", *(f"{value:.4f}" for value in mean)]
    if min(std) > 0:
        flags += ["--image_std", *(f"{max(value, 1e-4):.4f}" for value in std)]
    return {"flags": " ".join(flags)}
