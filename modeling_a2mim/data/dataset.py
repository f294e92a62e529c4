"""Rows to samples to batches. What happens to a sample (crop, flip, mask) depends on the seed, the epoch and the row
alone, never on global state, workers, processes or what came before; `order` says which sample comes when.
"""

import contextlib
import copy
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import datasets
import torch
from torch.utils import data as torch_data

from .arrays import BrokenImage, at_fault
from .held_out import spread_rows
from .order import EpochOrder, MixedOrder, RepeatedOrder, ShuffleLayout
from .sources import DatasetSource, MixedSource, RowsOf, RowSource
from .transforms import PreTrainTransform, generators_kept, seed_generators


logger = logging.getLogger("a2mim")

PIXELS = "pixel_values"
REPORT = "skipped_images"  # key of a batch: what became of its rows
NEAR = 10  # rows behind a broken one that are tried first: they cost little
ENOUGH = 10  # broken images to speak of a share


class ImageSamples(torch_data.Dataset):
    """Samples as dicts of tensors, by keys (epoch, row) in training, as `order` gives them, or by a row in evaluation.
    What they hold is said by `transform`, and `labels` beside it. In training, `__getitems__` leaves normalising to
    `transform.normalize`, where there is one, so that workers send bytes: uint8 (channels, height, width).

    Broken images: in training, `__getitems__` leaves them out of its list, and reports them with it (`REPORT`); when
    fewer than two are good, it takes the next good rows instead, so that no batch is empty, or of a single image where
    it was to have more. In evaluation there are as many samples as asked for: the next good row stands in for each
    broken one, which is `broken` from then on; figures are of samples `without` these. `samples[row]` raises.

    Args:
        dataset: rows with images.
        transform: turns a stored image into a dict of tensors; raises BrokenImage for what is to be skipped. Where it
            has `takes_label`, it gets the stored label, too, and makes all of the sample (boxes and maps move with
            crops).
        image_column, label_column: names of columns; labels are left out if `None`. For a `RowSource` whose columns
            are selected, neither.
        seed: of everything random in `transform`, and of the order.
        shuffle_size: rows to shuffle among, where not all can be.
        max_skipped_ratio: the largest share of a source that may be broken while training, in [0, 1].
        repeats: how often each sample comes in a row in training, differently drawn (repeated augmentation); an epoch
            is as long as ever, and sees so many fewer images.

    Raises:
        BrokenImage: of `samples[key]`, naming the row, for an image that cannot be used or has no label.
        ValueError: when read, naming the row, if the transform cannot take images of this kind, or naming
            `max_skipped_ratio`, if nothing but broken images is found, or the argument that none of them fits.
        ReadError: when read, if a file cannot be.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | RowSource,
        transform: Callable,
        image_column: str | None = None,
        label_column: str | None = None,
        seed: int = 0,
        shuffle_size: int = 16384,
        max_skipped_ratio: float = 0.05,
        repeats: int = 1,
    ):
        source: RowSource = DatasetSource(dataset) if isinstance(dataset, datasets.Dataset) else dataset
        self.source = source.select(image_column, label_column) if image_column else source
        self.whole, self.left_out = self.source, 0  # what it was made with, and how many rows of that are no samples
        self._broken = torch.zeros(len(self.source), dtype=torch.bool).share_memory_()  # workers write to it
        self.transform, self.seed = transform, seed
        self.shuffle_size, self.max_skipped_ratio, self.repeats = shuffle_size, max_skipped_ratio, repeats

    def __len__(self) -> int:
        return len(self.source)

    def name(self, row: int) -> str:
        """What to call a row in a figure or a table: its file, relative to the user's folder, or its number."""
        return self.source.file_name(row) or f"row {row}"

    def first(self, count: int) -> list[dict[str, torch.Tensor]]:
        """The samples of the first rows."""
        return self.__getitems__(list(range(min(count, len(self)))))

    def spread(self, count: int) -> tuple[list[dict[str, torch.Tensor]], list[str]]:
        """Samples from all over the data, broken images left out, and what to call each."""
        samples, names = [], []
        for row in spread_rows(count, self.source.chunks).tolist():
            with contextlib.suppress(BrokenImage):
                samples.append(self[row])
                names.append(self.name(row))
        return samples, names

    @property
    def broken(self) -> list[int]:
        """The rows that were found to be broken in evaluation, by this process and its workers."""
        return self._broken.nonzero().flatten().tolist()

    def without(self, rows: Collection[int]) -> "ImageSamples":
        """The same samples without these rows, which a warning counts."""
        first, gone = self.name(min(rows)), set(rows)
        logger.warning("%d of %d images cannot be used and are left out, the first: %s", len(rows), len(self), first)
        others = copy.copy(self)
        others.source = RowsOf(self.source, [row for row in range(len(self)) if row not in gone])
        others.left_out = self.left_out + len(rows)
        others._broken = torch.zeros(len(others.source), dtype=torch.bool).share_memory_()
        return others

    def check_left_out(self):
        """
        Raises:
            ValueError: naming `max_skipped_ratio`, if more than that share of the images was left out.
        """
        if self.left_out > self.max_skipped_ratio * len(self.whole):
            raise ValueError(
                f"max_skipped_ratio: {self.left_out} of the {len(self.whole)} images of {self.whole.name} are broken, "
                f"more than {self.max_skipped_ratio:.3g} of them; mend the data or allow for more"
            )

    def order(self, total_batch: int, layouts: list[dict] | None = None) -> EpochOrder | MixedOrder:
        """In which order to train on the samples.

        Args:
            total_batch: images in a step, over all processes and accumulated batches.
            layouts: `ShuffleLayout.state` of each source, of a run that goes on; chosen if not given.
        """
        sources, weights = [self.source], None
        if isinstance(self.source, MixedSource) and self.source.weights is not None:
            sources, weights = self.source.sources, self.source.weights
        cuts = [ShuffleLayout.from_state(layout) for layout in layouts or []] or [
            ShuffleLayout.choose(source.chunks, total_batch, self.shuffle_size, source.row_bytes) for source in sources
        ]
        if self.repeats > 1:
            return RepeatedOrder(self.source.chunks, cuts[0], self.seed, self.repeats)
        orders = [EpochOrder(s.chunks, c, self.seed + i) for i, (s, c) in enumerate(zip(sources, cuts, strict=True))]
        return orders[0] if weights is None else MixedOrder(orders, weights, self.seed)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, row = key if isinstance(key, tuple) else (0, int(key))
        value = self.source.read([row])[0]
        with generators_kept(self._torch_only):
            return self._sample(self.transform, epoch, row, *value)

    def __getitems__(self, keys: list[int] | list[tuple[int, int]]) -> list[dict]:
        with generators_kept(self._torch_only):
            return self._samples(keys)

    @property
    def _torch_only(self) -> bool:
        return isinstance(self.transform, PreTrainTransform)  # which draws from no other generator

    def _samples(self, keys: list[int] | list[tuple[int, int]]) -> list[dict]:
        training = isinstance(keys[0], tuple)
        # Bytes go to the training process and its device, which normalises them: a quarter of the memory to fill.
        transform = getattr(self.transform, "draw", self.transform) if training else self.transform
        pairs = [key if isinstance(key, tuple) else (0, int(key)) for key in keys]
        samples: list[dict[str, Any]] = []
        skipped: list[tuple[int, BrokenImage]] = []
        for (epoch, row), value in zip(pairs, self.source.read([row for _, row in pairs]), strict=True):
            try:
                samples.append(self._sample(transform, epoch, row, *value))
            except BrokenImage as error:
                skipped.append((row, error))
                if not training:
                    self._broken[row] = True
                    logger.warning("%s; another image stands in for it", error)
                    samples.append(self._next_good(transform, epoch, row, error))
        for epoch, row in pairs[::-1][: max(0, min(2, len(pairs)) - len(samples))]:
            samples.append(self._next_good(transform, epoch, row, skipped[-1][1]))
        if training:
            seen = Counter(self.source.source_of(row) for _, row in pairs)
            samples[0][REPORT] = {
                "seen": dict(seen),
                "skipped": [(self.source.source_of(row), str(error)) for row, error in skipped],
            }
        return samples

    def _next_good(self, transform: Callable, epoch: int, row: int, reason: BrokenImage) -> dict[str, torch.Tensor]:
        tried, arguments = 0, {reason.argument}
        for other in rows_after(row, len(self)):
            try:
                return self._sample(transform, epoch, other, *self.source.read([other])[0])
            except BrokenImage as error:
                reason, tried = error, tried + 1
                arguments.add(error.argument)
            if tried >= ENOUGH and tried > self.max_skipped_ratio * len(self):
                break
        counted = f"of {len(self)} images {max(1, tried)} were tried"
        if argument := at_fault(arguments):
            raise ValueError(f"{argument}: {counted} and none can be used, the last one: {reason}")
        raise ValueError(f"max_skipped_ratio: {counted} and all are broken, the last one: {reason}")

    def _sample(self, transform: Callable, epoch: int, row: int, image: Any, label: Any) -> dict[str, torch.Tensor]:
        try:
            if isinstance(image, BrokenImage):
                raise image
            takes_label = getattr(transform, "takes_label", False)  # also that there is none
            without = label is None or (type(label) is int and label == -1)
            if self.source.columns[1] is not None and without and not takes_label:
                raise BrokenImage(f"has no {self.source.columns[1]}")
            seed_generators(self.seed, epoch, row, torch_only=self._torch_only)
            if takes_label:
                return transform(image, label)
            sample = transform(image)
        except BrokenImage as error:
            raise BrokenImage(f"{self.source.describe(row)}: {error}", error.argument) from error
        except ValueError as error:
            raise ValueError(f"{self.source.describe(row)}: {error}") from error
        return sample if label is None else {**sample, "labels": torch.tensor(label)}


def rows_after(row: int, count: int) -> Iterator[int]:
    """The other `count - 1` rows, each once: the next few, then in strides of the golden section, which soon leave a
    region, however large, that is broken."""
    near = [(row + step) % count for step in range(1, min(NEAR + 1, count))]
    yield from near
    stride = round(count * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, count) > 1:
        stride += 1
    given = {row, *near}
    for step in range(1, count):
        other = (row + step * stride) % count
        if other not in given:
            yield other


def collate(samples: list[dict], collator: Callable = torch_data.default_collate) -> dict:
    """A batch of samples, with what `ImageSamples` reports of it beside the tensors. torch's own collator puts the
    batch of a worker where the training process can read it, without a copy.

    Bytes that lie channels last, as the resize leaves them, stay so in a batch by torch's own collator, (batch,
    channels, height, width) all the same: `normalize` sorts them while it makes numbers of them anyway.

    Raises:
        ValueError: naming `data_collator`, if a collator of the user's asks for what samples do not have.
    """
    report = samples[0].pop(REPORT, None)
    usual = collator is torch_data.default_collate  # another one may look at the samples
    if usual and all(_channels_last(sample.get(PIXELS)) for sample in samples):
        batch = collator([{**sample, PIXELS: sample[PIXELS].permute(1, 2, 0)} for sample in samples])
        batch[PIXELS] = batch[PIXELS].permute(0, 3, 1, 2)
    else:
        try:
            batch = collator(samples)
        except KeyError as error:
            raise ValueError(
                f"data_collator: KeyError {error}; samples are made of the rows and have {', '.join(samples[0])}; for "
                "the rows as they are, pass dataset.with_transform(lambda rows: rows) and remove_unused_columns=False"
            ) from error
    return batch if report is None else {**batch, REPORT: report}


def _channels_last(pixels: Any) -> bool:
    if not isinstance(pixels, torch.Tensor) or pixels.dtype != torch.uint8 or pixels.ndim != 3:
        return False
    channels, _, width = pixels.shape
    return pixels.stride() == (1, width * channels, channels)
