"""Mean, standard deviation, range and percentiles of each channel, summed up part by part to the same numbers."""

import os
from collections.abc import Iterable
from typing import Any, Self

import numpy as np


PERCENTILES = (0.5, 99.5)
INFINITE = 0x7F800000  # bits that all are set in float32 that are not finite
PHOTOGRAPHS = ("uint8-1", "uint8-3", "uint8-2-alpha", "uint8-4-alpha")  # which training makes RGB of


class Group:
    """What is counted of images of one type and number of channels.

    Values of up to 16 bits are counted one by one, so that all is exact. Of others the sums are those of float64, and
    percentiles are of the upper 16 bits of float32: to within 0.4% of a value.

    Args:
        dtype: of the values.
        channels: of the images.
    """

    def __init__(self, dtype: np.dtype, channels: int):
        self.dtype, self.images = np.dtype(dtype), 0
        self.exact = self.dtype.kind in "iu" and self.dtype.itemsize <= 2
        bins = 256 if self.dtype.itemsize == 1 else 2**16
        self.counts = np.zeros((channels, bins), dtype=np.int64)
        self.sums = np.zeros((channels, 2))  # of values and of their squares
        self.limits = np.array([[np.inf, -np.inf]] * channels)
        self.unknown = np.zeros(channels, dtype=np.int64)  # values that are not finite, or marked

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
                self.sums[channel] += wide.sum(), np.square(wide).sum()
                if finite.size:
                    low, high = self.limits[channel]
                    self.limits[channel] = min(low, wide.min()), max(high, wide.max())
                bins = _bins(finite)
            self.counts[channel] += np.bincount(bins, minlength=self.counts.shape[1])

    def merge(self, other: "Group"):
        """Count what another has counted as well."""
        self.images += other.images
        self.counts += other.counts
        self.sums += other.sums
        self.unknown += other.unknown
        self.limits[:, 0] = np.minimum(self.limits[:, 0], other.limits[:, 0])
        self.limits[:, 1] = np.maximum(self.limits[:, 1], other.limits[:, 1])

    @property
    def levels(self) -> np.ndarray:
        """(bins,) float64, the value that each bin counts."""
        if self.exact:
            return np.arange(self.counts.shape[1], dtype=np.float64) + np.iinfo(self.dtype).min
        keys = np.arange(2**16, dtype=np.uint32)
        bits = np.where(keys >= 2**15, keys ^ 2**15, keys ^ (2**16 - 1)) << 16 | 2**15  # the middle of the bin
        bits = np.where(bits & INFINITE == INFINITE, 0, bits).astype(np.uint32)  # infinity and NaN, of which are none
        return bits.view(np.float32).astype(np.float64)

    def summary(self) -> dict[str, Any]:
        """What is known of each channel, in the values that are stored; those of 8 bits have mean and standard
        deviation in [0, 1]. All is 0 of a channel without any finite value."""
        total, levels = self.counts.sum(1), self.levels
        some = np.maximum(total, 1)
        if self.exact:
            mean = self.counts @ levels / some
            std = np.sqrt(
                np.array([own @ np.square(levels - m) for own, m in zip(self.counts, mean, strict=True)]) / some
            )
            ranges = [np.flatnonzero(own)[[0, -1]] if own.any() else None for own in self.counts]
            limits = np.array([(0.0, 0.0) if own is None else levels[own] for own in ranges])
        else:
            mean = self.sums[:, 0] / some
            std = np.sqrt(np.maximum(self.sums[:, 1] / some - np.square(mean), 0))
            limits = np.where(total[:, None] > 0, self.limits, 0.0)
        scale = 255 if self.dtype == np.uint8 else 1
        found = {
            "dtype": str(self.dtype),
            "channels": len(self.counts),
            "images": self.images,
            "pixels": int(total.max()),
            "mean": (mean / scale).tolist(),
            "std": (std / scale).tolist(),
            "min": limits[:, 0].tolist(),
            "max": limits[:, 1].tolist(),
            "percentiles": {f"{p:g}": self._percentile(p, levels, limits).tolist() for p in PERCENTILES},
        }
        return {**found, "unknown": int(self.unknown.sum())} if self.unknown.any() else found

    def _percentile(self, percent: float, levels: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """The smallest value that so many percent of the pixels do not exceed."""
        sums = np.cumsum(self.counts, axis=1)
        ranks = np.maximum(np.ceil(sums[:, -1] * percent / 100), 1)
        bins = [min(int(np.searchsorted(own, rank)), len(own) - 1) for own, rank in zip(sums, ranks, strict=True)]
        found = levels[bins]
        return np.clip(found, limits[:, 0], limits[:, 1])

    def in_range(self, low: float, high: float) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel where `low` becomes 0 and `high` 1, and what lies outside is cut
        off."""
        scaled = np.clip((self.levels - low) / (high - low), 0, 1)
        total = np.maximum(self.counts.sum(1), 1)
        mean = self.counts @ scaled / total
        squares = [own @ np.square(scaled - m) for own, m in zip(self.counts, mean, strict=True)]
        return mean.tolist(), np.sqrt(np.array(squares) / total).tolist()


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
            arrays |= {f"{key}/{name}": getattr(group, name) for name in ("counts", "sums", "limits", "unknown")}
        with open(path, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """What `save` wrote."""
        found = cls()
        with np.load(path, allow_pickle=False) as arrays:
            for entry in arrays.files:
                key, name = entry.split("/")
                dtype, channels = key.split("-")[:2]
                group = found.groups.setdefault(key, Group(np.dtype(dtype), int(channels)))
                setattr(group, name, int(arrays[entry]) if name == "images" else arrays[entry])
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
                own.sums, own.limits, own.unknown = own.sums[:1], own.limits[:1], own.unknown[:1]
                rgb.merge(own)
            found.groups = {"uint8-3": rgb, **found.groups}
        return found

    def summary(self) -> list[dict[str, Any]]:
        """`Group.summary` of each, with the `flags` of a run that trains on them; the largest first."""
        groups = sorted(self.groups.values(), key=lambda group: -group.images)
        return [{**group.summary(), "flags": flags_of(group)} for group in groups]


def flags_of(group: Group) -> str:
    """The flags of a run that trains on the images of a group."""
    known, channels = group.summary(), len(group.counts)
    flags = [] if channels == 3 else ["--num_channels", str(channels)]
    mean, std = known["mean"], known["std"]
    if group.dtype != np.uint8:
        some = np.flatnonzero(group.counts.any(1))  # channels with a finite value
        lows, highs = (np.array(known["percentiles"][f"{p:g}"])[some] for p in PERCENTILES)
        if not len(some) or not lows.min() < highs.max():
            return ""
        low, high = lows.min(), highs.max()
        flags += ["--value_range", f"{low:g}", f"{high:g}"]
        mean, std = group.in_range(float(f"{low:g}"), float(f"{high:g}"))
    flags += ["--image_mean", *(f"{value:.4f}" for value in mean)]
    if min(std) > 0:
        flags += ["--image_std", *(f"{max(value, 1e-4):.4f}" for value in std)]
    return " ".join(flags)
