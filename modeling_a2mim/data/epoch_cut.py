"""How many images each batch of an epoch takes, so that none is much smaller than the others and none larger.

A step takes as many images as were asked for, until two steps are left: these share what is left evenly (33 images in
steps of 8: 8, 8, 8, 5, 4). Where a step ends follows from the number of images and the total batch alone, not from how
it is divided among processes and accumulated batches.
"""

from dataclasses import dataclass


# Kept in checkpoints. In the first version the last batch took what was left, however little, and what was less than
# one image a process joined the batch before.
FIRST_CUT, CUT = 1, 2


@dataclass(frozen=True)
class EpochCut:
    """How so many rows are cut into batches, over all processes.

    Args:
        batch: images in a batch.
        accumulated: batches in an optimiser step.
        world: processes, each of which takes its share of every batch.
        drop_last: leave incomplete batches out; nothing is shared then.
        version: `CUT`, or `FIRST_CUT` for a run that began so.
    """

    batch: int
    accumulated: int = 1
    world: int = 1
    drop_last: bool = False
    version: int = CUT

    def __post_init__(self):
        if self.version not in (FIRST_CUT, CUT):
            raise ValueError(
                f"resume_from_checkpoint: its epochs are cut by version {self.version}, which a later version of the "
                "package knows; go on with that"
            )

    def count(self, rows: int) -> int:
        """The number of batches that so many rows are cut into."""
        full, rest = divmod(rows, self.batch)
        if self.drop_last:
            return full
        if self.version == FIRST_CUT:
            return full if full and rest < self.world else full + bool(rest)
        steps = self._steps(rows)
        if not steps:
            return 0
        start, stop = self._step(rows, steps - 1)
        return (steps - 1) * self.accumulated + _ceil(stop - start, self.batch)

    def span(self, rows: int, index: int) -> tuple[int, int]:
        """First and last position (exclusive) of batch `index` of so many rows."""
        if self.drop_last:
            return index * self.batch, (index + 1) * self.batch
        if self.version == FIRST_CUT:
            last = index == self.count(rows) - 1
            return index * self.batch, rows if last else (index + 1) * self.batch
        step, place = divmod(index, self.accumulated)
        start, stop = self._step(rows, step)
        batches = self.accumulated if step < self._steps(rows) - 1 else _ceil(stop - start, self.batch)
        return _part(start, stop, place, batches), _part(start, stop, place + 1, batches)

    def _steps(self, rows: int) -> int:
        return _ceil(rows, self.batch * self.accumulated)

    def _step(self, rows: int, step: int) -> tuple[int, int]:
        """First and last position (exclusive) of a step."""
        size, steps = self.batch * self.accumulated, self._steps(rows)
        if step < steps - 2:
            return step * size, (step + 1) * size
        first = max(0, steps - 2) * size
        parts = min(steps, 2)
        place = step - (steps - parts)
        return _part(first, rows, place, parts), _part(first, rows, place + 1, parts)


def _part(start: int, stop: int, place: int, parts: int) -> int:
    """Where part `place` of an even division begins, the larger parts first."""
    return start + _ceil((stop - start) * place, parts)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
