"""Where a training run is in its data, what it skipped, and what of both a checkpoint holds."""

import logging
import math
from collections import Counter
from collections.abc import Callable

from .dataset import ENOUGH, ImageSamples
from .epoch_cut import CUT, FIRST_CUT
from .order import MixedOrder
from .samplers import EpochBatches


logger = logging.getLogger("a2mim")

NAMED = 5  # skipped images that each process names


class SkippedImages:
    """Counts broken images, names the first few, and stops a run when a source has too many: when so many were found
    that no order of the rest can make up for them, or at the end of an epoch.

    Args:
        most: the largest share of a source that may be broken, in [0, 1].
        rows: how many rows each source has; `None` for a stream, of which that is not known before its end.
        world: processes, each of which counts what it was given.

    Attributes:
        seen, skipped: rows that this process was given, and how many of them were broken, of each source.
    """

    def __init__(self, most: float, rows: dict[str, int] | None, world: int = 1):
        self.most, self.rows, self.world = most, rows, world
        self.seen: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._warned: set[str] = set()

    def add(self, report: dict):
        """Count the report of a batch.

        Raises:
            ValueError: if more than the share `most` of a source is broken for certain.
        """
        self.seen.update(report["seen"])
        for name, what in report["skipped"]:
            self.skipped[name] += 1
            if self.skipped.total() <= NAMED:
                logger.warning("skipped %s", what)
            if self.skipped.total() == NAMED:
                logger.warning("further broken images are only counted, as skipped_images in the logs")
        for name, count in self.skipped.items() if self.rows else ():
            epochs = max(1, math.ceil(self.seen[name] * self.world / self.rows[name]))
            if count > self.most * self.rows[name] * epochs:
                self._stop(name, count, self.seen[name])
            if count >= ENOUGH and count > self.most * self.seen[name] and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "max_skipped_ratio: %d of the first %d images read from %s are broken; the run stops if it is "
                    "more than %.3g of all %d",
                    count,
                    self.seen[name],
                    name,
                    self.most,
                    self.rows[name],
                )

    def check(self, seen: Counter, skipped: Counter):
        """At the end of an epoch, by the counts of all processes. Raises as `add`."""
        for name, count in skipped.items():
            if count > self.most * seen[name]:
                self._stop(name, count, seen[name])

    def _stop(self, name: str, count: int, seen: int):
        raise ValueError(
            f"max_skipped_ratio: {count} of the {seen} images read so far from {name}"
            f"{f', which has {self.rows[name]},' if self.rows else ''} are broken, more than {self.most:.3g} of them; "
            "mend the data or allow for more"
        )


class TrainingData:
    """What a training run reads, and how far it has come: the order, this process's batches, and the skipped images.

    Args:
        samples: what to train on.
        batch_size, rank, world, accumulated, drop_last: as in `EpochBatches`.
        workers: that load in each process.
        resumed: `state()` of the run that goes on, from the manifest of its checkpoint.

    Raises:
        ValueError: if the data is not what that run was on, or there is too little.
    """

    def __init__(
        self,
        samples: ImageSamples,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        accumulated: int = 1,
        drop_last: bool = False,
        workers: int = 0,
        resumed: dict | None = None,
    ):
        self.samples, self.total_batch = samples, batch_size * world * accumulated
        if resumed is not None and (then := resumed["fingerprint"]) != (now := samples.source.fingerprint):
            raise ValueError(
                f"resume_from_checkpoint: the training data has changed since the checkpoint: {then} then, {now} now "
                "(images, and a checksum of their files)"
            )
        self.order = samples.order(self.total_batch, None if resumed is None else resumed["order"]["layouts"])
        cut = CUT if resumed is None else resumed.get("cut", FIRST_CUT)
        self.batches = EpochBatches(self.order, batch_size, rank, world, accumulated, drop_last, cut)
        sources = getattr(samples.source, "sources", [samples.source])
        rows = sum((Counter({source.name: len(source)}) for source in sources), Counter())
        self.skipped = SkippedImages(samples.max_skipped_ratio, rows, world)
        self._position = (0, 0)
        if resumed is not None:
            self._check(resumed)
            self.batches.resume(*resumed["position"])
            self._position = self.batches.resumed
            if rank == 0:  # which carries on what all have counted
                self.skipped.seen.update(resumed["seen"])
                self.skipped.skipped.update(resumed["skipped"])
        if isinstance(self.order, MixedOrder):  # in which whose turn it is does not follow the streams
            orders, readers = self.order.orders, (1, 1)
        else:
            orders, readers = [self.order], (world, workers)
        samples.source.keep_chunks(
            max(order.layout.chunks_open(order.chunks, self.total_batch, *readers) for order in orders)
        )

    def _check(self, resumed: dict):
        order = self.order.state()
        for name, field in (("seed", "data_seed"), ("counts", "dataset_weights")):
            then, now = resumed["order"][name], order[name]
            if then != now:
                raise ValueError(f"{field}: the checkpoint was made with {then}, this run has {now}")
        if resumed["total_batch"] != self.total_batch:
            logger.warning(
                "the checkpoint was made with %d images in a step, this run has %d: every image still comes once in "
                "an epoch, but the schedule goes on by steps",
                resumed["total_batch"],
                self.total_batch,
            )

    def begin(self, epoch: int):
        """An epoch begins."""
        self.batches.set_epoch(epoch)
        self._batch = self.batches.skipped if epoch == self.batches.resumed[0] else 0

    def trained(self, report: dict):
        """A batch was trained on. Raises as `SkippedImages.add`."""
        self._position = (self.batches.epoch, self.batches.span(self.batches.epoch, self._batch)[1])
        self._batch += 1
        self.skipped.add(report)

    def end(self, gather: Callable[[list], list]):
        """An epoch ends, or training within it; called by all processes. Raises as `SkippedImages.add`.

        Args:
            gather: a list of one object to those of all processes.
        """
        if self._batch < len(self.batches):
            return
        counts = gather([(self.skipped.seen, self.skipped.skipped)])
        self.skipped.check(*(sum(parts, Counter()) for parts in zip(*counts, strict=True)))

    def state(self) -> dict:
        """Where the run is, for the manifest of a checkpoint; JSON. The counts are those of this process."""
        return {
            "position": list(self._position),
            "total_batch": self.total_batch,
            "order": self.order.state(),
            "cut": self.batches.cut.version,
            "fingerprint": self.samples.source.fingerprint,
            "seen": dict(self.skipped.seen),
            "skipped": dict(self.skipped.skipped),
        }
