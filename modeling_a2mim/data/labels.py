"""Which images have a label, and which class it names. No labels are `None`, -1 (in test splits whose classes are
kept secret), empty text, NaN and infinity."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Value

from .sources import RowsOf, RowSource


logger = logging.getLogger("a2mim")

NAMED = 5  # classes that a message names


def has_label(value: Any, kind: Any) -> bool:
    """Whether a stored value is a label. `kind`: its type in the features of the dataset."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return False
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(kind, ClassLabel):
        return value >= 0
    return not isinstance(value, int | float) or isinstance(value, bool) or value != -1


def as_numbers(values: Sequence[str | None]) -> list[float | None] | None:
    """The numbers that texts say, `None` for empty ones; `None` for all if one says none, or all are empty."""
    try:
        found = [float(value.replace("_", " ")) if value and value.strip() else None for value in values]
    except ValueError:
        return None
    return found if any(number is not None for number in found) else None


def stored_labels(dataset: Dataset | RowSource, column: str) -> list | None:
    """A column as it is stored; `None` of a stream in which it cannot be read without the images."""
    # Read at once, here and wherever a column is: row by row takes ten times as long.
    return dataset[column][:] if isinstance(dataset, Dataset) else dataset.column(column)


def labelled(
    dataset: Dataset | RowSource, column: str, field: str, what: str, any_number: bool = False
) -> Dataset | RowSource:
    """The rows that have a label; how many have none is logged. Of what `stored_labels` cannot read, all.

    Args:
        field: the argument that names the images, for the message.
        what: what they are for: "train on".
        any_number: the labels are numbers to predict, -1 among them.

    Raises:
        ValueError: if no row has a label.
    """
    values, kind = stored_labels(dataset, column), dataset.features.get(column)
    if values is None:
        return dataset
    rows = [row for row, v in enumerate(values) if (v is not None if any_number else has_label(v, kind))]
    nothing = "no finite number" if any_number else "nothing or -1"
    if not rows:
        raise ValueError(
            f"{field}: none of the {len(values):,} images to {what} has a label, column {column!r} holds {nothing}; "
            "name others, or another column with --label_column_name"
        )
    if len(rows) == len(values):
        return dataset
    missing = len(values) - len(rows)
    logger.warning(
        "%s: %s of the %s images to %s have no label (column %r holds %s) and are left out",
        field,
        f"{missing:,}",
        f"{len(values):,}",
        what,
        column,
        nothing,
    )
    return dataset.select(rows) if isinstance(dataset, Dataset) else RowsOf(dataset, rows)


def encode_classes(dataset: Dataset, column: str) -> Dataset:
    """A column of words or whole numbers as class indices, whose names are these in the order of text; what is no
    label (`has_label`) has none. Whole numbers may be stored as floats, as tables with gaps have them.

    Raises:
        ValueError: naming `label_column_name`, if the column holds something else.
    """
    kind, values = dataset.features.get(column), dataset[column][:]
    if isinstance(kind, Value) and "string" in kind.dtype and (numbers := as_numbers(values)) is not None:
        own = Value("float64")  # numbers in words, as tables keep some of them
        values = [value if has_label(number, own) else None for value, number in zip(values, numbers, strict=True)]
    there = [value for value in values if has_label(value, kind)]
    if isinstance(kind, Value) and kind.dtype.startswith("float"):
        if not all(value.is_integer() for value in there):
            raise ValueError(
                f"label_column_name: column {column!r} holds fractions, which are no class labels; "
                "--problem_type regression learns numbers"
            )
        values = [int(value) if has_label(value, kind) else None for value in values]
    elif not isinstance(kind, Value):
        raise ValueError(
            f"label_column_name: column {column!r} holds {kind}, which are no class labels; "
            "--problem_type multi_label_classification learns lists of them"
        )
    words = [str(value) if has_label(value, kind) else None for value in values]
    return with_classes(dataset, column, words, sorted(set(words) - {None}))


def with_classes(dataset: Dataset, column: str, words: Sequence[str | None], names: Sequence[str]) -> Dataset:
    """The dataset with these words in a column, as indices of `names`."""
    index = {name: number for number, name in enumerate(names)}
    indices = [None if word is None else index[word] for word in words]
    return with_column(dataset, column, indices, ClassLabel(names=list(names)))


def with_column(dataset: Dataset, column: str, values: list, kind: Any) -> Dataset:
    """The dataset with other values in a column; its images are not copied, as `Dataset.map` does."""
    return dataset.remove_columns(column).add_column(column, values, feature=kind)


def same_classes(dataset: Dataset, column: str, names: Sequence[str], field: str, owner: str) -> Dataset:
    """The dataset with its classes as indices of `names`, told apart by their names; it may lack some of them.

    Args:
        names: of the classes that a classifier knows.
        field: the argument that names the images, for the message.
        owner: whose `names` are, for the message: "those trained on".

    Raises:
        ValueError: if there are images of other classes, which are named with how many.
    """
    own = dataset.features[column].names
    if own == list(names):
        return dataset
    words = [None if value is None or value < 0 else own[value] for value in dataset[column][:]]
    others = Counter(word for word in words if word is not None and word not in set(names))
    if others:
        shown = ", ".join(f"{name!r} ({count:,} images)" for name, count in others.most_common(NAMED))
        known = ", ".join(map(repr, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
        raise ValueError(
            f"{field}: {len(others)} of its classes are not {owner} ({known}): {shown}"
            f"{', ...' if len(others) > NAMED else ''}; leave these images out, or name the classes alike"
        )
    return with_classes(dataset, column, words, names)


def log_classes_without_images(counts: Sequence[int], names: Sequence[str], what: str):
    """Say of which classes there are no images, if of any."""
    lacking = [name for name, count in zip(names, counts, strict=True) if not count]
    if lacking:
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        logger.warning(
            "no images to %s of %d of the %d classes: %s%s",
            what,
            len(lacking),
            len(names),
            ", ".join(lacking[:NAMED]),
            more,
        )
