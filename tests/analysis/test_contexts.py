"""Pairs and contexts: which are drawn, how often, and that what pairs share leaves the expectation as it is."""

import itertools
from collections import Counter

import numpy as np
import pytest

from modeling_a2mim.analysis.contexts import (
    all_contexts,
    context_orders,
    contexts_of,
    draw_pairs,
    draw_permutations,
    neighboring_pairs,
    unique_subsets,
    with_pairs,
)


def generator(seed: int = 0):
    return np.random.default_rng(seed)


def as_sets(contexts: np.ndarray) -> list[frozenset[int]]:
    return [frozenset(np.flatnonzero(context).tolist()) for context in contexts]


def test_orders():
    ratios = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
    assert context_orders(ratios, 196) == [0, 9, 19, 38, 58, 77, 97, 116, 135, 155, 174, 184, 194]
    assert context_orders((1, 0, 0.1, 0.2), 9) == [0, 1, 7]  # in order; 0 and 0.1 are one
    assert context_orders((0.29,), 102) == [29]
    for wrong in ((), (1.1,), (-0.1,), (float("nan"),)):
        with pytest.raises(ValueError, match="^ratios: "):
            context_orders(wrong, 9)


def test_neighbours():
    # Of a 14 x 14 grid: for each of the 12 offsets (14 - rows) * (14 - columns) pairs.
    offsets = [(0, 1), (0, 2), (1, 0), (2, 0), *itertools.product((1, 2), (-2, -1, 1, 2))]
    assert len(neighboring_pairs((14, 14))) == sum((14 - abs(a)) * (14 - abs(b)) for a, b in offsets)
    assert neighboring_pairs((2, 2)).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert len(neighboring_pairs((3, 3))) == 36  # all of them
    assert [0, 3] not in neighboring_pairs((4, 4)).tolist()
    assert [3, 4] not in neighboring_pairs((4, 4)).tolist()  # the end of a row and the start of the next


@pytest.mark.parametrize("sampling", ["shared", "windows", "independent"])
def test_pairs_are_neighbours_drawn_once(sampling):
    every = {tuple(pair) for pair in neighboring_pairs((14, 14)).tolist()}
    for seed in range(20):
        pairs = draw_pairs(14, 50, generator(seed), sampling)
        chosen = [tuple(pair) for pair in pairs.cells.tolist()]
        assert len(set(chosen)) == 50
        assert set(chosen) <= every
    cells = len(np.unique(pairs.cells))
    assert cells <= 12 if sampling == "windows" else cells > 60
    assert draw_pairs(14, 50, generator(19), sampling).cells.tolist() == pairs.cells.tolist()


@pytest.mark.parametrize(("grid", "count"), [(5, 4), (5, 40), (5, 50), (6, 60), (3, 20), (2, 3), (4, 84)])
def test_weighted_pairs_stand_for_all_of_the_grid(grid, count):
    """A weight is 1 / (chance of the pair * pairs of the grid), which makes the expectation of a weighted sum the mean
    over all pairs. The chance is counted here over all places of the window, upright and lying, and none is 0."""
    every = neighboring_pairs((grid, grid))
    sides = next(s for s in ((3, 3), (3, 4), (4, 4), (4, 5), (grid, grid)) if len(neighboring_pairs(s)) >= count)
    height, width = (min(side, grid) for side in sides)
    held = np.zeros(len(every))
    for one, other in ((height, width), (width, height)):
        for row, column in itertools.product(range(grid - one + 1), range(grid - other + 1)):
            rows, columns = np.divmod(every, grid)
            inside = (row <= rows) & (rows < row + one) & (column <= columns) & (columns < column + other)
            held += inside.all(1) / ((grid - one + 1) * (grid - other + 1))
    chance = held / 2 * count / len(neighboring_pairs((height, width)))
    assert chance.min() > 0
    assert chance.sum() == pytest.approx(count)
    expected = {tuple(pair): 1 / (share * len(every)) for pair, share in zip(every.tolist(), chance, strict=True)}
    for seed in range(20):
        pairs = draw_pairs(grid, count, generator(seed), "windows")
        assert pairs.weights == pytest.approx([expected[tuple(pair)] for pair in pairs.cells.tolist()], rel=1e-12)


def test_pairs_with_the_same_chance():
    assert draw_pairs(5, 50, generator(), "independent").weights.tolist() == [1 / 50] * 50
    pairs = draw_pairs(5, None, generator())
    assert pairs.cells.tolist() == neighboring_pairs((5, 5)).tolist()
    assert pairs.weights.tolist() == [1 / len(pairs.cells)] * len(pairs.cells)
    times = Counter(tuple(pair) for seed in range(2000) for pair in _drawn(seed))
    assert len(times) == len(
        neighboring_pairs((3, 3))
    )  # 2,000 draws of 3 of 36: each about 167 times, give or take 13
    assert all(100 < count < 235 for count in times.values())


def _drawn(seed: int) -> list[list[int]]:
    return draw_pairs(3, 3, generator(seed), "independent").cells.tolist()


def test_pairs_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="^pairs: a grid of 3 x 3 has 1 to 36 neighbouring pairs, got 37"):
        draw_pairs(3, 37, generator())
    with pytest.raises(ValueError, match="^pairs: .* got 0"):
        draw_pairs(3, 0, generator())
    with pytest.raises(ValueError, match="^sampling: must be one of shared, windows, independent"):
        draw_pairs(3, 4, generator(), "clustered")


def test_a_shared_context_is_drawn_evenly_for_each_pair():
    """Over all 720 orders of 6 cells, each pair meets each of its contexts equally often: no pair's mean is moved by
    what it shares with others. Exact, as all orders are counted."""
    places = np.array(list(itertools.permutations(range(6))))
    pairs = np.array(list(itertools.combinations(range(6), 2)))
    for order in range(5):
        contexts = contexts_of(places, pairs, order)
        assert contexts.shape == (15, 720, 6)
        for pair, found in zip(pairs, contexts, strict=True):
            others = sorted(set(range(6)) - set(pair.tolist()))
            expected = {frozenset(chosen) for chosen in itertools.combinations(others, order)}
            assert Counter(as_sets(found)) == dict.fromkeys(expected, 720 // len(expected))


def test_contexts_of_each_pair():
    pairs = draw_pairs(4, 10, generator(), "independent").cells
    places = draw_permutations(16, 30, generator()).reshape(10, 3, 16)
    contexts = contexts_of(places, pairs, 5)
    assert contexts.shape == (10, 3, 16)
    for row, (pair, found) in enumerate(zip(pairs.tolist(), contexts, strict=True)):
        for number, context in enumerate(as_sets(found)):
            order = [cell for cell in np.argsort(places[row, number]).tolist() if cell not in pair]
            assert context == set(order[:5])


def test_permutations():
    places = draw_permutations(9, 50, generator())
    assert (np.sort(places, axis=1) == np.arange(9)).all()
    assert len(np.unique(places, axis=0)) > 45


def test_all_contexts():
    pairs = np.array([[0, 1], [2, 5]])
    contexts = all_contexts(6, pairs, 2)
    for pair, found in zip(pairs.tolist(), contexts, strict=True):
        others = sorted(set(range(6)) - set(pair))
        assert sorted(map(sorted, as_sets(found))) == [list(c) for c in itertools.combinations(others, 2)]
    assert all_contexts(6, pairs, 0).tolist() == [[[False] * 6]] * 2
    assert all_contexts(6, pairs, 4).sum() == 8
    with pytest.raises(ValueError, match="^contexts: 196 cells have .* too many to take them all"):
        all_contexts(196, pairs, 97)


@pytest.mark.parametrize("order", [0, 1, 7, 14])
def test_each_subset_once(order):
    pairs = draw_pairs(4, 40, generator(), "windows").cells
    contexts = contexts_of(draw_permutations(16, 12, generator()), pairs, order)
    subsets = unique_subsets(contexts, pairs)
    assert len(np.unique(subsets.packed, axis=0)) == len(subsets.packed)
    shown = np.unpackbits(subsets.packed, axis=-1, count=16).astype(bool)[subsets.indices]
    np.testing.assert_array_equal(shown, with_pairs(contexts, pairs))
    for pair, context, four in zip(pairs, contexts[:, 0], shown[:, 0], strict=True):
        one, other = (np.arange(16) == cell for cell in pair)
        assert not context[pair].any()
        assert context.sum() == order
        np.testing.assert_array_equal(four, [context, context | one, context | other, context | one | other])


def test_what_is_shared():
    """50 pairs that share contexts need three quarters of the subsets of 50 with contexts of their own; if they share
    cells, fewer than half."""
    shared = draw_pairs(14, 50, generator(), "windows").cells
    own = draw_pairs(14, 50, generator(), "independent").cells
    one = unique_subsets(contexts_of(draw_permutations(196, 20, generator()), shared, 97), shared)
    other = unique_subsets(contexts_of(draw_permutations(196, 1000, generator()).reshape(50, 20, 196), own, 97), own)
    assert len(other.packed) == 4 * 50 * 20
    third = unique_subsets(contexts_of(draw_permutations(196, 20, generator()), own, 97), own)
    assert 0.7 * len(other.packed) < len(third.packed) < 0.8 * len(other.packed)
    # Of each order of the cells 50 of S+i+j and its like, about 24 of S+i and its like, and a few of S.
    assert len(one.packed) < 0.4 * len(other.packed)
