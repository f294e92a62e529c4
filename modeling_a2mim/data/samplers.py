"""The batches of one process: which positions of an epoch they cover, also in a run that goes on."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from .epoch_cut import CUT, EpochCut
from .order import EpochOrder, MixedOrder


class EpochBatches(Sampler):
    """Batches of keys for one of several processes: which samples make up a step does not depend on their number.

    A step takes the next positions of the epoch, as `EpochCut` cuts it, divided evenly between the processes. The last
    two steps share what is left (with `drop_last` it is left out); where that is less than one image for each process,
    which only batches of one come to, some have an image that another one has as well.

    Args:
        order: of the rows.
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
        order: EpochOrder | MixedOrder,
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
        if order.length < (self.cut.batch if drop_last else world):
            needed = f"one batch of {self.cut.batch}" if drop_last else f"the {world} processes"
            raise ValueError(f"the dataset has only {order.length} images, fewer than {needed}")

    def set_epoch(self, epoch: int):
        """Say which epoch begins."""
        self.epoch = epoch

    def resume(self, epoch: int, seen: int):
        """Go on in an epoch after its first `seen` positions, whatever the size of the batches that gave them."""
        self.resumed = (epoch, seen) if self.cut.count(self.order.length - seen) else (epoch + 1, 0)

    @property
    def skipped(self) -> int:
        """How many of the `len(self)` batches of the resumed epoch count as given: whole optimiser steps."""
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

    def span(self, epoch: int, index: int) -> tuple[int, int]:
        """First and last position (exclusive) that batch `index` of an epoch covers on all processes."""
        skipped, seen = (self.skipped, self.resumed[1]) if epoch == self.resumed[0] else (0, 0)
        left, index = len(self) - skipped, index - skipped
        rows = self.order.length - seen
        if left != self.cut.count(rows):  # the batches have another size than before: even ones, to end with a step
            return seen + rows * index // left, seen + rows * (index + 1) // left
        start, stop = self.cut.span(rows, index)
        return seen + start, seen + stop

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for index in range(len(self)):
            if epoch == self.resumed[0] and index < self.skipped:
                yield []  # which nobody reads
                continue
            start, stop = self.span(epoch, index)
            first = start + (stop - start) * self.rank // self.world
            last = start + (stop - start) * (self.rank + 1) // self.world
            if last == first:  # fewer images than processes: one is repeated
                first, last = min(first, stop - 1), min(first, stop - 1) + 1
            yield self.order.keys(epoch, first, last)
