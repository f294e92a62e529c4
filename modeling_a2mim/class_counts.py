"""What named the classes of labelled images, and how many images each has, for the log."""

import logging
from collections.abc import Sequence

from datasets import Dataset

from .formats import METADATA
from .image_folders import FIRST_FOLDER, LAST_FOLDER
from .sources import DatasetSource, RowSource


logger = logging.getLogger("a2mim")

SHOWN = 5  # classes that are named in the log


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


def log_labels(
    dataset: Dataset | RowSource, column: str, names: Sequence[str], counts: Sequence[int] | None, use: str
):
    """Log the classes, the first few by name with their counts, and what named them.

    Args:
        counts: images of each class, `None` if that is not known.
        use: what the images are for, in a word.
    """
    shown = [name if counts is None else f"{name} {counts[i]:,}" for i, name in enumerate(names[:SHOWN])]
    shown += [] if len(names) <= SHOWN else [f"and {len(names) - SHOWN:,} more"]
    logger.info("%s: %d classes by %s: %s", use, len(names), label_rule(dataset, column), ", ".join(shown))
