"""The classes of labelled images: how many images each has, and what named them."""

import logging

import numpy as np
from datasets import Dataset

from .formats import METADATA
from .image_folders import FIRST_FOLDER, LAST_FOLDER
from .sources import DatasetSource, RowSource


logger = logging.getLogger("a2mim")

SHOWN = 5  # classes that are named in the log


def count_labels(dataset: Dataset | RowSource, column: str, classes: int) -> np.ndarray | None:
    """(classes,) how many images each has; `None` for a stream of files that would have to be read for it."""
    dataset = dataset.dataset if isinstance(dataset, DatasetSource) else dataset
    if not isinstance(dataset, Dataset):
        return None
    labels = dataset.select_columns([column]).with_format("arrow")[:][column].drop_null().to_numpy()
    return np.bincount(labels[labels >= 0], minlength=classes)


def label_rule(dataset: Dataset | RowSource, column: str) -> str:
    """What gave the labels, in words."""
    info = getattr(dataset.dataset if isinstance(dataset, DatasetSource) else dataset, "info", None)
    if info is None:
        return f"column {column} of the dataset"
    if info.description in (FIRST_FOLDER, LAST_FOLDER):
        return info.description
    if info.description in METADATA:
        return f"column {column} of {info.description}"
    if info.builder_name == "imagefolder" and set(info.features) == {"image", "label"}:
        return LAST_FOLDER
    return f"column {column} of the dataset"


def log_labels(dataset: Dataset | RowSource, column: str, names: list[str], use: str):
    """Log the classes, the first few by name with their counts, and what named them.

    Args:
        use: what the images are for: training or evaluation.

    Raises:
        ValueError: if all images for training are of one class, from which nothing is learned.
    """
    counts = count_labels(dataset, column, len(names))
    shown = [name if counts is None else f"{name} {counts[i]:,}" for i, name in enumerate(names[:SHOWN])]
    shown += [] if len(names) <= SHOWN else [f"and {len(names) - SHOWN:,} more"]
    logger.info("%s: %d classes by %s: %s", use, len(names), label_rule(dataset, column), ", ".join(shown))
    if use == "training" and counts is not None and np.count_nonzero(counts) < 2:
        raise ValueError(
            f"label_column_name: all images for training are of one class, {names[int(counts.argmax())]}, of "
            f"{', '.join(names[:SHOWN])} by {label_rule(dataset, column)}; name data with labels of several classes"
        )
    without = [] if counts is None else [names[i] for i in np.flatnonzero(counts == 0)]
    if without:
        more = f" and {len(without) - SHOWN:,} more" if len(without) > SHOWN else ""
        logger.warning("%s: classes without images: %s%s", use, ", ".join(without[:SHOWN]), more)
