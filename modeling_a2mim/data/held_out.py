"""Images of the training data to evaluate on: some that lie spread over all of it, held out of training or not."""

import zlib
from collections.abc import Sequence

import numpy as np

from .sources import MixedSource, RowSource


SEED = 0  # of its own, so that runs with other seeds are evaluated on the same images
MOST_UNITS = 32  # each is a row group of a parquet file, say, and read whole for one image


def spread_rows(count: int, units: np.ndarray) -> np.ndarray:
    """`count` rows (all, if there are no more), sorted: one at random from each of `count` equal parts. Evenly spaced
    ones would be of one kind in data that repeats itself. Of rows that are read together, in units, only those of
    `MOST_UNITS` units are drawn from. A function of the two arguments alone.

    Args:
        units: (number of units,) rows of each.
    """
    units = np.asarray(units, dtype=np.int64)
    if len(units) > MOST_UNITS:
        chosen = _one_of_each_part(MOST_UNITS, len(units))
        starts = np.cumsum(units) - units
        pool = np.concatenate([starts[unit] + np.arange(units[unit]) for unit in chosen])
        if len(pool) >= count:
            return pool[_one_of_each_part(count, len(pool))]
    return _one_of_each_part(count, int(units.sum()))


def _one_of_each_part(count: int, total: int) -> np.ndarray:
    count = min(count, total)
    edges = np.arange(count + 1) * total // count
    return edges[:-1] + np.random.default_rng((SEED, total, count)).integers(0, np.diff(edges))


class RowsOf(RowSource):
    """Some rows of a source, in its order.

    Args:
        source: whose rows.
        rows: their numbers, ascending.
    """

    def __init__(self, source: RowSource, rows: Sequence[int]):
        self.source, self.rows = source, np.asarray(rows, dtype=np.int64)
        counts = np.histogram(self.rows, np.concatenate([[0], np.cumsum(source.units)]))[0]
        super().__init__(source.name, source.features, counts[counts > 0], source.storage_options, source.retries)
        self.row_bytes, self.remote, self.columns = source.row_bytes, source.remote, source.columns

    @property
    def units_open(self) -> int:
        return self.source.units_open

    @units_open.setter
    def units_open(self, count: int):
        self.source.units_open = count

    @property
    def fingerprint(self):
        return f"{self.source.fingerprint}-rows-{zlib.crc32(self.rows.tobytes()):08x}"

    def select(self, image_column, label_column=None):
        return RowsOf(self.source.select(image_column, label_column), self.rows)

    def take(self, count):
        return RowsOf(self.source, self.rows[:count])

    def read(self, rows):
        return self.source.read(self.rows[np.asarray(rows, dtype=np.int64)])

    def column(self, name):
        values = self.source.column(name)
        return None if values is None else [values[row] for row in self.rows]

    def describe(self, row):
        return self.source.describe(int(self.rows[row]))

    def file_name(self, row):
        own = int(self.rows[row])
        return self.source.file_name(own) or f"row {own}"  # of the data, not of the sample

    def source_of(self, row):
        return self.source.source_of(int(self.rows[row]))


def hold_out(source: RowSource, count: int) -> tuple[RowSource, RowSource]:
    """The source without `count` of its images, and these. Of a mix each source gives its share.

    Raises:
        ValueError: naming `holdout`, if fewer than half of the images would be left, or none of a source.
    """
    if count * 2 > len(source):
        raise ValueError(f"holdout: {count:,} of {len(source):,} images leaves fewer than half to train on")
    rows = spread_rows(count, source.units)
    kept = np.setdiff1d(np.arange(len(source)), rows, assume_unique=True)
    if not isinstance(source, MixedSource):
        return RowsOf(source, kept), RowsOf(source, rows)
    parts = []
    for part, first, last in zip(source.sources, source.firsts[:-1], source.firsts[1:], strict=True):
        parts.append(RowsOf(part, kept[(kept >= first) & (kept < last)] - first))
        if not len(parts[-1]):
            raise ValueError(f"holdout: {count:,} images leave none of {part.name} to train on")
    return MixedSource(parts, source.weights), RowsOf(source, rows)


def sample_of(source: RowSource, count: int) -> RowSource:
    """`count` images of a source, which stay in it."""
    return RowsOf(source, spread_rows(count, source.units))
