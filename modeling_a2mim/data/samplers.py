"""Which sample comes when, as a function of the seed and the position alone: nothing has to be replayed to go on.

A pass over the data is a permutation of its rows. Rows that are read together (a row group of a parquet file, a run of
files in a tar) form a unit; units are laid out in a random order that is new in every pass, the line of their rows is
cut into lanes of equal length and these into blocks, and the rows of a block are shuffled. Samples are dealt from the
lanes in turn, a chunk from each, so that a batch mixes several far-apart blocks, while every process and every worker
needs only some of the lanes. Sources that can read any row at no extra cost are one unit and one block: a full
shuffle.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch.utils.data import Sampler

from .epoch_cut import CUT, EpochCut


LANES_OF_A_BATCH = 16  # up to 16 processes find their parts of every batch in lanes of their own
LANES_IN_TURN = 4  # up to 4 workers find their batches in lanes of their own; more, and batches would mix less
SHUFFLE_BYTES = 2**31  # encoded images to shuffle among, in all processes together
MIX_SLOTS = 1000  # weights of a mix are kept in every so many samples


@dataclass(frozen=True)
class Layout:
    """How a pass is cut, for a certain total batch; kept in checkpoints, as another one would be another order.

    Args:
        lanes: number of lanes.
        chunk: consecutive samples of one lane.
        block: rows that are shuffled among each other.
    """

    lanes: int = 1
    chunk: int = 1
    block: int = 2**31

    @classmethod
    def choose(cls, units: np.ndarray, total_batch: int, shuffle_size: int, row_bytes: float = 0.0) -> "Layout":
        """Lanes for up to 16 processes of 4 workers, fewer where there are few units, or so large ones that open units
        would take more than half of `SHUFFLE_BYTES`; the blocks take no more than the other half.

        Args:
            units: rows of each unit.
            total_batch: images in a step, over all processes and accumulated batches.
            shuffle_size: rows to shuffle among, over all lanes.
            row_bytes: mean size of a row in memory while its unit is open; 0 if units need not be held.
        """
        if len(units) <= 1:
            return cls()
        together, turns = math.gcd(total_batch, LANES_OF_A_BATCH), LANES_IN_TURN
        most = len(units)
        if row_bytes:
            most = min(most, SHUFFLE_BYTES / 2 / (2 * np.mean(units) * row_bytes))
            shuffle_size = min(shuffle_size, int(SHUFFLE_BYTES / 2 / row_bytes))
        while together * turns > max(most, 1):
            together, turns = (together, turns // 2) if turns > 1 else (together // 2, 1)
        return cls(together * turns, total_batch // together, max(1, shuffle_size // (together * turns)))

    def units_open(self, units: np.ndarray, total_batch: int, world: int = 1, workers: int = 1) -> int:
        """How many units one of `workers` in one of `world` processes needs at a time."""
        together = max(1, total_batch // self.chunk)
        share = math.gcd(world, together) * math.gcd(max(workers, 1), max(1, self.lanes // together))
        blocks = min(self.block / float(np.mean(units)), len(units))
        return math.ceil(self.lanes / share) * (math.ceil(blocks) + 1)


class PassOrder:
    """The order of the rows in every pass.

    Args:
        units: (number of units,) rows of each, in the order of the source.
        layout: how a pass is cut.
        seed: of all randomness.
    """

    def __init__(self, units: Sequence[int], layout: Layout, seed: int = 0):
        self.units, self.layout, self.seed = np.asarray(units, dtype=np.int64), layout, seed
        self.starts = np.cumsum(self.units) - self.units
        self.length = int(self.units.sum())
        # Lanes take equal numbers of whole chunks; what is left over is shuffled among itself and comes last.
        self.lane_rows = self.length // (layout.lanes * layout.chunk) * layout.chunk
        self._line = functools.lru_cache(1)(self._line)
        self._shuffled = functools.lru_cache(layout.lanes + 1)(self._shuffled)

    def rows(self, number: int, start: int, stop: int) -> np.ndarray:
        """Rows of the source at the positions `start` to `stop` of pass `number`, (stop - start,) int64."""
        layout, dealt = self.layout, self.layout.lanes * self.lane_rows
        positions = np.arange(start, stop)
        chunks, offsets = np.divmod(positions, layout.chunk)
        turns, lanes = np.divmod(chunks, layout.lanes)
        in_lane = turns * layout.chunk + offsets
        lanes, in_lane = (
            np.where(positions < dealt, lanes, layout.lanes),
            np.where(positions < dealt, in_lane, positions - dealt),
        )
        # What is left over is read by all, in blocks as large as those of all lanes together.
        size = np.where(lanes < layout.lanes, layout.block, layout.block * layout.lanes)
        blocks, in_block = np.divmod(in_lane, size)
        places = np.empty_like(positions)
        for lane, block in np.unique(np.stack((lanes, blocks)), axis=1).T:
            here = (lanes == lane) & (blocks == block)
            places[here] = self._shuffled(number, int(lane), int(block))[in_block[here]]
        order, ends = self._line(number)
        unit = np.searchsorted(ends, places, side="right")
        return self.starts[order[unit]] + places - (ends[unit] - self.units[order[unit]])

    def _line(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The units in the order of this pass, and where each ends on the line of rows."""
        if len(self.units) == 1:
            order = np.zeros(1, dtype=np.int64)
        else:
            order = np.random.default_rng((self.seed, number, self.layout.lanes + 1)).permutation(len(self.units))
        return order, np.cumsum(self.units[order])

    def _shuffled(self, number: int, lane: int, block: int) -> np.ndarray:
        """Places on the line of a block's rows, shuffled; lane `lanes` is the rest."""
        first = lane * self.lane_rows
        rest = lane == self.layout.lanes
        last = self.length if rest else first + self.lane_rows
        size = self.layout.block * (self.layout.lanes if rest else 1)
        first += block * size
        size = min(size, last - first)
        return first + np.random.default_rng((self.seed, number, lane, block)).permutation(size)

    def keys(self, number: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(pass, row) at these positions."""
        return [(number, int(row)) for row in self.rows(number, start, stop)]


class RepeatedOrder(PassOrder):
    """Repeated augmentation (https://arxiv.org/abs/1901.09335) as timm's RepeatAugSampler does it in one process:
    each image comes `repeats` times in a row, and a pass ends after as many samples as there are images. The pass in
    the keys tells repeats apart, so that each is drawn differently."""

    def __init__(self, units: np.ndarray, layout: Layout, seed: int, repeats: int):
        super().__init__(units, layout, seed)
        self.repeats = repeats

    def keys(self, number: int, start: int, stop: int) -> list[tuple[int, int]]:
        first = start // self.repeats
        rows = self.rows(number, first, -(-stop // self.repeats))
        positions = range(start, stop)
        return [
            (number * self.repeats + place % self.repeats, int(rows[place // self.repeats - first]))
            for place in positions
        ]


class MixedOrder:
    """Several orders with weights: of every 1000 samples each gives its share, in random turn, and each goes through
    its own rows pass after pass. A pass of the mix is as many samples as there are rows in all.

    Args:
        orders: of the sources, whose rows follow each other in the mix.
        weights: of the sources; only their ratios matter.
        seed: of the turns.

    Raises:
        ValueError: if a weight is not positive or below a thousandth of all.
    """

    def __init__(self, orders: Sequence[PassOrder], weights: Sequence[float], seed: int = 0):
        self.orders, self.seed = list(orders), seed
        self.counts = mix_counts(weights)
        self.firsts = np.cumsum([0] + [order.length for order in orders])
        self.length = int(self.firsts[-1])
        self._turns = functools.lru_cache(2)(self._turns)
        self._stretch = functools.lru_cache(2 * len(self.orders))(self._stretch)

    def keys(self, number: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(pass of the source, row of the mix) at these positions."""
        keys = []
        for slot in range(number * self.length + start, number * self.length + stop):
            window, place = divmod(slot, MIX_SLOTS)
            source, before = self._turns(window)[:, place]
            order = self.orders[source]
            own, position = divmod(window * self.counts[source] + before, order.length)
            keys.append((int(own), int(self.firsts[source] + self._ahead(source, own, position))))
        return keys

    def _turns(self, window: int) -> np.ndarray:
        """(2, 1000): whose turn it is, and how often it was before in this window."""
        turns = np.repeat(np.arange(len(self.counts)), self.counts)
        np.random.default_rng((self.seed, window, 2**31)).shuffle(turns)
        before = np.empty_like(turns)
        for source in range(len(self.counts)):
            before[turns == source] = np.arange(self.counts[source])
        return np.stack((turns, before))

    def _ahead(self, source: int, number: int, position: int) -> int:
        """A row of a source; looked up a stretch at a time."""
        start = position // MIX_SLOTS * MIX_SLOTS
        return self._stretch(source, number, start)[position - start]

    def _stretch(self, source: int, number: int, start: int) -> np.ndarray:
        order = self.orders[source]
        return order.rows(number, start, min(start + MIX_SLOTS, order.length))


def mix_counts(weights: Sequence[float]) -> list[int]:
    """Samples of each source among 1000, by largest remainder.

    Raises:
        ValueError: naming the weight that is not positive or too small.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError(f"dataset_weights: must be positive, got {weights.tolist()}")
    exact = weights / weights.sum() * MIX_SLOTS
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: MIX_SLOTS - counts.sum()]:
        counts[index] += 1
    if not counts.all():
        raise ValueError(f"dataset_weights: {weights.tolist()} gives a source less than one sample in {MIX_SLOTS}")
    return counts.tolist()


class StreamBatches(Sampler):
    """Batches of keys for one of several processes: which samples make up a step does not depend on their number.

    A step takes the next positions of the pass, as `EpochCut` cuts it, divided evenly between the processes. The last
    two steps share what is left (with `drop_last` it is left out); where that is less than one image for each process,
    which only batches of one come to, some have an image that another one has as well.

    Args:
        order: a PassOrder or MixedOrder.
        batch_size: images of a process in a batch.
        rank, world: this process, and how many there are.
        accumulated: batches in an optimiser step.
        drop_last: leave incomplete batches out.
        cut: version of `EpochCut`; another one than `CUT` for a run that began with it.

    Raises:
        ValueError: if there are not enough images for one batch, or for one image a process.
    """

    def __init__(
        self,
        order: PassOrder | MixedOrder,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        accumulated: int = 1,
        drop_last: bool = False,
        cut: int = CUT,
    ):
        self.order, self.rank, self.world, self.accumulated = order, rank, world, accumulated
        self.cut = EpochCut(batch_size * world, accumulated, world, drop_last, cut)
        self.epoch, self.resumed = 0, (0, 0)
        if order.length < (self.cut.window if drop_last else world):
            needed = f"one batch of {self.cut.window}" if drop_last else f"the {world} processes"
            raise ValueError(f"the dataset has only {order.length} images, fewer than {needed}")

    def set_epoch(self, epoch: int):
        """Say which pass begins."""
        self.epoch = epoch

    def resume(self, number: int, seen: int):
        """Go on in pass `number` after its first `seen` positions, whatever the size of the batches that gave them."""
        self.resumed = (number, seen) if self.cut.count(self.order.length - seen) else (number + 1, 0)

    @property
    def skipped(self) -> int:
        """How many of the `len(self)` batches of the resumed pass count as given: whole optimiser steps."""
        left = self.cut.count(self.order.length - self.resumed[1])
        return max(0, len(self) - left) // self.accumulated * self.accumulated

    def __len__(self) -> int:
        return self.cut.count(self.order.length)

    @property
    def fewest(self) -> int:
        """The fewest images that a process has in a batch, from where the run goes on to its end."""
        first, skipped = self.resumed[0], self.skipped
        ends = range(max(0, len(self) - 2 * self.accumulated), len(self))
        spans = [self.span(first, i) for i in ends if i >= skipped] + [self.span(first + 1, i) for i in ends]
        return max(1, min((stop - start) // self.cut.world for start, stop in spans))

    def span(self, number: int, index: int) -> tuple[int, int]:
        """First and last position (exclusive) that batch `index` of pass `number` covers on all processes."""
        skipped, seen = (self.skipped, self.resumed[1]) if number == self.resumed[0] else (0, 0)
        left, index = len(self) - skipped, index - skipped
        rows = self.order.length - seen
        if left != self.cut.count(rows):  # the batches have another size than before: even ones, to end with a step
            return seen + rows * index // left, seen + rows * (index + 1) // left
        start, stop = self.cut.span(rows, index)
        return seen + start, seen + stop

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.epoch
        for index in range(len(self)):
            if number == self.resumed[0] and index < self.skipped:
                yield []  # which nobody reads
                continue
            start, stop = self.span(number, index)
            first = start + (stop - start) * self.rank // self.world
            last = start + (stop - start) * (self.rank + 1) // self.world
            if last == first:  # fewer images than processes: one is repeated
                first, last = min(first, stop - 1), min(first, stop - 1) + 1
            yield self.order.keys(number, first, last)


def record(order: PassOrder | MixedOrder) -> dict:
    """What makes up an order, for a checkpoint."""
    orders = order.orders if isinstance(order, MixedOrder) else [order]
    counts = order.counts if isinstance(order, MixedOrder) else None
    return {
        "seed": order.seed,
        "rows": [o.length for o in orders],
        "counts": counts,
        "layouts": [asdict(o.layout) for o in orders],
    }
