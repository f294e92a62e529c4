"""Which sample comes when: every row once an epoch, from any position on."""

import itertools

import numpy as np
import pytest

from modeling_a2mim.data.order import SHUFFLE_BYTES, EpochOrder, MixedOrder, ShuffleLayout, mix_counts


def random_orders(count):
    generator = np.random.default_rng(0)
    for seed in range(count):
        chunks = generator.integers(1, 40, generator.integers(1, 60))
        total, size = int(generator.integers(1, 70)), int(generator.integers(1, 300))
        layout = ShuffleLayout.choose(chunks, total, size, row_bytes=float(generator.choice([0, 1e3, 1e6])))
        yield EpochOrder(chunks, layout, seed), total, generator


def test_every_row_comes_once_an_epoch_from_any_position_on():
    for order, _, generator in random_orders(40):
        for number in (0, 3):
            rows = order.rows(number, 0, order.length)
            assert sorted(rows) == list(range(order.length))
            start = int(generator.integers(0, order.length))
            assert np.array_equal(order.rows(number, start, order.length), rows[start:])


def test_the_order_is_a_function_of_seed_and_epoch():
    def rows(seed, number):
        return EpochOrder([30] * 20, ShuffleLayout(4, 8, 40), seed).rows(number, 0, 600).tolist()

    assert rows(0, 1) == rows(0, 1)
    different = [rows(0, 1), rows(0, 2), rows(1, 1), list(range(600))]
    assert all(a != b for a, b in itertools.combinations(different, 2))


def test_one_chunk_is_shuffled_whole():
    """As numpy does, so that the order of prepared datasets stays what it was."""
    order = EpochOrder([100], ShuffleLayout.choose(np.array([100]), 8, 16), seed=5)
    assert np.array_equal(order.rows(3, 0, 100), np.random.default_rng((5, 3)).permutation(100))


def test_memory_bounds_streams_and_blocks():
    chunks = np.full(1000, 1000)
    layout = ShuffleLayout.choose(chunks, 256, 8192, row_bytes=100_000.0)
    assert 2 * layout.streams * 1000 * 100_000 <= SHUFFLE_BYTES / 2
    assert layout.streams == 4
    assert ShuffleLayout.choose(chunks, 256, 10**9, row_bytes=100_000.0).block * 4 * 100_000 <= SHUFFLE_BYTES / 2
    assert ShuffleLayout.choose(chunks, 255, 8192).streams == 4  # 255 does not divide among 16, so turns only


def test_mixes_keep_their_weights_and_every_source_its_epochs():
    orders = [EpochOrder([1000], ShuffleLayout(), 0), EpochOrder([40, 60], ShuffleLayout(2, 4, 20), 1)]
    mix = MixedOrder(orders, [3, 1], seed=0)
    keys = [key for number in range(4) for key in mix.keys(number, 0, mix.length)]
    assert len(keys) == 4400
    assert abs(sum(row < 1000 for _, row in keys) - 3300) <= 250  # the last 400 are part of 1000
    assert sum(row < 1000 for _, row in keys[:4000]) == 3000
    assert len(set(keys)) == len(keys)  # no row twice in an epoch of its source
    for first, count in ((0, 1000), (1000, 100)):
        own = [(number, row) for number, row in keys if first <= row < first + count]
        assert [number for number, _ in own] == sorted(number for number, _ in own)
        assert {row for number, row in own if number == 0} == set(range(first, first + count))
    assert mix.keys(1, 300, 310) == mix.keys(1, 0, mix.length)[300:310]


def test_weights():
    assert mix_counts([1, 1, 1]) == [334, 333, 333]
    assert mix_counts([0.7, 0.2, 0.1]) == [700, 200, 100]
    for weights, message in (([1, 0], "must be positive"), ([1, 1e-6], "less than one sample in 1000")):
        with pytest.raises(ValueError, match=f"^dataset_weights: .*{message}"):
            mix_counts(weights)


def test_layouts_in_checkpoints_keep_their_keys():
    """Those of the first version: older checkpoints have them, and go on."""
    kept = {"lanes": 4, "chunk": 8, "block": 40}
    layout = ShuffleLayout.from_state(kept)
    assert layout == ShuffleLayout(streams=4, turn=8, block=40)
    order = EpochOrder([30] * 20, layout, seed=3)
    assert order.state() == {"seed": 3, "rows": [600], "counts": None, "layouts": [kept]}
    mix = MixedOrder([order, EpochOrder([5], ShuffleLayout(), 4)], [3, 1], seed=3)
    other = {"lanes": 1, "chunk": 1, "block": 2**31}
    assert mix.state() == {"seed": 3, "rows": [600, 5], "counts": [750, 250], "layouts": [kept, other]}
