"""Which cells of an image are shown to measure how two of them interact: pairs, and contexts of each order.

An image is a grid of n cells, the players. A pair (i, j) interacts in a context S of m other cells; m is the order.
Nothing here knows a model: pairs and contexts follow from a seed and the number of the image, so that all models that
are compared are shown the same.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..arguments.analysis import SAMPLINGS


RADIUS = 2  # how many cells apart, along rows and along columns, the cells of a pair may be
MOST_CONTEXTS = 100_000  # of a pair in one order, where all are asked for


def context_orders(ratios: Sequence[float], players: int) -> list[int]:
    """How many cells the contexts have: int(ratio * (players - 2)); ratios that give the same order are one.

    Raises:
        ValueError: naming `ratios`, if there are none or one is outside [0, 1].
    """
    if not len(ratios) or not all(0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios: expected numbers in [0, 1], got {list(ratios)}")
    # 0.29 * 100 is a little less than 29
    return list(dict.fromkeys(int(ratio * (players - 2) + 1e-9) for ratio in sorted(ratios)))


def neighboring_pairs(sides: tuple[int, int], radius: int = RADIUS) -> np.ndarray:
    """All pairs i < j of cells of a grid (rows, columns) at most `radius` apart along both, (pairs, 2), cells numbered
    row by row."""
    place = np.stack(np.divmod(np.arange(math.prod(sides)), sides[1]))
    near = (np.abs(place[:, :, None] - place[:, None]) <= radius).all(0)
    return np.argwhere(np.triu(near, 1))


class Pairs(NamedTuple):
    """Pairs of cells of one image, (pairs, 2), and their weights, (pairs,): the expectation of a weighted sum over the
    pairs drawn is the mean over all pairs of the grid."""

    cells: np.ndarray
    weights: np.ndarray


def draw_pairs(
    grid: int, count: int | None, generator: np.random.Generator, sampling: str = "shared", radius: int = RADIUS
) -> Pairs:
    """Neighboring cells of one image.

    Args:
        grid: cells along each side.
        count: how many pairs; `None` for all there are.
        sampling: "windows": pairs of one window, the smallest that holds enough, anywhere in the grid. They have few
            cells in all, so that contexts shared by them (`contexts_of`) share most of their values; but neighboring
            pairs are alike, so that they say less of the image. A pair at the rim of the grid lies in fewer windows,
            and weighs as much more (Horvitz and Thompson). Else each pair of the grid has the same chance, as in the
            release.

    Raises:
        ValueError: naming `pairs` or `sampling`, if there are not so many, or no such sampling.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling: must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    every = neighboring_pairs((grid, grid), radius)
    if count is not None and not 1 <= count <= len(every):
        raise ValueError(f"pairs: a grid of {grid} x {grid} has 1 to {len(every)} neighbouring pairs, got {count}")
    if count is None or sampling != "windows":
        chosen = every if count is None else every[np.sort(generator.choice(len(every), count, replace=False))]
        return Pairs(chosen, np.full(len(chosen), 1 / len(chosen)))
    height, width = next(sides for sides in _sides(grid, radius) if len(neighboring_pairs(sides, radius)) >= count)
    inside = neighboring_pairs((height, width), radius)
    chosen = inside[np.sort(generator.choice(len(inside), count, replace=False))]
    rows, columns = np.divmod(chosen, width)
    rows += generator.integers(0, grid - height + 1)
    columns += generator.integers(0, grid - width + 1)
    if generator.random() < 0.5:
        rows, columns = columns, rows
    upright, lying = (_share(rows, grid, a) * _share(columns, grid, b) for a, b in ((height, width), (width, height)))
    chance = (upright + lying) / 2 * count / len(inside)
    return Pairs(np.sort(rows * grid + columns, axis=1), 1 / (chance * len(every)))


def _sides(grid: int, radius: int) -> Iterator[tuple[int, int]]:
    """Sides of windows, the smallest first: each holds pairs of all distances."""
    for side in range(min(radius + 1, grid), grid):
        yield from ((side, side), (side, side + 1))
    yield grid, grid


def _share(ends: np.ndarray, grid: int, side: int) -> np.ndarray:
    """Which share of all places of a window of that side, along one axis, holds both ends of each pair, (pairs, 2)."""
    first, last = ends.min(1), ends.max(1)
    windows = grid - side + 1
    return (np.minimum(first, windows - 1) - np.maximum(last - side + 1, 0) + 1) / windows


def draw_permutations(players: int, contexts: int, generator: np.random.Generator) -> np.ndarray:
    """The place of each cell in `contexts` random orders of all cells, (contexts, players)."""
    return generator.permuted(np.tile(np.arange(players), (contexts, 1)), axis=1)


def contexts_of(places: np.ndarray, pairs: np.ndarray, order: int) -> np.ndarray:
    """For each pair (i, j) and each order of the cells the first `order` cells of it that are neither i nor j.

    Such a context is drawn evenly from all subsets of that size of the other cells, whatever the pair. But pairs that
    share an order of the cells share most of S, S+i, S+j and S+i+j: with A the first m cells of it, S is A for all
    pairs outside A, and S+i is the first m+1 cells for all pairs with i in A.

    Args:
        places: (contexts, players) for all pairs, or (pairs, contexts, players), see `draw_permutations`.
        pairs: (pairs, 2).

    Returns:
        (pairs, contexts, players), True for the cells in the context.
    """
    places = np.broadcast_to(places, (len(pairs), *places.shape[-2:]))
    rows = np.arange(len(pairs))
    own = [places[rows, :, cell][..., None] for cell in pairs.T]
    shown = places - (own[0] < places) - (own[1] < places) < order
    for cell in pairs.T:
        shown[rows, :, cell] = False
    return shown


def all_contexts(players: int, pairs: np.ndarray, order: int) -> np.ndarray:
    """All subsets of `order` other cells for each pair, (pairs, contexts, players).

    Raises:
        ValueError: naming `contexts`, if there are more than `MOST_CONTEXTS`.
    """
    if math.comb(players - 2, order) > MOST_CONTEXTS:
        raise ValueError(
            f"contexts: {players} cells have {math.comb(players - 2, order):,} contexts of {order} cells, too many to "
            "take them all; give a number"
        )
    chosen = np.array(list(itertools.combinations(range(players - 2), order)), dtype=int)
    small = np.zeros((len(chosen), players - 2), dtype=bool)
    np.put_along_axis(small, chosen, True, axis=1)
    # Where cells i and j are missing: the cell of each column of `small`.
    others = np.stack([np.setdiff1d(np.arange(players), pair) for pair in pairs])
    shown = np.zeros((len(pairs), len(chosen), players), dtype=bool)
    for row, cells in enumerate(others):
        shown[row][:, cells] = small
    return shown


def with_pairs(contexts: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """S, S+i, S+j and S+i+j of each context, (pairs, contexts, 4, players)."""
    subsets = np.repeat(contexts[:, :, None], 4, axis=2)
    rows = np.arange(len(pairs))
    for cell, places in zip(pairs.T, ((1, 3), (2, 3)), strict=True):
        for place in places:
            subsets[rows, :, place, cell] = True
    return subsets


class Subsets(NamedTuple):
    """The different subsets that some contexts need, 8 cells in a byte, (subsets, bytes), and which of them are S,
    S+i, S+j and S+i+j of each context, (pairs, contexts, 4)."""

    packed: np.ndarray
    indices: np.ndarray


def unique_subsets(contexts: np.ndarray, pairs: np.ndarray) -> Subsets:
    """What has to be shown to a model, each subset once."""
    packed = np.packbits(with_pairs(contexts, pairs), axis=-1)
    rows = np.ascontiguousarray(packed).view(f"V{packed.shape[-1]}").reshape(-1)
    _, first, index = np.unique(rows, return_index=True, return_inverse=True)
    return Subsets(packed.reshape(-1, packed.shape[-1])[first], index.reshape(packed.shape[:-1]))
