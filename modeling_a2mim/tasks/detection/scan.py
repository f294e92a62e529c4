"""All annotated objects are looked at before training, and read together with the size of their image."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
from transformers.utils.logging import tqdm

from ...arguments.detection import BOX_FORMATS
from ...data.decoding import BrokenImage
from ...data.sources import RowsOf, RowSource
from ..segmentation.labels import some
from ..segmentation.scan import is_far
from .annotations import CLASS_FIELDS, NO_AREA, NO_CLASS, NO_MASK, Annotations, as_rows, object_fields


logger = logging.getLogger("a2mim")

CHUNK = 500  # images whose annotations are read together


class NoObjects(ValueError):
    """There is not a single object that can be used."""


class Sized(NamedTuple):
    """Objects as they are stored, and the size of the image in whose pixels they are; `None` if it is not told."""

    objects: Any
    height: int | None
    width: int | None


class SizedRows(RowsOf):
    """The rows of a source with columns `height` and `width`, whose labels are read as `Sized`."""

    def __init__(self, source: RowSource, sizes: RowSource | None = None):
        super().__init__(source, range(len(source)))
        self.sizes = source.select("height", "width") if sizes is None else sizes

    @property
    def fingerprint(self):
        return self.source.fingerprint

    def select(self, image_column, label_column=None):
        return SizedRows(self.source.select(image_column, label_column), self.sizes)

    def take(self, count):
        return SizedRows(self.source.take(count), self.sizes)

    def read(self, rows):
        pairs = zip(super().read(rows), self.sizes.read(rows), strict=True)
        return [(image, Sized(label, height, width)) for (image, label), (height, width) in pairs]


def with_sizes(source: RowSource) -> RowSource:
    """The same rows, read as `Sized` where the source has columns of whole numbers called `height` and `width`."""
    kinds = [source.features.get(name) for name in ("height", "width")]
    whole = [isinstance(kind, datasets.Value) and "int" in kind.dtype for kind in kinds]
    return SizedRows(source) if all(whole) else source


@dataclass
class FoundObjects:
    """What a look at all annotations of a split found.

    Args:
        images, empty: how many there are, and how many of them have no object that can be used.
        objects: that are annotated.
        crowds: regions of many objects.
        classes: how many objects can be used of each class, by its number.
        reasons: how many objects cannot be used, by the reason.
        unknown: how many objects there are of each class that is not known, by its name if it has one.
        clipped: boxes that are cut off, where the sizes of images are told.
        unreadable: rows whose annotations are none, with the reason.
    """

    images: int = 0
    empty: int = 0
    objects: int = 0
    crowds: int = 0
    classes: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)
    unknown: Counter = field(default_factory=Counter)
    clipped: int = 0
    unreadable: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, value, annotations: Annotations, height: int | None, width: int | None):
        """Count the annotation of a row in."""
        self.images += 1
        try:
            objects = as_rows(value)
        except ValueError as error:
            self.unreadable.append((row, str(error)))
            return
        self.objects += len(objects)
        problems = [annotations.problem(one) for one in objects]
        stored = [one.get(annotations.category) for one, p in zip(objects, problems, strict=True) if p == NO_CLASS]
        self.unknown.update(map(annotations.shown_class, stored))
        if height and width:
            found = annotations.read(objects, height, width)
            self.reasons += found.reasons
            self.clipped += found.clipped
            self.crowds += int(found.crowd.sum())
            usable = found.classes[~found.crowd].tolist()
        else:
            self.reasons.update(filter(None, problems))
            good = [one for one, problem in zip(objects, problems, strict=True) if problem is None]
            self.crowds += sum(bool(one.get("iscrowd")) for one in good)
            usable = [annotations.index(one[annotations.category]) for one in good if not one.get("iscrowd")]
        self.classes.update(usable)
        self.empty += not usable


def values(source: RowSource, column: str, what: str) -> Iterator[tuple[int, Any]]:
    """(row, annotation) of all rows, with a progress bar."""
    rows = _in_chunks(source.select(column))
    for row, (value, _) in tqdm(
        rows, total=len(source), desc=f"looking at the {what}", unit=" images", delay=1, leave=False
    ):
        yield row, value


def stored_classes(sources: list[RowSource], column: str) -> dict[int | str, str]:
    """The classes that occur in sources that do not name them, as `id2label`."""
    fields = object_fields(sources[0].features[column]) or {}
    category = next((name for name in CLASS_FIELDS if name in fields), CLASS_FIELDS[0])
    found: set[int | str] = set()
    for source in sources:
        for _, value in values(source, column, "classes"):
            try:
                rows = as_rows(value)
            except ValueError:  # which is counted later on
                continue
            found.update(row[category] for row in rows if isinstance(row.get(category), int | str))
    return {value: str(value) for value in sorted(found, key=lambda one: (isinstance(one, str), one))}


def look_at_objects(source: RowSource, annotations: Annotations, what: str) -> FoundObjects | None:
    """Look at all annotations before training, without their images, and log what cannot be used; `None` for streams
    from afar, of which it is counted while training.

    Args:
        source: rows with the column of `annotations`.
        annotations: how they are read.
        what: to call them: "training data".

    Raises:
        NoObjects: if there are no objects at all.
        ValueError: naming the argument, if most of them cannot be used.
    """
    if is_far(source):
        logger.warning("%s: its objects are streamed from afar, and not looked at before training", what)
        return None
    found, column = FoundObjects(), annotations.column
    sized = isinstance(with_sizes(source), SizedRows)
    sizes = (size for _, size in _in_chunks(source.select("height", "width"))) if sized else None
    for row, value in values(source, column, f"objects of the {what}"):
        height, width = next(sizes) if sized else (None, None)
        found.add(row, None if isinstance(value, BrokenImage) else value, annotations, height, width)
    _check(found, annotations, what)
    _report(found, annotations, what, source)
    return found


def _in_chunks(rows: RowSource) -> Iterator[tuple[int, tuple]]:
    """(row, what `read` gives of it) of all rows."""
    for start in range(0, len(rows), CHUNK):
        part = list(range(start, min(start + CHUNK, len(rows))))
        yield from zip(part, rows.read(part), strict=True)


def _check(found: FoundObjects, annotations: Annotations, what: str):
    column = annotations.column
    if 2 * len(found.unreadable) > found.images:
        raise ValueError(f"objects_column_name: {column!r} of the {what} {found.unreadable[0][1]}")
    reasons = found.reasons
    for reason, count in reasons.most_common(1):
        if 2 * count <= found.objects:
            continue
        if reason == NO_AREA:
            raise ValueError(
                f"bbox_format: {count:,} of {found.objects:,} boxes of the {what} have no area when read as "
                f"{annotations.box_format}; there are {', '.join(BOX_FORMATS)}"
            )
        if reason == NO_CLASS:
            raise ValueError(
                f"id2label: {count:,} of {found.objects:,} objects of the {what} are of classes without a name "
                f"({some(found.unknown)}); there is no such class among {some(annotations.names, 20)}"
            )
        hint = "; --task object-detection needs none" if reason == NO_MASK else ""
        raise ValueError(
            f"objects_column_name: {column!r} of the {what} has {count:,} of {found.objects:,} objects {reason}{hint}"
        )
    if not found.classes:
        raise NoObjects(
            f"objects_column_name: {column!r} of the {what} holds no objects at all, in {found.images:,} images"
        )


def _report(found: FoundObjects, annotations: Annotations, what: str, source: RowSource):
    names, counts = annotations.names, found.classes
    logger.info(
        "%s: %s objects to use in %s images, %s of which have none; %d classes: %s",
        what,
        f"{counts.total():,}",
        f"{found.images:,}",
        f"{found.empty:,}",
        len(names),
        some((f"{name} ({counts[index]:,})" for index, name in enumerate(names)), 20),
    )
    for reason, count in found.reasons.items():
        hint = f" ({some(found.unknown)})" if reason == NO_CLASS else ""
        logger.warning(
            "%s: %s of %s objects are left out: %s%s", what, f"{count:,}", f"{found.objects:,}", reason, hint
        )
    if found.clipped:
        logger.warning("%s: %s boxes reach out of their image, and are cut off", what, f"{found.clipped:,}")
    if found.crowds:
        logger.warning(
            "%s: %s objects are crowds (iscrowd): not trained on, and neither hits nor misses in evaluation",
            what,
            f"{found.crowds:,}",
        )
    if found.unreadable:
        row, reason = found.unreadable[0]
        logger.warning(
            "%s: %s images have annotations that cannot be read, and will be skipped; %s %s",
            what,
            f"{len(found.unreadable):,}",
            source.select(annotations.column).describe(row),
            reason,
        )
    if absent := [name for index, name in enumerate(names) if not counts[index]]:
        logger.warning("%s: these classes do not occur: %s", what, some(absent, 20))


__all__ = ["FoundObjects", "NoObjects", "Sized", "look_at_objects", "stored_classes", "with_sizes"]
