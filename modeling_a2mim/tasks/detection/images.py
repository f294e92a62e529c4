"""Images with annotated objects, to train a detector on and to evaluate it on."""

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset

from ...arguments.data import sources_of
from ...arguments.dense import check_trained
from ...arguments.detection import DetectionArguments
from ...data.dataset import ImageSamples
from ...data.overlap import evaluates_on_training
from ...data.sources import RowSource
from ...data.splits import (
    as_source,
    find_evaluation_split,
    image_samples,
    load_evaluation_split,
    load_training_split,
    some_of,
)
from ..segmentation.scan import is_far
from .annotation_folders import annotated_splits, choose_split
from .annotations import Annotations, find_objects_column
from .data import DetectionTransform
from .scan import NoObjects, look_at_objects, stored_classes, with_sizes


logger = logging.getLogger("a2mim")


class AnnotatedSplit(NamedTuple):
    """Images with annotated objects, the name of their split, and how their boxes are stored (`bbox_format`)."""

    images: Dataset | RowSource
    name: str | None
    box_format: str


class AnnotatedImages(NamedTuple):
    """The images with objects to train on and, if there are any, to evaluate on, the column of the objects of each and
    how they are read.

    Args:
        split: the name of the split to evaluate on, also where that has no objects.
        seen: whether images to evaluate on are trained on.
    """

    train: AnnotatedSplit
    column: str
    annotations: Annotations
    split: str | None = None
    validation: AnnotatedSplit | None = None
    eval_column: str | None = None
    eval_annotations: Annotations | None = None
    seen: bool = False

    @property
    def stored(self) -> tuple[Dataset | RowSource, str | None]:
        """All images to train on, and their column, if the arguments do not say it."""
        return self.train.images, None


def load_annotated(args: DetectionArguments, masks: bool, token: str | None = None) -> AnnotatedImages:
    """The images to train on and to evaluate on. `masks`: whether segmentations are needed.

    Raises:
        ValueError: naming the argument, if there are no images with objects to train on, or where the user says to
            evaluate.
    """
    check_trained(args)
    train, validation = (load_annotated_split(args, which, token) for which in (True, False))
    others = [] if validation is None else [validation]
    column, annotations = read_annotations(args, train, masks, others=others)
    if validation is None:
        return AnnotatedImages(train, column, annotations)
    try:
        known: dict[str, Any] = {"like": annotations, "what": "evaluation data"}
        eval_column, eval_annotations = read_annotations(args, validation, masks, **known)
    except NoObjects as error:
        if args.validation_dir is not None or args.validation_split is not None:
            raise
        logger.warning("there is no evaluation, of %s; %s", validation.name, error)
        return AnnotatedImages(train, column, annotations, validation.name)
    seen = evaluates_on_training(args, validation.name, train.images, validation.images)
    read = (eval_column, eval_annotations, seen)
    return AnnotatedImages(train, column, annotations, validation.name, validation, *read)


def load_annotated_split(args: DetectionArguments, train: bool, token: str | None = None) -> AnnotatedSplit | None:
    """The images to train on, or those to evaluate on (`None` if there are none); folders in COCO's or YOLO's form are
    read as well as what `load_training_split` reads.

    Raises:
        ValueError: naming the source that is missing or holds no images, or the argument that does not go with it.
    """
    source = args.validation_dir if not train and args.validation_dir else sources_of(args)[0]
    folder = None if source is None else Path(source).expanduser()
    splits = None
    if folder is not None and folder.is_dir():
        splits = annotated_splits(folder, args.max_image_pixels, args.max_skipped_ratio)
    if splits is not None:
        return _read_folder(args, train, folder, splits)
    if train:
        return AnnotatedSplit(load_training_split(args, token), args.train_split, args.bbox_format)
    name = find_evaluation_split(args)
    images = load_evaluation_split(args, name, token)
    return None if images is None else AnnotatedSplit(images, name, args.bbox_format)


def _read_folder(
    args: DetectionArguments, train: bool, folder: Path, splits: Mapping[str, Callable[[], Dataset]]
) -> AnnotatedSplit | None:
    if args.bbox_format == "pascal_voc":
        raise ValueError(f"bbox_format: {folder} is in COCO's or YOLO's form, which tells how boxes are stored")
    given = args.train_split if train else args.validation_split
    whole = not train and args.validation_dir is not None
    only = next(iter(splits)) if len(splits) == 1 and (whole or args.train_dir) else None
    name = only if only is not None else choose_split(splits, given, train, folder)
    if name is None:
        return None
    dataset = splits[name]()
    if args.id2label is not None and isinstance(dataset.features["objects"]["category"].feature, ClassLabel):
        raise ValueError(f"id2label: the annotations in {folder} name their classes; leave it out")
    count = args.max_train_samples if train else args.max_eval_samples
    logger.info("%s, %s: %s annotated images", folder, name or "all of it", f"{len(dataset):,}")
    return AnnotatedSplit(some_of(dataset, count), given or name, "coco")  # which the boxes are made


def annotated_samples(
    args: DetectionArguments, split: AnnotatedSplit, transform: DetectionTransform, seed: int, column: str
) -> ImageSamples:
    """A split and a transform as what the trainer reads; `column` is that of the objects."""
    return image_samples(args, with_sizes(as_source(args, split.images)), transform, seed, column)


def read_annotations(
    args: DetectionArguments,
    split: AnnotatedSplit,
    masks: bool,
    like: Annotations | None = None,
    others: Sequence[AnnotatedSplit] = (),
    what: str = "training data",
) -> tuple[str, Annotations]:
    """The column of the objects of a split, and how to read it. All of them are looked at, where that does not take
    the network, and what cannot be used is counted in the log.

    Args:
        args: how annotations are stored.
        split: to read.
        masks: whether its segmentations are needed.
        like: those of the training data, whose classes are taken; the split's own are told apart by names.
        others: further splits, whose classes are taken as well where no names are known.
        what: to call the split in messages.

    Raises:
        NoObjects: if there is none that can be used.
        ValueError: naming the argument, if there is no column of objects, or no names of classes.
    """
    features, source = split.images.features, as_source(args, split.images)
    column, names = find_objects_column(features, args.objects_column_name), given_names(args.id2label)
    make = functools.partial(Annotations, features.get(column), column, box_format=split.box_format, masks=masks)
    try:
        annotations = make(names)
    except ValueError as error:
        if not str(error).startswith("id2label") or (is_far(source) and not like):
            raise
        sources = [source, *(as_source(args, other.images) for other in others)]
        known = like.id2label if like else stored_classes(sources, column)
        if not known:
            raise NoObjects(f"objects_column_name: {column!r} of the {what} holds no objects at all") from error
        annotations = make(known)
    if like is not None and annotations.names != like.names:
        places = {name: place for place, name in enumerate(like.names)}
        annotations.renumber(like.names, [places.get(name) for name in annotations.names])
    look_at_objects(source, annotations, what)
    return column, annotations


def given_names(id2label: str | None) -> dict[int | str, str] | None:
    """The names of the classes by what is stored for them, from `--id2label`: JSON, or a file of it.

    Raises:
        ValueError: naming `id2label`, if it is neither.
    """
    if id2label is None:
        return None
    inline = id2label.lstrip().startswith("{")
    if not inline and not Path(id2label).is_file():
        raise ValueError(f"id2label: expected a JSON object or a file of one, there is no file {id2label}")
    try:
        names = json.loads(id2label if inline else Path(id2label).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"id2label: expected a JSON object: {error}") from error
    if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
        raise ValueError(f"id2label: expected a JSON object of names by number, got {str(names)[:80]}")
    return names
