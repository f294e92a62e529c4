"""Where a training run is in its data, what it skipped, and how both are kept in a checkpoint."""

import logging
import math
from collections import Counter
from collections.abc import Callable

from .dataset import ENOUGH, ImageSamples
from .epoch_cut import CUT, FIRST_CUT
from .samplers import MixedOrder, StreamBatches, record


logger = logging.getLogger("a2mim")

NAMED = 5  # skipped images that each process names


class SkippedImages:
    """Counts broken images, names the first few, and stops a run when a source has too many: when so many were found
    that no order of the rest can make up for them, or at the end of a pass.

    Args:
        most: the largest share of a source that may be broken.
        rows: how many rows each source has; `None` for a stream, of which that is not known before its end.
        world: processes, each of which counts what it was given.

    Attributes:
        seen, skipped: rows that this process was given, and how many of them were broken, of each source.
    """

    def __init__(self, most: float, rows: dict[str, int] | None, world: int = 1):
        self.most, self.rows, self.world = most, rows, world
        self.seen, self.skipped, self._warned = Counter(), Counter(), set()

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
            passes = max(1, math.ceil(self.seen[name] * self.world / self.rows[name]))
            if count > self.most * self.rows[name] * passes:
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

    def judge(self, seen: Counter, skipped: Counter):
        """At the end of a pass, by the counts of all processes. Raises as `add`."""
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
        batch_size, rank, world, accumulated, drop_last: as in `StreamBatches`.
        workers: that load in each process.
        record: `state()` of the run that goes on.

    Raises:
        ValueError: if the data is not that of the record, or there is too little.
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
        record: dict | None = None,
    ):
        self.samples, self.total_batch = samples, batch_size * world * accumulated
        if record is not None and record["fingerprint"] != samples.source.fingerprint:
            raise ValueError(
                f"resume_from_checkpoint: the training data has changed since the checkpoint: {record['fingerprint']} "
                f"then, {samples.source.fingerprint} now (images, and a checksum of their files)"
            )
        self.order = samples.order(self.total_batch, record and record["order"]["layouts"])
        cut = CUT if record is None else record.get("cut", FIRST_CUT)
        self.batches = StreamBatches(self.order, batch_size, rank, world, accumulated, drop_last, cut)
        sources = getattr(samples.source, "sources", [samples.source])
        rows = sum((Counter({source.name: len(source)}) for source in sources), Counter())
        self.skipped = SkippedImages(samples.max_skipped_ratio, rows, world)
        self._position = (0, 0)
        if record is not None:
            self._check(record)
            self.batches.resume(*record["position"])
            self._position = self.batches.resumed
            if rank == 0:  # which carries on what all have counted
                self.skipped.seen.update(record["seen"])
                self.skipped.skipped.update(record["skipped"])
        mixed = isinstance(self.order, MixedOrder)
        readers = (1, 1) if mixed else (world, workers)  # whose turn it is in a mix does not follow the lanes
        samples.source.units_open = max(
            order.layout.units_open(order.units, self.total_batch, *readers)
            for order in (self.order.orders if mixed else [self.order])
        )

    def _check(self, record: dict):
        now = self.state()
        for name in ("seed", "counts"):
            if record["order"][name] != now["order"][name]:
                field = {"seed": "data_seed", "counts": "dataset_weights"}[name]
                raise ValueError(
                    f"{field}: the checkpoint was made with {record['order'][name]}, this run has {now['order'][name]}"
                )
        if record["total_batch"] != self.total_batch:
            logger.warning(
                "the checkpoint was made with %d images in a step, this run has %d: every image still comes once in "
                "a pass, but the schedule goes on by steps",
                record["total_batch"],
                self.total_batch,
            )

    def begin(self, number: int):
        """A pass begins."""
        self.batches.set_epoch(number)
        self._batch = self.batches.skipped if number == self.batches.resumed[0] else 0

    def trained(self, report: dict):
        """A batch was trained on. Raises as `SkippedImages.add`."""
        self._position = (self.batches.epoch, self.batches.span(self.batches.epoch, self._batch)[1])
        self._batch += 1
        self.skipped.add(report)

    def end(self, gather: Callable[[list], list]):
        """A pass ends, or training within it; called by all processes. Raises as `SkippedImages.add`.

        Args:
            gather: a list of one object to those of all processes.
        """
        if self._batch < len(self.batches):
            return
        counts = gather([(self.skipped.seen, self.skipped.skipped)])
        self.skipped.judge(*(sum(parts, Counter()) for parts in zip(*counts, strict=True)))

    def state(self) -> dict:
        """Where the run is; JSON. The counts are those of this process."""
        return {
            "position": list(self._position),
            "total_batch": self.total_batch,
            "order": record(self.order),
            "cut": self.batches.cut.version,
            "fingerprint": self.samples.source.fingerprint,
            "seen": dict(self.skipped.seen),
            "skipped": dict(self.skipped.skipped),
        }
