"""Few of many labelled images: drawn by class, nested, and kept in a file that fits one set of images only."""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .sources import RowSource


logger = logging.getLogger("a2mim")

COMPARED = 100  # images of a subset whose contents are compared, where none is a file of its own


def draw_subset(
    labels: Sequence[int],
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    seed: int,
    names: Sequence[str] | None = None,
) -> list[int]:
    """Rows of a random subset, in ascending order. Subsets of one seed are nested: each class has one order, of which
    the first images are taken.

    Args:
        labels: class index of each row.
        per_class: images of every class.
        fraction: share of every class, in (0, 1], rounded to the nearest number of images (halves up), at least one.
        seed: of the order of each class.
        names: of the classes, for errors.

    Raises:
        ValueError: if not exactly one of `per_class` and `fraction` is given, one is out of range, a class has fewer
            images than `per_class`, or `labels` are no class indices.
    """
    if (per_class is None) == (fraction is None):
        raise ValueError("labels_per_class: give either it or label_fraction")
    if per_class is not None and per_class < 1:
        raise ValueError(f"labels_per_class: must be at least 1, got {per_class}")
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"label_fraction: must be in (0, 1], got {fraction}")
    classes, generator, chosen = _as_classes(labels), np.random.default_rng(seed), []
    for label in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == label))
        count = max(1, int(fraction * len(rows) + 0.5)) if per_class is None else per_class
        if count > len(rows):
            name = label if names is None else names[label]
            raise ValueError(f"labels_per_class: class {name} has only {len(rows)} images, not {count}")
        chosen.append(rows[:count])
    return sorted(np.concatenate(chosen).tolist())


def checksum_of_images(source: RowSource, rows: Sequence[int]) -> str:
    """Tells the images of a subset from others: by the names of their files, wherever their common folder lies; where
    they are no files of their own, by the contents of some. The first word says which.

    Args:
        source: whose columns are selected.
        rows: of the subset.

    Raises:
        ReadError: if images cannot be read.
    """
    if (files := source.image_files()) is not None:
        parts = [files[row].replace(os.sep, "/").split("/") for row in rows]
        levels = zip(*(folders for *folders, _ in parts), strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
        names = ["/".join(part[common:]) for part in parts]
        return f"names {hashlib.sha256(json.dumps(names).encode()).hexdigest()}"
    checksum = hashlib.sha256()
    for image, _ in source.read(rows[:: -(-len(rows) // COMPARED)]):
        image = image["bytes"] if isinstance(image, dict) else image
        data = image.tobytes() if isinstance(image, np.ndarray) else image
        checksum.update(hashlib.sha256(data if isinstance(data, bytes) else b"").digest())  # or there is none
    return f"contents {checksum.hexdigest()}"


def save_subset(
    path: str | os.PathLike,
    rows: Sequence[int],
    labels: Sequence[int],
    *,
    checksum: str,
    seed: int | None = None,
    per_class: int | None = None,
    fraction: float | None = None,
):
    """Write a subset of the images with these `labels` as JSON, with how it was drawn and what it was drawn from.
    `checksum`: `checksum_of_images` of the subset."""
    content = {
        "seed": seed,
        "labels_per_class": per_class,
        "label_fraction": fraction,
        "images": len(labels),
        "labels_sha256": _checksum(labels),
        "subset_sha256": checksum,
        "rows": [int(row) for row in rows],
    }
    Path(path).write_text(json.dumps(content) + "\n")


def load_subset(path: str | os.PathLike, labels: Sequence[int], checksum_of: Callable[[list[int]], str]) -> list[int]:
    """The rows in a file of `save_subset`, for images with these `labels`. Files of earlier versions say nothing of
    the images but their labels, which is logged.

    Args:
        checksum_of: `checksum_of_images` of rows.

    Raises:
        ValueError: beginning with `label_subset`, if the file cannot be read, is no such file, or was made for images
            with other labels or in another order, or if its rows are other images now.
    """
    name = Path(path).name
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        images, checksum, rows = content["images"], content["labels_sha256"], content["rows"]
    except OSError as error:
        raise ValueError(f"label_subset: {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"label_subset: {name} is no file of save_subset: {error!r}") from error
    if images != len(labels):
        raise ValueError(f"label_subset: {name} was made for {images} images, these are {len(labels)}")
    if checksum != _checksum(labels):
        raise ValueError(f"label_subset: {name} was made for images with other labels, or in another order")
    whole = isinstance(rows, list) and all(type(row) is int and 0 <= row < images for row in rows)
    if not whole or not rows or len(set(rows)) < len(rows):
        raise ValueError(f"label_subset: the rows in {name} must be different ones of 0 to {images - 1}")
    then, now = content.get("subset_sha256"), checksum_of(rows)
    if then is None:
        logger.warning(
            "label_subset: %s is of an earlier version and does not say which images it was drawn from; only the "
            "number of images and their labels were compared",
            name,
        )
    elif str(then).split()[:1] != now.split()[:1]:
        logger.warning(
            "label_subset: %s was drawn from images that are stored otherwise (files, or inside of others); only the "
            "number of images and their labels were compared",
            name,
        )
    elif then != now:
        raise ValueError(
            f"label_subset: the rows in {name} are other images than those that were drawn ({now.split()[0]} differ): "
            "files were renamed or added since, or this is other data; name what it was drawn from, or draw anew"
        )
    return rows


def _as_classes(labels: Sequence[int]) -> np.ndarray:
    classes = np.asarray(labels)
    if classes.ndim != 1 or not len(classes) or classes.dtype.kind not in "iu" or classes.min() < 0:
        # Test splits often have -1 or None for a class that is not told.
        raise ValueError("label_column_name: expected one class index, 0 or more, for each image")
    return classes


def _checksum(labels: Sequence[int]) -> str:
    return hashlib.sha256(_as_classes(labels).astype("<i8").tobytes()).hexdigest()
