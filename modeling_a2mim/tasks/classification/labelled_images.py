"""Images with labels, to train a classifier on and to evaluate it on."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from datasets import ClassLabel, Dataset

from ...arguments.data import MULTI, REGRESSION, SINGLE, ClassificationArguments, images_field
from ...configuration_a2mim import A2MIMConfig
from ...data.columns import find_column
from ...data.formats.census import METADATA
from ...data.formats.image_folders import FIRST_FOLDER, LAST_FOLDER
from ...data.labels import NAMED, labelled, log_classes_without_images, same_classes, stored_labels
from ...data.overlap import evaluates_on_training
from ...data.sources import DatasetSource, RowSource
from ...data.splits import NO_VALIDATION, class_names, find_evaluation_split, load_labelled_split
from ...evaluation.metrics import TOP
from ...utils.labels import label_names
from .problem_types import encode_lists, encode_numbers, find_targets, numbers_of_words


logger = logging.getLogger("a2mim")

COUNTS = "evaluation_counts"  # in a record: images to evaluate on of each class
NO_CLASS = {"none", "na", "n/a", "nan", "null"}  # what some files write where there is no label


@dataclass
class LabelledImages:
    """Images with labels to train a classifier on and to evaluate it on.

    Args:
        train, validation: the splits; `None` if there are none.
        column: of the labels.
        names: of the classes; for regression, of the column.
        problem_type: what the labels are (`problem_types`).
        split: the name of the split to evaluate on, if it is one of the source.
        rows: of `train` that a run trains on; `None` for all.
        class_weights: how much an image of each class counts in the loss of a run.
        seen: whether images to evaluate on are in `train`.
    """

    train: Dataset | RowSource | None
    validation: Dataset | RowSource | None
    column: str
    names: list[str]
    problem_type: str = SINGLE
    split: str | None = None
    rows: list[int] | None = None
    class_weights: list[float] | None = None
    seen: bool = False

    @property
    def stored(self) -> tuple[Dataset | RowSource, str | None]:
        """All images to train on, and their column, if the arguments do not say it."""
        return self.train, None

    @property
    def chosen(self) -> Dataset | RowSource:
        """The images that a run trains on."""
        if self.rows is None:
            return self.train
        return cast(Dataset, self.train).select(self.rows)  # nothing is drawn from a stream

    @classmethod
    def load(cls, data_args: ClassificationArguments, token: str | None) -> "LabelledImages":
        """What the arguments name, images without a label left out.

        Raises:
            ValueError: naming the argument, if there are no labels, or images to evaluate on of classes that are not
                those trained on.
        """
        kind = data_args.problem_type or SINGLE
        train = load_labelled_split(data_args, True, token, problem_type=kind)
        split = find_evaluation_split(data_args)
        validation = load_labelled_split(data_args, False, token, split, kind)
        seen = evaluates_on_training(data_args, split, train, validation)
        return replace(cls._of(data_args, train, validation, split, kind), seen=seen)

    @classmethod
    def for_evaluation(cls, data_args: ClassificationArguments, config: A2MIMConfig, token: str | None):
        """The images to evaluate a classifier on; its classes are told apart by their names. Raises as `load`."""
        own = config.problem_type or SINGLE
        if data_args.problem_type not in (None, own):
            raise ValueError(f"problem_type: that of the model is {own}, not {data_args.problem_type}")
        split = find_evaluation_split(data_args)
        validation = load_labelled_split(data_args, False, token, split, own)
        if validation is None:
            raise ValueError(NO_VALIDATION)
        names = label_names(config)
        return cls._of(data_args, None, validation, split, own, names)

    @classmethod
    def _of(
        cls, data_args, train, validation, split: str | None, kind: str, names: list[str] | None = None
    ) -> "LabelledImages":
        owner = "those trained on" if names is None else "those of the model"
        column, one_hot = None, None
        parts = {}
        for which, dataset in (("train", train), ("validation", validation)):
            parts[which] = dataset
            if dataset is None:
                continue
            field = images_field(data_args, which == "train")
            if kind == SINGLE:
                place = find_column(dataset, ClassLabel, data_args.label_column_name, "label_column_name")
            else:
                if kind == REGRESSION:
                    dataset = numbers_of_words(dataset, data_args.label_column_name)
                place = find_targets(dataset.features, kind, data_args.label_column_name)
            if column is not None and place != column:
                dataset, place = dataset.rename_column(place, column), column
            column, what = place, "train on" if which == "train" else "evaluate on"
            if kind == REGRESSION:
                dataset, names = encode_numbers(dataset, column), names or [column]
            elif kind == MULTI:
                dataset, names, one_hot = encode_lists(dataset, column, names, field, one_hot)
            elif names is not None:
                dataset = same_classes(dataset, column, names, field, owner)
            parts[which] = labelled(dataset, column, field, what, any_number=kind == REGRESSION)
            if names is None:
                _, names = class_names(parts[which], data_args.label_column_name)
        return cls(**parts, column=column, names=names, problem_type=kind, split=split)

    def counts(self, dataset) -> list[int] | None:
        """How many images of each class there are in `train` or `validation`; `None` of numbers, and of a stream
        whose labels cannot be read without the images."""
        labels = None if self.problem_type == REGRESSION else stored_labels(dataset, self.column)
        return None if labels is None else images_of_each(labels, len(self.names))

    def metrics(self) -> dict[str, bool]:
        """The metrics of an evaluation, and whether more of them is better."""
        if self.problem_type == REGRESSION:
            targets = cast(Dataset, self.validation)[self.column][:]  # `check_problem_type` refuses streams
            varies = {"r2": True} if min(targets) < max(targets) else {}
            return {"loss": False, "mae": False, "rmse": False, **varies}
        counts, images = self.counts(self.validation), len(self.validation)
        present = [name for name, count in zip(self.names, counts, strict=True) if count]
        ranked = [name for name, count in zip(self.names, counts, strict=True) if 0 < count < images]
        if self.problem_type == MULTI:
            names = ["mean_average_precision"] if ranked else []
            names += ["micro_f1", "macro_f1", "subset_accuracy"]
        else:
            names = ["accuracy", *(["top5_accuracy"] if len(self.names) > TOP else [])]
            names += ["balanced_accuracy", "macro_f1", *(["auroc", "average_precision"] if ranked else [])]
        names += [f"{figure}_{name}" for figure in ("precision", "recall") for name in present]
        names += [f"average_precision_{name}" for name in ranked]
        return {"loss": False, **dict.fromkeys(names, True)}

    def provenance(self) -> dict:
        """What a record says of the labels."""
        counts = None if self.validation is None else self.counts(self.validation)
        found = {} if counts is None else {COUNTS: dict(zip(self.names, counts, strict=True))}
        return found if self.problem_type == SINGLE else {**found, "problem_type": self.problem_type}

    def shown(self, label) -> str:
        """A label of a sample in words."""
        if self.problem_type == SINGLE:
            return self.names[int(label)]
        if self.problem_type == REGRESSION:
            return f"{self.column} {float(label):.4g}"
        return ", ".join(name for name, there in zip(self.names, label.tolist(), strict=True) if there) or "none"

    def check(self):
        """Say of which classes there are no images, and which have names that may mean that there is no label.

        Raises:
            ValueError: naming the argument, if there is nothing to tell apart.
        """
        for dataset, what in ((self.train, "train on"), (self.validation, "evaluate on")):
            counts = None if dataset is None else self.counts(dataset)
            if dataset is not None and self.problem_type == SINGLE:
                use = "training" if what == "train on" else "evaluation"
                log_labels(dataset, self.column, self.names, counts, use)
            if counts is None:
                continue
            log_classes_without_images(counts, self.names, what)
            if self.problem_type == SINGLE and what == "train on" and np.count_nonzero(counts) < 2:
                only = self.names[int(np.argmax(counts))]
                raise ValueError(f"label_column_name: all images to train on are of one class, {only!r}")
        dataset = self.validation if self.train is None else self.train
        unsure = [] if self.problem_type == REGRESSION else [n for n in self.names if n.strip().casefold() in NO_CLASS]
        if unsure and label_rule(dataset, self.column) not in (FIRST_FOLDER, LAST_FOLDER):
            logger.warning(
                "label_column_name: %s in column %r are classes like others; if they mean that there is no label, "
                "leave these cells empty",
                ", ".join(map(repr, unsure)),
                self.column,
            )


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


def images_of_each(labels, classes: int) -> list[int]:
    """How many images there are of each class.

    Args:
        labels: (images,) indices of classes, or (images, classes) of ones and zeros.
        classes: how many there are.
    """
    values = np.asarray(labels)
    return (np.bincount(values, minlength=classes) if values.ndim == 1 else values.sum(0).astype(int)).tolist()


def log_labels(
    dataset: Dataset | RowSource, column: str, names: Sequence[str], counts: Sequence[int] | None, use: str
):
    """Log the classes, the first few by name with their counts, and what named them.

    Args:
        counts: images of each class, `None` if that is not known.
        use: what the images are for, in a word.
    """
    shown = [name if counts is None else f"{name} {counts[i]:,}" for i, name in enumerate(names[:NAMED])]
    shown += [] if len(names) <= NAMED else [f"and {len(names) - NAMED:,} more"]
    logger.info("%s: %d classes by %s: %s", use, len(names), label_rule(dataset, column), ", ".join(shown))
    plain = [unicodedata.normalize("NFC", " ".join(name.split()).casefold()) for name in names]
    counted = Counter(plain)
    if alike := [name for name, form in zip(names, plain, strict=True) if counted[form] > 1]:
        listed = ", ".join(map(repr, alike[:NAMED]))
        logger.warning(
            "%s: classes whose names differ in capitals, blanks or the coding of accents alone: %s", use, listed
        )
