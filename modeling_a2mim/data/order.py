"""Which sample comes when, as a function of seed, epoch and position alone: nothing has to be replayed to go on.

An epoch is a permutation of the rows of a source.

1. Rows that are read together (a row group of a parquet file, neighbouring files in a tar) form a chunk. The chunks
   follow each other in a random order, another one in every epoch: the sequence of the epoch.
2. The sequence is cut into streams of equal length, and each stream into blocks, whose rows are shuffled.
3. Samples are taken from the streams in turn, a few from each, so that a batch mixes rows that lie far apart, while
   every process and every worker needs only some of the streams.

A source that can read any row at no extra cost is one chunk, one stream and one block: a full shuffle.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


STREAMS_OF_A_BATCH = 16  # up to 16 processes find their parts of every batch in streams of their own
STREAMS_IN_TURN = 4  # up to 4 workers find their batches in streams of their own; more, and batches would mix less
SHUFFLE_BYTES = 2**31  # encoded images to shuffle among, in all processes together
MIX_WINDOW = 1000  # samples in which the sources of a mix have exactly their shares


@dataclass(frozen=True)
class ShuffleLayout:
    """How an epoch is cut, for a certain total batch; kept in checkpoints, as another one would be another order.

    Args:
        streams: number of streams.
        turn: samples of one stream that follow each other.
        block: rows that are shuffled among each other.
    """

    streams: int = 1
    turn: int = 1
    block: int = 2**31

    @classmethod
    def choose(
        cls, chunks: np.ndarray, total_batch: int, shuffle_size: int, row_bytes: float = 0.0
    ) -> "ShuffleLayout":
        """Streams for up to 16 processes of 4 workers, fewer where there are few chunks, or so large ones that open
        chunks would take more than half of `SHUFFLE_BYTES`; the blocks take no more than the other half.

        Args:
            chunks: (number of chunks,) rows of each.
            total_batch: images in a step, over all processes and accumulated batches.
            shuffle_size: rows to shuffle among, over all streams.
            row_bytes: mean size of a row in memory while its chunk is open; 0 if chunks need not be held.
        """
        if len(chunks) <= 1:
            return cls()
        together, turns = math.gcd(total_batch, STREAMS_OF_A_BATCH), STREAMS_IN_TURN
        most = len(chunks)
        if row_bytes:
            most = min(most, SHUFFLE_BYTES / 2 / (2 * np.mean(chunks) * row_bytes))
            shuffle_size = min(shuffle_size, int(SHUFFLE_BYTES / 2 / row_bytes))
        while together * turns > max(most, 1):
            together, turns = (together, turns // 2) if turns > 1 else (together // 2, 1)
        return cls(together * turns, total_batch // together, max(1, shuffle_size // (together * turns)))

    @classmethod
    def from_state(cls, state: dict[str, int]) -> "ShuffleLayout":
        """The layout in a checkpoint, whose keys are of the first version of this package."""
        return cls(state["lanes"], state["chunk"], state["block"])

    def state(self) -> dict[str, int]:
        """For a checkpoint; see `from_state`."""
        return {"lanes": self.streams, "chunk": self.turn, "block": self.block}

    def chunks_open(self, chunks: np.ndarray, total_batch: int, world: int = 1, workers: int = 1) -> int:
        """How many chunks one of `workers` in one of `world` processes needs at a time."""
        together = max(1, total_batch // self.turn)
        share = math.gcd(world, together) * math.gcd(max(workers, 1), max(1, self.streams // together))
        blocks = min(self.block / float(np.mean(chunks)), len(chunks))
        return math.ceil(self.streams / share) * (math.ceil(blocks) + 1)


class EpochOrder:
    """The order of the rows in every epoch.

    Args:
        chunks: (number of chunks,) rows of each, in the order of the source.
        layout: how an epoch is cut.
        seed: of all randomness.
    """

    def __init__(self, chunks: Sequence[int] | np.ndarray, layout: ShuffleLayout, seed: int = 0):
        self.chunks, self.layout, self.seed = np.asarray(chunks, dtype=np.int64), layout, seed
        self.starts = np.cumsum(self.chunks) - self.chunks
        self.length = int(self.chunks.sum())
        # Streams have equal numbers of whole turns; what is left over is shuffled among itself and comes last.
        self.stream_rows = self.length // (layout.streams * layout.turn) * layout.turn
        self._sequence = functools.lru_cache(1)(self._draw_sequence)
        self._shuffled = functools.lru_cache(layout.streams + 1)(self._shuffle)

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows of the source at the positions `start` to `stop` of an epoch, (stop - start,) int64."""
        layout, in_streams = self.layout, self.layout.streams * self.stream_rows
        positions = np.arange(start, stop)
        turns, offsets = np.divmod(positions, layout.turn)
        rounds, streams = np.divmod(turns, layout.streams)
        left_over = positions >= in_streams
        streams = np.where(left_over, layout.streams, streams)
        in_stream = np.where(left_over, positions - in_streams, rounds * layout.turn + offsets)
        # What is left over is read by all, in blocks as large as those of all streams together.
        size = np.where(left_over, layout.block * layout.streams, layout.block)
        blocks, in_block = np.divmod(in_stream, size)
        places = np.empty_like(positions)
        for stream, block in np.unique(np.stack((streams, blocks)), axis=1).T:
            here = (streams == stream) & (blocks == block)
            places[here] = self._shuffled(epoch, int(stream), int(block))[in_block[here]]
        order, ends = self._sequence(epoch)
        chunk = np.searchsorted(ends, places, side="right")
        return self.starts[order[chunk]] + places - (ends[chunk] - self.chunks[order[chunk]])

    def _draw_sequence(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The chunks in the order of this epoch, and where each ends in the sequence of rows."""
        if len(self.chunks) == 1:
            order = np.zeros(1, dtype=np.int64)
        else:
            order = np.random.default_rng((self.seed, epoch, self.layout.streams + 1)).permutation(len(self.chunks))
        return order, np.cumsum(self.chunks[order])

    def _shuffle(self, epoch: int, stream: int, block: int) -> np.ndarray:
        """Places in the sequence of a block's rows, shuffled; the stream `layout.streams` is what is left over."""
        first = stream * self.stream_rows
        left_over = stream == self.layout.streams
        last = self.length if left_over else first + self.stream_rows
        size = self.layout.block * (self.layout.streams if left_over else 1)
        first += block * size
        size = min(size, last - first)
        return first + np.random.default_rng((self.seed, epoch, stream, block)).permutation(size)

    def keys(self, epoch: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch, row) at these positions."""
        return [(epoch, int(row)) for row in self.rows(epoch, start, stop)]

    def state(self) -> dict:
        """What makes up the order, for a checkpoint; JSON."""
        return {"seed": self.seed, "rows": [self.length], "counts": None, "layouts": [self.layout.state()]}


class RepeatedOrder(EpochOrder):
    """Repeated augmentation (https://arxiv.org/abs/1901.09335) as timm's RepeatAugSampler does it in one process:
    each image comes `repeats` times in a row, and an epoch ends after as many samples as there are images. The epoch
    in the keys tells repeats apart, so that each is drawn differently."""

    def __init__(self, chunks: np.ndarray, layout: ShuffleLayout, seed: int, repeats: int):
        super().__init__(chunks, layout, seed)
        self.repeats = repeats

    def keys(self, epoch: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch and repeat in one number, row) at these positions."""
        first = start // self.repeats
        rows = self.rows(epoch, first, -(-stop // self.repeats))
        positions = range(start, stop)
        return [
            (epoch * self.repeats + place % self.repeats, int(rows[place // self.repeats - first]))
            for place in positions
        ]


class MixedOrder:
    """Several orders with weights: of every 1000 samples each gives its share, in random turn, and each goes through
    its own rows epoch after epoch. An epoch of the mix is as many samples as there are rows in all.

    Args:
        orders: of the sources, whose rows follow each other in the mix.
        weights: of the sources; only their ratios matter.
        seed: of the turns.

    Raises:
        ValueError: if a weight is not positive or below a thousandth of all.
    """

    def __init__(self, orders: Sequence[EpochOrder], weights: Sequence[float], seed: int = 0):
        self.orders, self.seed = list(orders), seed
        self.counts = mix_counts(weights)
        self.firsts = np.cumsum([0] + [order.length for order in orders])
        self.length = int(self.firsts[-1])
        self._turns = functools.lru_cache(2)(self._draw_turns)
        self._window = functools.lru_cache(2 * len(self.orders))(self._rows_in_window)

    def keys(self, epoch: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch of the source, row of the mix) at these positions."""
        keys = []
        for place in range(epoch * self.length + start, epoch * self.length + stop):
            window, inside = divmod(place, MIX_WINDOW)
            source, before = self._turns(window)[:, inside]
            order = self.orders[source]
            own_epoch, position = divmod(window * self.counts[source] + before, order.length)
            keys.append((int(own_epoch), int(self.firsts[source] + self._row(source, own_epoch, position))))
        return keys

    def _draw_turns(self, window: int) -> np.ndarray:
        """(2, 1000): whose turn it is, and how often it was before in this window."""
        turns = np.repeat(np.arange(len(self.counts)), self.counts)
        np.random.default_rng((self.seed, window, 2**31)).shuffle(turns)
        before = np.empty_like(turns)
        for source in range(len(self.counts)):
            before[turns == source] = np.arange(self.counts[source])
        return np.stack((turns, before))

    def _row(self, source: int, epoch: int, position: int) -> int:
        """The row at a position of a source; looked up a window at a time."""
        start = position // MIX_WINDOW * MIX_WINDOW
        return self._window(source, epoch, start)[position - start]

    def _rows_in_window(self, source: int, epoch: int, start: int) -> np.ndarray:
        order = self.orders[source]
        return order.rows(epoch, start, min(start + MIX_WINDOW, order.length))

    def state(self) -> dict:
        """As `EpochOrder.state`."""
        own = [order.state() for order in self.orders]
        joined = {name: [value for state in own for value in state[name]] for name in ("rows", "layouts")}
        return {"seed": self.seed, "rows": joined["rows"], "counts": self.counts, "layouts": joined["layouts"]}


def mix_counts(weights: Sequence[float]) -> list[int]:
    """Samples of each source among 1000, by largest remainder.

    Raises:
        ValueError: naming the weight that is not positive or too small.
    """
    given = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError(f"dataset_weights: must be positive, got {given.tolist()}")
    exact = given / given.sum() * MIX_WINDOW
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: MIX_WINDOW - counts.sum()]:
        counts[index] += 1
    if not counts.all():
        raise ValueError(f"dataset_weights: {given.tolist()} gives a source less than one sample in {MIX_WINDOW}")
    return counts.tolist()
