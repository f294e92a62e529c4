"""Images of the training data to evaluate on: some that lie spread over all of it, held out of training or not."""

import numpy as np

from .sources import MixedSource, RowsOf, RowSource


SEED = 0  # of its own, so that runs with other seeds are evaluated on the same images
MOST_CHUNKS = 32  # each is a row group of a parquet file, say, and read whole for one image


def spread_rows(count: int, chunks: np.ndarray) -> np.ndarray:
    """`count` rows (all, if there are no more), sorted: one at random from each of `count` equal parts. Evenly spaced
    ones would be of one kind in data that repeats itself. Of rows that are read together, in chunks, only those of
    `MOST_CHUNKS` chunks are drawn from. A function of the two arguments alone.

    Args:
        chunks: (number of chunks,) rows of each.
    """
    chunks = np.asarray(chunks, dtype=np.int64)
    if len(chunks) > MOST_CHUNKS:
        chosen = _one_of_each_part(MOST_CHUNKS, len(chunks))
        starts = np.cumsum(chunks) - chunks
        pool = np.concatenate([starts[chunk] + np.arange(chunks[chunk]) for chunk in chosen])
        if len(pool) >= count:
            return pool[_one_of_each_part(count, len(pool))]
    return _one_of_each_part(count, int(chunks.sum()))


def _one_of_each_part(count: int, total: int) -> np.ndarray:
    count = min(count, total)
    edges = np.arange(count + 1) * total // count
    return edges[:-1] + np.random.default_rng((SEED, total, count)).integers(0, np.diff(edges))


def hold_out(source: RowSource, count: int) -> tuple[RowSource, RowSource]:
    """The source without `count` of its images, and these. Of a mix each source gives its share.

    Raises:
        ValueError: naming `holdout`, if fewer than half of the images would be left, or none of a source.
    """
    if count * 2 > len(source):
        raise ValueError(f"holdout: {count:,} of {len(source):,} images leaves fewer than half to train on")
    rows = spread_rows(count, source.chunks)
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
    return RowsOf(source, spread_rows(count, source.chunks))
