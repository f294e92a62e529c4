"""The few images that an encoder is measured on while it learns: drawn, read once, and kept in memory."""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Image
from transformers.utils.logging import tqdm

from ..arguments.data import MONITOR_SAMPLES, PreTrainingDataArguments, images_field, sources_of
from ..utils.value_range import SAMPLES
from .arrays import BrokenImage, at_fault
from .columns import find_column
from .dataset import ImageSamples
from .fingerprints import fingerprint_of_files
from .held_out import spread_rows
from .labels import has_label, stored_labels
from .loading import find_validation_split, load_images, local_path
from .pages import PagesSource, with_pages
from .sources import RowSource
from .transforms import PreTrainTransform


logger = logging.getLogger("a2mim")

FEWEST = 2  # images, of which figures can be had
OF_A_CLASS = 6  # images, so that each has as many neighbors of its class as are asked (`gauge.NEIGHBORS`)
SEED = 0  # of its own, so that runs with other seeds are measured on the same images
ERRORS = (ValueError, datasets.exceptions.DatasetsError, ConnectionError, FileNotFoundError)


@dataclass(frozen=True)
class MonitorImages:
    """Images to measure an encoder on.

    Attributes:
        pixel_values: (images, channels, height, width), not normalised: uint8 in [0, 255], or float32 in [0, 1] of
            images that are stored as arrays of that.
        transform: whose `normalize` they need.
        labels: (images,) class indices; `None` without labels.
        total: how many images there are, of which these were drawn.
        fingerprint: changes when other images are drawn.
        files: changes with the sizes of the files that they are drawn from (`fingerprint_of_files`).
    """

    pixel_values: torch.Tensor
    transform: PreTrainTransform
    labels: np.ndarray | None
    total: int
    fingerprint: str
    files: str | None = None

    def __len__(self) -> int:
        return len(self.pixel_values)

    @property
    def classes(self) -> int:
        """How many classes there are images of; 0 without labels."""
        return 0 if self.labels is None else len(np.unique(self.labels))


def open_monitor(args: PreTrainingDataArguments, token: str | None = None) -> datasets.Dataset | RowSource | None:
    """The rows that `monitor_dir` or `monitor_dataset` names; `None` if neither is given, or the gauge is off.

    Raises:
        ValueError: beginning with the argument, if it is missing, holds no images, or they cannot be read.
    """
    if args.monitor_steps == 0 or (args.monitor_dir is None and args.monitor_dataset is None):
        return None
    field = "monitor_dataset" if args.monitor_dir is None else "monitor_dir"
    if args.monitor_dir is not None and not local_path(args.monitor_dir).exists():
        raise ValueError(f"monitor_dir: {args.monitor_dir}: no such folder; name one with a sub-folder for each class")
    options: dict[str, Any] = {"train": False, "needs": "labels", "retries": args.read_retries, "token": token}
    try:
        if args.monitor_dir is not None:
            return load_images(args.monitor_dir, "validation", every_file=True, **options)
        # What says more of a dataset that is trained on as well holds here, too.
        known = args.monitor_dataset in sources_of(args)
        config, revision = (args.dataset_config_name, args.dataset_revision) if known else (None, None)
        split = args.monitor_split or find_validation_split(args.monitor_dataset, config) or "train"
        logger.info("monitor_dataset: split %s of %s", split, args.monitor_dataset)
        return load_images(args.monitor_dataset, split, config_name=config, revision=revision, **options)
    except ERRORS as error:
        raise ValueError(f"{field}: {error}") from error


def load_monitor(
    args: PreTrainingDataArguments,
    rows: datasets.Dataset | RowSource | None,
    evaluation: ImageSamples,
    evaluated: str | None,
    transform: PreTrainTransform,
) -> MonitorImages | None:
    """The images of the gauge of pre-training, read; `None` if it is off, or there is but one image.

    Args:
        rows: what `open_monitor` gave.
        evaluation: what the model is evaluated on, which is measured on without rows.
        evaluated: what that is, in words, if it was not named (`splits.load_pretraining_splits`).
        transform: of evaluation.

    Raises:
        ValueError: as `monitor_images`, if rows are given; of those to evaluate on, beginning with the argument that
            names them, or that none of them fits.
    """
    if args.monitor_steps == 0:
        return None
    if rows is not None:
        field = "monitor_dataset" if args.monitor_dir is None else "monitor_dir"
        images = monitor_images(rows, transform, args.monitor_samples, field, args.image_column_name)
        what = f"{field} {args.monitor_dataset if args.monitor_dir is None else args.monitor_dir}"
    elif len(evaluation) < FEWEST:
        logger.info("monitor: the encoder is not measured while it learns, as there is but one image to evaluate on")
        return None
    else:
        given = images_field(args, train=evaluated is not None)
        images = monitor_images(evaluation.source, transform, args.monitor_samples, given_by=given)
        what = f"those that the model is evaluated on ({evaluated or 'of the split or folder that is named for it'})"
    of = f"{images.classes:,} classes" if images.classes else "without labels"
    logger.info("monitor: %s of %s images, %s: %s", f"{len(images):,}", f"{images.total:,}", of, what)
    return images


def monitor_images(
    rows: datasets.Dataset | RowSource,
    transform: PreTrainTransform,
    samples: int = MONITOR_SAMPLES,
    field: str = "monitor",
    image_column: str | None = None,
    given_by: str | None = None,
) -> MonitorImages:
    """Images to measure an encoder on, with labels where the rows have a column of them (`datasets.ClassLabel`) with
    two images each of two classes or more. What is drawn is a function of the rows alone; broken images are skipped
    with a warning. Nothing is drawn from the global generators.

    Args:
        rows: a dataset, or rows whose columns are selected.
        transform: of evaluation (`train=False`).
        samples: how many images to draw at most: as many of each class as there are, or without labels spread over the
            rows.
        field: the argument that names the rows, for messages.
        image_column: the column of the images; found if not given.
        given_by: the argument that names the rows, where they are not for this alone.

    Raises:
        ValueError: beginning with `field`, if there are fewer than two images, or the transform cannot take images of
            this kind; with `given_by`, where that is given, or the argument that none of the images fits.
    """
    selected = getattr(rows, "columns", None) is not None
    column = None if selected else _image_column(rows, field, image_column)
    labels = None if selected else _labels(rows, field)
    read = ImageSamples(rows, transform.draw, column)
    if transform.spec.pages == SAMPLES and not selected:  # of selected rows each is a page already
        source = with_pages(read.source, transform.spec.stored_channels)
        if isinstance(source, PagesSource):
            labels = None if labels is None else np.repeat(labels, source.counts)
            read = ImageSamples(source, transform.draw)
    total, chunks = len(read), read.source.chunks
    chosen = spread_rows(samples, chunks) if labels is None else balanced_rows(labels, samples)
    pixels, kept, reasons, arguments = [], [], [], []
    for row in tqdm(chosen.tolist(), desc="images to measure on", leave=False):
        try:
            pixels.append(read[row]["pixel_values"])
            kept.append(row)
        except BrokenImage as error:
            reasons.append(str(error))
            arguments.append(error.argument)
            logger.warning("%s: %s; skipped", field, error)
        except ValueError as error:
            raise ValueError(f"{given_by or field}: {error}") from error
    if len(kept) < FEWEST:
        argument = at_fault(arguments) if given_by else None
        why = f"{f'give another --{argument}' if argument else 'name others'}{f' ({reasons[0]})' if reasons else ''}"
        raise ValueError(
            f"{argument or given_by or field}: {len(kept)} of {total:,} images can be used, but it takes {FEWEST}; "
            f"{why}"
        )
    if len(kept) < len(chosen):
        logger.warning("%s: %d of the %d images drawn are broken", field, len(chosen) - len(kept), len(chosen))
    own = None if labels is None else labels[kept]
    if own is not None and not _tell_apart(own):
        logger.warning("%s: two images of two classes are not left of %d: no k-NN accuracy", field, len(chosen))
        own = None
    drawn = zlib.crc32(np.asarray(kept, dtype=np.int64).tobytes())
    fingerprint, files = f"{read.source.fingerprint}-{drawn:08x}", fingerprint_of_files(read.source)
    return MonitorImages(torch.stack(pixels), transform, own, total, fingerprint, files)


def balanced_rows(labels: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """`count` rows (all, if there are no more), sorted: from each class one image after the other, in an order drawn
    for that class, until there are enough. No class has more than one image more than another, unless that one has no
    more. Where there are too many classes for `OF_A_CLASS` images of each, some classes are drawn. A function of the
    arguments alone.

    Args:
        labels: (images,) class indices. Those below 0, and images that are alone in their class, are left out.
    """
    labels = np.asarray(labels)
    classes, counts = np.unique(labels, return_counts=True)
    classes = classes[(classes >= 0) & (counts > 1)]
    most = max(2, count // OF_A_CLASS)
    if len(classes) > most:
        classes = np.sort(np.random.default_rng(SEED).permutation(classes)[:most])
    turns = np.full(len(labels), len(labels))  # after all
    for label in classes:
        own = np.flatnonzero(labels == label)
        turns[own] = np.random.default_rng((SEED, int(label))).permutation(len(own))
    drawn = np.lexsort((labels, turns))
    return np.sort(drawn[turns[drawn] < len(labels)][:count])


def _image_column(rows: datasets.Dataset | RowSource, field: str, name: str | None) -> str:
    try:
        return find_column(rows, Image, name if name in rows.features else None, "image_column_name")
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _labels(rows: datasets.Dataset | RowSource, field: str) -> np.ndarray | None:
    """The class of each row, -1 where it has none; `None` where there are no classes to tell apart, which is said."""
    column = next((name for name, kind in rows.features.items() if isinstance(kind, ClassLabel)), None)
    values = None if column is None else stored_labels(rows, column)
    if column is None:
        why = "they have no column of classes (a folder: no sub-folders of classes)"
    elif values is None:
        why = f"column {column!r} cannot be read without the images"
    else:
        labels = np.array([value if has_label(value, rows.features[column]) else -1 for value in values])
        if _tell_apart(labels[labels >= 0]):
            return labels
        why = f"column {column!r} has no two classes of two images"
    logger.info("%s: the images are used without labels, as %s: no k-NN accuracy", field, why)
    return None


def _tell_apart(labels: np.ndarray) -> bool:
    """Whether there are two classes of at least two images."""
    return int(np.count_nonzero(np.unique(labels, return_counts=True)[1] > 1)) > 1
