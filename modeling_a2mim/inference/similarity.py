"""Which images are alike, by the cosine of the angle between their embeddings: nearest neighbors and duplicates."""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors
from transformers.utils.logging import tqdm


BLOCK = 2048  # vectors that are compared at once: 16 MB of similarities
ROUNDING = 1e-6  # of a cosine in float32: that of two equal vectors may be as much below 1


def nearest(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest vectors of each query by cosine similarity, exactly. A query that is one of the vectors is its own
    nearest neighbor. Memory does not grow with the number of vectors, beside what holds them (or a memory map).

    Args:
        vectors: (vectors, features), of any length, finite.
        queries: (queries, features).
        count: of neighbors; there are fewer if there are not so many vectors.

    Returns:
        (queries, count) int64, numbers of vectors, the nearest first, of equally near ones the first; (queries, count)
        float32, their cosine similarities in [-1, 1]; of a vector of zeros it is 0.

    Raises:
        ValueError: naming `count`, if it is below 1; naming `queries`, if they have another number of features.
    """
    if count < 1:
        raise ValueError(f"count: must be at least 1, got {count}")
    if queries.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise ValueError(f"queries: expected (queries, {vectors.shape[1]}), got {queries.shape}")
    if not len(queries):  # which scikit-learn refuses
        none = np.empty((0, min(count, len(vectors))), np.int64)
        return none, none.astype(np.float32)
    wanted = np.asarray(queries, dtype=np.float32)
    found = np.empty((len(queries), 0), np.int64)
    distances = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], dtype=np.float32)
        search = NearestNeighbors(algorithm="brute", metric="cosine").fit(block)
        near, rows = search.kneighbors(wanted, min(count, len(block)))
        distances = np.concatenate([distances, near.astype(np.float32)], axis=1)
        found = np.concatenate([found, rows + start], axis=1)
        best = np.lexsort((found, distances))[:, :count]
        found, distances = np.take_along_axis(found, best, 1), np.take_along_axis(distances, best, 1)
    return found, 1 - distances


def duplicate_groups(vectors: np.ndarray, threshold: float, progress: bool = False) -> list[np.ndarray]:
    """Groups of vectors that are alike: a vector belongs to a group if its cosine similarity to any other one of it is
    at least `threshold`. Blocks of vectors are compared with each other, so that memory does not grow with their
    number, beside what holds them; time does with its square.

    Args:
        vectors: (vectors, features), of any length, finite.
        threshold: in (0, 1]; 1 finds equal directions, up to the error of float32.
        progress: whether to show a progress bar.

    Returns:
        Numbers of the vectors of each group of two or more, ascending; the largest group first.

    Raises:
        ValueError: naming `threshold`, if it is out of its range.
    """
    check_threshold(threshold)
    starts = range(0, len(vectors), BLOCK)
    group = np.arange(len(vectors))
    total = len(starts) * (len(starts) + 1) // 2
    with tqdm(total=total, desc="duplicates", unit=" blocks", disable=not progress) as bar:
        for first in starts:
            one = _unit(vectors[first : first + BLOCK])
            for second in starts[first // BLOCK :]:
                other = one if second == first else _unit(vectors[second : second + BLOCK])
                rows, others = np.nonzero(one @ other.T >= threshold - ROUNDING)
                group = _joined(group, group[rows + first], group[others + second])
                bar.update()
    return sorted(_members(group), key=lambda rows: (-len(rows), rows[0]))


def check_threshold(threshold: float, field: str = "threshold"):
    """
    Raises:
        ValueError: beginning with `field`, if this is no similarity that duplicates could have.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"{field}: must be a cosine similarity above 0, at most 1, got {threshold:g}")


def cosine(vectors: np.ndarray, rows: np.ndarray, row: int) -> np.ndarray:
    """(rows,) float32, the cosine similarities of some vectors to one of them."""
    similarities = [_unit(vectors[part]) @ _unit(vectors[row : row + 1])[0] for part in _parts(rows)]
    return np.clip(np.concatenate(similarities), -1, 1)


def typical_similarity(vectors: np.ndarray, pairs: int = 10_000) -> tuple[float, float]:
    """How alike two vectors are that are drawn at random (always the same ones): the median of their cosine
    similarities, and what one pair of a hundred reaches. Both are NaN where there are no two.

    Args:
        vectors: (vectors, features).
        pairs: how many are drawn.
    """
    if len(vectors) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(0)
    ones = generator.integers(0, len(vectors), pairs)
    others = (ones + generator.integers(1, len(vectors), pairs)) % len(vectors)
    parts = zip(_parts(ones), _parts(others), strict=True)
    found = [(_unit(vectors[one]) * _unit(vectors[other])).sum(1) for one, other in parts]
    median, high = np.percentile(np.concatenate(found), [50, 99])
    return float(median), float(high)


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def _joined(group: np.ndarray, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The group of each vector, after these pairs of groups have become one. A group has the number of its first."""
    pairs = np.stack([ones, others])
    pairs = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)  # all equal images would be millions of pairs
    if not pairs.size:
        return group
    names, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(pairs.shape)
    links = coo_array((np.ones(pairs.shape[1], bool), (ends[0], ends[1])), (len(names), len(names)))
    _, part = connected_components(links, directed=False)
    lowest = np.full(part.max() + 1, len(group))
    np.minimum.at(lowest, part, names)
    renamed = np.arange(len(group))
    renamed[names] = lowest[part]
    return renamed[group]


def _members(group: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(group, kind="stable")
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    return (rows for rows in np.split(order, cuts) if len(rows) > 1)
