"""Batches of an epoch: the same for any number of processes, and in a run that goes on."""

import numpy as np
import pytest

from modeling_a2mim.data.order import EpochOrder, MixedOrder, ShuffleLayout
from modeling_a2mim.data.samplers import EpochBatches

from .test_order import random_orders


def steps(order, world, batch, accumulated=1, resumed=None, number=2, drop_last=False):
    """The keys of each batch over all processes, and which process had them."""
    given = []
    for rank in range(world):
        batches = EpochBatches(order, batch, rank, world, accumulated, drop_last)
        batches.set_epoch(number)
        if resumed is not None:
            batches.resume(number, resumed)
        mine = list(batches)
        assert len(mine) == len(batches)
        skipped = batches.skipped if resumed is not None else 0
        assert not any(mine[:skipped])
        given.append(mine[skipped:])
        assert all(given[-1])
    return [[part[i] for part in given] for i in range(len(given[0]))]


def flat(batches):
    return [key for parts in batches for part in parts for key in part]


@pytest.mark.few(2)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_batches_do_not_depend_on_the_number_of_processes(world):
    for order, total, _ in random_orders(25):
        batch = max(1, total // world)
        if order.length < world:
            with pytest.raises(ValueError, match=rf"only {order.length} images, fewer than the {world} processes"):
                EpochBatches(order, batch, 0, world)
            continue
        mine, alone = steps(order, world, batch), steps(order, 1, batch * world)
        assert len(mine) == -(-order.length // (batch * world))
        sizes = [[len(part) for part in parts] for parts in mine]
        assert all(size == [batch] * world for size in sizes[:-2])
        assert all(max(size) - min(size) <= 1 for size in sizes)
        assert max(map(max, sizes)) <= batch
        if batch == 1:  # the last two steps may have fewer images than there are processes: some are repeated
            assert [set(flat([parts])) for parts in mine] == [set(flat([parts])) for parts in alone]
            continue
        assert [flat([parts]) for parts in mine] == [flat([parts]) for parts in alone]  # step by step
        assert sorted(flat(mine)) == [(2, row) for row in range(order.length)]
        if len(mine) > 1:
            assert min(map(min, sizes)) >= batch // 2


def test_steps_do_not_depend_on_how_a_batch_is_accumulated():
    for order, total, _ in random_orders(8):
        whole = steps(order, 1, 12 * total)
        for world, batch, accumulated in ((1, 6 * total, 2), (2, 2 * total, 3), (3, total, 4)):
            if order.length < world:
                continue
            parts = steps(order, world, batch, accumulated)
            grouped = [flat(parts[i : i + accumulated]) for i in range(0, len(parts), accumulated)]
            assert grouped == [flat([step]) for step in whole] or (total < 2 and order.length < 12 * total)


def test_incomplete_batches_can_be_left_out():
    order = EpochOrder([50], ShuffleLayout())
    assert [len(part) for parts in steps(order, 2, 8, drop_last=True) for part in parts] == [8] * 6
    with pytest.raises(ValueError, match="only 50 images, fewer than one batch of 64"):
        EpochBatches(order, 32, 0, 2, drop_last=True)


def test_going_on_with_the_same_batches_is_exact():
    for order, total, generator in random_orders(25):
        for accumulated in (1, 3):
            whole = steps(order, 1, total, accumulated)
            cut = int(generator.integers(0, len(whole))) // accumulated * accumulated
            rest = steps(order, 1, total, accumulated, resumed=len(flat(whole[:cut])))
            assert rest == whole[cut:]


def test_going_on_with_other_batches_gives_every_row_once():
    for order, total, generator in random_orders(30):
        whole = steps(order, 1, total)
        seen = len(flat(whole[: int(generator.integers(0, len(whole)))]))
        for world, batch, accumulated in ((2, total, 1), (1, 2 * total, 1), (2, total, 4), (3, total + 1, 2)):
            if order.length - seen < world * accumulated or order.length < world:
                continue
            probe = EpochBatches(order, batch, 0, world, accumulated)
            probe.resume(2, seen)
            left = len(probe) - probe.skipped
            assert probe.skipped % accumulated == 0
            if order.length - seen >= left * world:
                rest = steps(order, world, batch, accumulated, resumed=seen)
                assert sorted(flat(whole)[:seen] + flat(rest)) == [(2, row) for row in range(order.length)]


def test_an_epoch_that_was_finished_is_not_begun_again():
    batches = EpochBatches(EpochOrder([50], ShuffleLayout()), 8)
    batches.resume(4, 50)
    assert (batches.resumed, batches.skipped) == ((5, 0), 0)
    batches = EpochBatches(EpochOrder([50], ShuffleLayout()), 8, drop_last=True)
    batches.resume(4, 48)
    assert batches.resumed == (5, 0)


def test_processes_and_workers_read_chunks_of_their_own():
    chunks = np.full(800, 100)
    order = EpochOrder(chunks, ShuffleLayout.choose(chunks, 256, 8192, row_bytes=20_000.0))
    assert order.layout == ShuffleLayout(streams=64, turn=16, block=128)
    for world, workers in ((1, 0), (2, 4), (16, 2)):
        readers = {}
        open_now = order.layout.chunks_open(chunks, 256, world, workers)
        for rank in range(world):
            recent = {}
            for index, keys in enumerate(EpochBatches(order, 256 // world, rank, world)):
                worker = index % max(workers, 1)
                for _, row in keys:
                    readers.setdefault(row // 100, set()).add((rank, worker))
                    # What a worker that keeps the last chunks reads anew.
                    kept = recent.setdefault(worker, {})
                    new = row // 100 not in kept
                    kept[row // 100] = kept.pop(row // 100, None)
                    recent[worker, "reads"] = recent.get((worker, "reads"), 0) + new
                    if len(kept) > open_now:
                        kept.pop(next(iter(kept)))
            reads = sum(recent[worker, "reads"] for worker in range(max(workers, 1)))
            # Chunks that two streams share are read twice; a few are dropped early; and the parts of the last two
            # batches, which are smaller, are not those of the others.
            assert reads <= 1.2 * 800 / world + 4
        assert np.mean([len(found) for found in readers.values()]) < 1.17


def test_batches_of_a_mix_do_not_depend_on_the_number_of_processes():
    orders = [EpochOrder([1000], ShuffleLayout(), 0), EpochOrder([40, 60], ShuffleLayout(2, 4, 20), 1)]
    mix = MixedOrder(orders, [3, 1], seed=5)
    assert flat(steps(mix, 2, 8)) == flat(steps(mix, 1, 16))
