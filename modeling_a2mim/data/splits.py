"""The images that the arguments name, loaded: a split to train on, a split to evaluate on, and both as samples."""

import logging
from collections.abc import Callable

import datasets
import numpy as np
from datasets import ClassLabel, Image

from ..arguments.data import (
    MULTI,
    REGRESSION,
    ClassificationArguments,
    DataArguments,
    PreTrainingDataArguments,
    sources_of,
)
from ..utils.value_range import SAMPLES
from .columns import find_column
from .dataset import ImageSamples
from .held_out import hold_out, sample_of, spread_rows
from .labels import encode_classes
from .loading import find_validation_split, load_images
from .order import mix_counts
from .pages import with_pages
from .sources import DatasetSource, MixedSource, RowSource


logger = logging.getLogger("a2mim")

EVALUATED = 256  # images that pre-training is evaluated on, where none are named
NO_VALIDATION = "validation_dir: there are no images to evaluate on; give it or --validation_split"


# Splits


def load_training_split(
    args: DataArguments, token: str | None = None, needs: str = "columns"
) -> datasets.Dataset | RowSource:
    """The images to train on; of several sources, their mix.

    Args:
        args: what names them.
        token: of the Hub.
        needs: what the images are read for, see `load_images`.

    Raises:
        ValueError: naming the weight that no source can have, or the source that is missing or holds no images.
    """
    sources = sources_of(args)
    if args.dataset_weights is not None:
        mix_counts(args.dataset_weights)  # which refuses them before anything is read
    if len(sources) > 1:
        return MixedSource([_of_mix(args, name, token, needs) for name in sources], args.dataset_weights)
    if sources == [None]:
        logger.info("no --train_dir or --dataset_name: the images to train on are the bundled sample")
    dataset = _load(args, sources[0], args.train_split, args.train_dir is not None, True, token, needs)
    return some_of(dataset, args.max_train_samples)


def load_evaluation_split(
    args: DataArguments, split: str | None, token: str | None = None, needs: str = "columns"
) -> datasets.Dataset | RowSource | None:
    """The images to evaluate on; `None` if no folder and no split is named.

    Args:
        args: what names the source.
        split: `args.validation_split`, or what `find_evaluation_split` gives.
        token, needs: as in `load_training_split`.

    Raises:
        ValueError: naming the source that is missing or holds no images.
    """
    sources, folder = sources_of(args), args.validation_dir
    if folder is None and split is None:
        return None
    if folder is None and len(sources) > 1:
        raise ValueError("validation_split: there are several sources; name one with --validation_dir")
    source = sources[0] if folder is None else folder
    dataset = _load(args, source, split or "validation", folder is not None, False, token, needs)
    return some_of(dataset, args.max_eval_samples)


def find_evaluation_split(args: DataArguments) -> str | None:
    """The name of the split to evaluate on: the given one, else one of the source whose name says so; `None` if
    there is none, or folders are named."""
    if args.validation_split is None and args.validation_dir is None and args.train_dir is None:
        return find_validation_split(sources_of(args)[0], args.dataset_config_name)
    return args.validation_split


def load_pretraining_splits(
    args: PreTrainingDataArguments, token: str | None = None
) -> tuple[datasets.Dataset | RowSource, datasets.Dataset | RowSource, str | None]:
    """The images to train on, those to evaluate on (there always are some), and what the latter are, in words for the
    card: `None` for a split that the user named. Raises as `load_training_split`."""
    train = load_training_split(args, token, needs="images")
    evaluation = load_evaluation_split(args, args.validation_split, token, needs="images")
    if evaluation is not None:
        return train, evaluation, None
    train = as_source(args, train)
    if args.holdout is not None:
        train, evaluation = hold_out(train, args.holdout)
        return train, evaluation, "the training data, held out of it"
    return train, sample_of(train, args.max_eval_samples or EVALUATED), "the training data itself"


def load_labelled_split(
    args: ClassificationArguments,
    train: bool,
    token: str | None = None,
    split: str | None = None,
    problem_type: str | None = None,
) -> datasets.Dataset | RowSource | None:
    """The labelled images to train on, or those to evaluate on (`None` if there are none), with classes as a
    `ClassLabel`.

    Args:
        args: what names them.
        train: which of the two.
        token: of the Hub.
        split: to evaluate on, as in `load_evaluation_split`.
        problem_type: what the labels are; one class of each image, if not given.

    Raises:
        ValueError: naming the source that is missing or holds no images, or `label_column_name` if there are no
            labels.
    """
    dataset = (
        load_training_split(args, token, needs="labels")
        if train
        else load_evaluation_split(args, split, token, needs="labels")
    )
    if dataset is None:
        return None
    if list(dataset.features) == ["image"]:
        by_folder = args.train_dir is not None if train else args.validation_dir is not None
        raise ValueError(
            "label_column_name: the images have no labels; "
            + (
                "for each class a folder must lie in the one that is named"
                if by_folder
                else "`datasets` takes the folders of images for classes only where there are two or more and all "
                "images lie equally deep; --train_dir takes the first folder below the one that is named"
            )
        )
    if problem_type in (MULTI, REGRESSION):
        return dataset
    column = find_column(dataset, ClassLabel, args.label_column_name, "label_column_name")
    if isinstance(dataset.features.get(column), ClassLabel):
        return dataset
    if isinstance(dataset, DatasetSource):
        rows = encode_classes(dataset.dataset, column)  # all labels are at hand, only images are streamed
        return DatasetSource(rows, dataset.name, storage_options=dataset.storage_options, retries=dataset.retries)
    if args.streaming and train:
        raise ValueError(f"label_column_name: column {column!r} names no classes, which --streaming needs")
    return encode_classes(dataset, column)


def class_names(dataset: datasets.Dataset | RowSource, label_column_name: str | None = None) -> tuple[str, list[str]]:
    """The column of the labels and the names of the classes of a labelled split.

    Raises:
        ValueError: naming `label_column_name`, if there are fewer than two classes.
    """
    column = find_column(dataset, ClassLabel, label_column_name, "label_column_name")
    names = list(dataset.features[column].names)
    if len(names) < 2:
        raise ValueError(
            f"label_column_name: column {column!r} has fewer than two classes: {names}; of folders, name the "
            "one in which those of the classes lie"
        )
    return column, names


def _load(
    args: DataArguments, source: str | None, split: str, every_file: bool, train: bool, token: str | None, needs: str
) -> datasets.Dataset | RowSource:
    return load_images(
        source,
        split,
        config_name=args.dataset_config_name,
        streaming=args.streaming and train,
        every_file=every_file,
        retries=args.read_retries,
        train=train,
        needs=needs,
        image_column=args.image_column_name,
        revision=args.dataset_revision,
        token=token,
    )


def some_of(dataset: datasets.Dataset | RowSource, count: int | None) -> datasets.Dataset | RowSource:
    """So many rows from all over it, as files come class by class; all, if there are no more."""
    if count is None or count >= len(dataset):
        return dataset
    if isinstance(dataset, datasets.Dataset):
        return dataset.select(spread_rows(count, np.array([len(dataset)])))
    if isinstance(dataset, DatasetSource):
        rows = dataset.dataset.select(spread_rows(count, dataset.chunks))
        return DatasetSource(rows, dataset.name, dataset.storage_options, dataset.retries, dataset.folders)
    return sample_of(dataset, count)


def _of_mix(args: DataArguments, name: str | None, token: str | None, needs: str) -> RowSource:
    found = _load(args, name, args.train_split, args.train_dir is not None, True, token, needs)
    found = DatasetSource(found, name) if isinstance(found, datasets.Dataset) else found
    return found.select(find_column(found, Image, args.image_column_name, "image_column_name"))


# Samples


def as_source(args: DataArguments, dataset: datasets.Dataset | RowSource) -> RowSource:
    """A split as rows that can be read by their number."""
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    folders = [folder for folder in (args.validation_dir, *sources_of(args)) if folder]
    return DatasetSource(dataset, retries=args.read_retries, folders=folders)


def image_samples(
    args: DataArguments,
    dataset: datasets.Dataset | RowSource,
    transform: Callable,
    seed: int,
    label_column: str | None = None,
    image_column: str | None = None,
    repeats: int = 1,
) -> ImageSamples:
    """A split and a transform as what the trainer reads.

    Args:
        args: how to read the split, and the column of the images unless `image_column` says it.
        dataset: the split.
        transform, seed, label_column, repeats: of `ImageSamples`.
    """
    column = None
    if getattr(dataset, "columns", None) is None:  # those of a mix are chosen already
        column = find_column(dataset, Image, image_column or args.image_column_name, "image_column_name")
        others = [name for name, kind in dataset.features.items() if isinstance(kind, Image) and name != column]
        beside = f"; other columns of images: {', '.join(others)}" if others else ""
        if others or column != "image":
            logger.info("%s images from column %r%s", f"{len(dataset):,}", column, beside)
    source = as_source(args, dataset)
    spec = getattr(transform, "spec", None)
    if spec is not None and spec.pages == SAMPLES:
        source = with_pages(source if column is None else source.select(column, label_column), spec.stored_channels)
        column = label_column = None
    return ImageSamples(
        source, transform, column, label_column, seed, args.shuffle_buffer_size, args.max_skipped_ratio, repeats
    )
