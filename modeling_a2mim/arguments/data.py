"""Command-line arguments that say where images and labels come from, and how they are augmented."""

import logging
import math
from dataclasses import dataclass, field
from typing import ClassVar

import datasets
from datasets import ClassLabel, Image

from ..data.columns import find_column
from ..data.dataset import ImageSamples
from ..data.decoding import MAX_PIXELS
from ..data.held_out import hold_out, sample_of
from ..data.labels import MULTI, PROBLEM_TYPES, REGRESSION, encode_classes
from ..data.loading import find_validation_split, load_images
from ..data.order import mix_counts
from ..data.sources import DatasetSource, MixedSource, RowSource
from ..export.record import hub_id


logger = logging.getLogger("a2mim")

EVALUATED = 256  # images that pre-training is evaluated on, where none are named
BUNDLED = "zalando-datasets/fashion_mnist"  # what the bundled sample is a part of


def helped(default, text: str, **metadata):
    """A field of a dataclass of arguments, with its help."""
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class DataArguments:
    """Where the images come from. Without any source: the bundled Fashion-MNIST sample."""

    dataset_name: list[str] | None = helped(
        None,
        "A dataset on the Hub, a local folder of images, parquet, tar or zip files, or one file; several are mixed.",
        nargs="+",
    )
    dataset_config_name: str | None = helped(None, "Configuration of the dataset on the Hub.")
    dataset_revision: str | None = helped(None, "Revision of the dataset on the Hub.")
    dataset_weights: list[float] | None = helped(
        None, "How much each of several sources gives; without, every image comes once in a pass.", nargs="+"
    )
    train_dir: list[str] | None = helped(
        None, "A folder all of whose images are for training; several are mixed.", nargs="+"
    )
    validation_dir: str | None = helped(None, "A folder all of whose images are for evaluation.")
    train_split: str = helped("train", "Name of the training split.")
    validation_split: str | None = helped(None, "Name of the evaluation split.")
    image_column_name: str | None = helped(None, "Column of the images; found if not given.")
    streaming: bool = helped(False, "Read parquet, WebDataset or image files on the fly instead of preparing them.")
    shuffle_buffer_size: int = helped(16384, "Images to shuffle among while streaming parquet or WebDataset files.")
    read_retries: int = helped(5, "Further attempts to read what cannot be read, after 1, 2, 4, ... seconds.")
    max_skipped_ratio: float = helped(0.05, "Share of a source's images that may be broken; more stop the run.")
    max_image_pixels: int = helped(MAX_PIXELS, "Images of more pixels are skipped as decompression bombs.")
    max_train_samples: int | None = helped(None, "Use only so many training images.")
    max_eval_samples: int | None = helped(None, "Use only so many images for evaluation.")
    crop_scale: list[float] = field(
        default_factory=lambda: [0.8, 1.0],
        metadata={"help": "Share of the image's area that random crops cover: smallest, largest.", "nargs": 2},
    )

    needs: ClassVar[str] = "columns"  # see `load_images`

    def __post_init__(self):
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale: expected 0 < smallest <= largest <= 1, got {low} {high}")
        if self.dataset_name is not None and self.train_dir is not None:
            raise ValueError("dataset_name: give either --dataset_name or --train_dir, not both")
        for name, least in {
            "max_train_samples": 1,
            "max_eval_samples": 1,
            "shuffle_buffer_size": 1,
            "max_image_pixels": 1,
            "read_retries": 0,
        }.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: must be at least {least}, got {value}")
        if not 0 <= self.max_skipped_ratio <= 1:
            raise ValueError(f"max_skipped_ratio: must be in [0, 1], got {self.max_skipped_ratio}")
        if self.dataset_weights is not None:
            if len(self.dataset_weights) != len(self.sources):
                raise ValueError(
                    f"dataset_weights: there are {len(self.sources)} sources, but {len(self.dataset_weights)} weights"
                )
            mix_counts(self.dataset_weights)
        if len(self.sources) > 1 and self.max_train_samples is not None:
            raise ValueError("max_train_samples: cannot be used with several sources")

    def provenance(self) -> dict:
        """What a model card says of the data, without paths: ids of datasets on the Hub, or what kind of images."""
        ids = [BUNDLED if source is None else hub_id(source) for source in self.sources]
        known = [name for name in dict.fromkeys(ids) if name is not None]
        words = [
            "the bundled sample of Fashion-MNIST" if source is None else hub_id(source) for source in self.sources
        ]
        result = {"datasets": known, "data": ", ".join(dict.fromkeys(w or "images of the author" for w in words))}
        note = []
        if self.validation_dir is None and len(ids) == 1 and ids[0] is not None:
            result["evaluated_on"] = ids[0]
            note += ["a sample of the test split"] if self.sources == [None] else [f"split {self.validation_split}"]
        else:
            result["evaluation_data"] = "the author's, held out"
        if self.max_eval_samples is not None:
            note.append(f"at most {self.max_eval_samples:,} of them")
        return {**result, "evaluation_note": ", ".join(note) or None}

    def field(self, train: bool) -> str:
        """The argument that names the images to train on, or to evaluate on, for messages."""
        if train:
            return "dataset_name" if self.train_dir is None else "train_dir"
        return "validation_split" if self.validation_dir is None else "validation_dir"

    @property
    def sources(self) -> list[str | None]:
        """What was named for training; None is the bundled sample."""
        named = self.train_dir or self.dataset_name
        return [named] if isinstance(named, str) else list(named or [None])

    def named(self) -> dict[str, list[str | None]]:
        """Where images come from, by the argument that says so."""
        field = "dataset_name" if self.train_dir is None else "train_dir"
        return {field: self.sources, "validation_dir": [self.validation_dir]}

    def load(self, train: bool, token: str | None = None) -> datasets.Dataset | RowSource | None:
        """The training split, or the one for evaluation (`None` if there is none).

        Raises:
            ValueError: naming the source that is missing or holds no images.
        """
        if train and len(self.sources) > 1:
            return self._mix(token)
        folder = self.train_dir if train else self.validation_dir
        split = self.train_split if train else self.validation_split
        count = self.max_train_samples if train else self.max_eval_samples
        if not train and folder is None and split is None:
            return None
        if not train and folder is None and len(self.sources) > 1:
            raise ValueError("validation_split: there are several sources; name one with --validation_dir")
        dataset = self._load(
            self.sources[0] if folder is None or train else folder,
            split or "validation",
            folder is not None,
            train,
            token,
        )
        return dataset if count is None else dataset.take(min(count, len(dataset)))

    def _load(self, source: str | None, split: str, every_file: bool, train: bool, token: str | None):
        return load_images(
            source,
            split,
            config_name=self.dataset_config_name,
            streaming=self.streaming and train,
            every_file=every_file,
            retries=self.read_retries,
            train=train,
            needs=self.needs,
            image_column=self.image_column_name,
            revision=self.dataset_revision,
            token=token,
        )

    def _mix(self, token: str | None) -> MixedSource:
        sources = []
        for name in self.sources:
            found = self._load(name, self.train_split, self.train_dir is not None, True, token)
            found = DatasetSource(found, name) if isinstance(found, datasets.Dataset) else found
            sources.append(found.select(find_column(found, Image, self.image_column_name, "image_column_name")))
        return MixedSource(sources, self.dataset_weights)

    def samples(self, dataset, transform, seed: int, label_column: str | None = None) -> ImageSamples:
        """A dataset and a transform as what the trainer reads."""
        column = None
        if getattr(dataset, "columns", None) is None:  # those of a mix are chosen already
            column = find_column(dataset, Image, self.image_column_name, "image_column_name")
            others = [name for name, kind in dataset.features.items() if isinstance(kind, Image) and name != column]
            beside = f"; other columns of images: {', '.join(others)}" if others else ""
            if others or column != "image":
                logger.info("%s images from column %r%s", f"{len(dataset):,}", column, beside)
        source = self.source(dataset)
        return ImageSamples(
            source, transform, column, label_column, seed, self.shuffle_buffer_size, self.max_skipped_ratio
        )

    def source(self, dataset: datasets.Dataset | RowSource) -> RowSource:
        """What `load` gave, as rows that can be read by their number."""
        if not isinstance(dataset, datasets.Dataset):
            return dataset
        source = DatasetSource(dataset, retries=self.read_retries)
        source.folders = [folder for folder in (self.validation_dir, *self.sources) if folder]
        return source


@dataclass
class PreTrainingDataArguments(DataArguments):
    """Where images come from, which of them are held out, and how they are augmented."""

    holdout: int | None = helped(
        None,
        "Leave so many images, from all over the training data, out of training, and evaluate on them. Without it "
        "and without images for evaluation, the model is evaluated on some of the training images.",
    )
    hflip: float = helped(0.5, "Share of images that are mirrored left to right.")
    vflip: float = helped(0.0, "Share of images that are mirrored top to bottom.")
    rotate90: bool = helped(False, "Turn images by 0, 90, 180 or 270 degrees.")
    color_jitter: float = helped(
        0.0, "Strength of colour jitter, as timm's: brightness, contrast and (3 channels) saturation."
    )
    grayscale: float = helped(0.0, "Share of images of 3 channels that lose their colour.")

    needs = "images"

    def __post_init__(self):
        super().__post_init__()
        if self.holdout is not None and self.holdout < 1:
            raise ValueError(f"holdout: must be at least 1, got {self.holdout}")
        if self.holdout is not None and (self.validation_dir or self.validation_split):
            raise ValueError("holdout: give either it or images for evaluation (--validation_dir, --validation_split)")
        if self.holdout is not None and self.max_eval_samples is not None:
            raise ValueError("max_eval_samples: --holdout says how many images there are to evaluate on")
        for name in ("hflip", "vflip", "grayscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.color_jitter < math.inf:
            raise ValueError(f"color_jitter: must be a finite number of at least 0, got {self.color_jitter}")

    def load_both(self, token: str | None = None) -> tuple:
        """What to train on, what to evaluate on (there always is something), and what the latter is, in words for the
        card: `None` for a split that the user named. Raises as `load`."""
        train, evaluation = self.load(train=True, token=token), self.load(train=False, token=token)
        if evaluation is not None:
            return train, evaluation, None
        train = self.source(train)
        if self.holdout is not None:
            train, evaluation = hold_out(train, self.holdout)
            return train, evaluation, "the training data, held out of it"
        evaluation = sample_of(train, self.max_eval_samples or EVALUATED)
        return train, evaluation, "the training data itself"

    def augmentation(self) -> dict:
        """The augmentation beside crops, as keyword arguments of PreTrainTransform."""
        names = ("hflip", "vflip", "rotate90", "color_jitter", "grayscale")
        return {name: getattr(self, name) for name in names}

    def provenance(self) -> dict:
        used = {name: value for name, value in self.augmentation().items() if value}
        words = [name if value is True else f"{name} {value:g}" for name, value in used.items()]
        return {**super().provenance(), "augmentation": ", ".join(words) or "none"}


@dataclass
class ClassificationArguments(DataArguments):
    """Where labelled images come from."""

    needs = "labels"

    label_column_name: str | None = helped(None, "Column of the labels; found if not given.")
    problem_type: str | None = helped(
        None,
        "What the labels are: one class of each image (default), several (multi_label_classification: a column of "
        "lists of classes, or of 0 and 1 for each class), or a number (regression).",
        choices=PROBLEM_TYPES,
    )
    labels_per_class: int | None = helped(None, "Train on only so many images of each class (drawn with --data_seed).")
    label_fraction: float | None = helped(None, "Train on only this share of each class.")
    label_subset: str | None = helped(None, "Train on the images of a subset.json that an earlier run wrote.")
    seeds: list[int] | None = helped(
        None,
        "Repeat everything (labels drawn, first weights, order) with each of these seeds; with means and intervals.",
        nargs="+",
    )
    train_image_size: list[int] | None = helped(None, "Size of images in training, if it is another.", nargs="+")
    auto_augment: str | None = helped(None, "timm's augmentation policy, e.g. rand-m6-mstd0.5-inc1.")
    color_jitter: float | None = helped(None, "Strength of colour jitter (timm leaves it out under a policy).")
    hflip: float = helped(0.5, "Share of images that are mirrored left to right.")
    vflip: float = helped(0.0, "Share of images that are mirrored top to bottom.")
    reprob: float = helped(0.0, "Share of images of which a rectangle is erased.")
    remode: str = helped("const", "What it is filled with: const (zero), rand (a colour) or pixel (noise).")
    aug_repeats: int = helped(1, "How often each image comes in a row, differently augmented; a pass stays as long.")
    corruptions: list[str] | None = helped(
        None, "Evaluate on corrupted images, too: all, or some of the 15 types of ImageNet-C.", nargs="+"
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.8, 1.0],
        metadata={"help": "Share of the image's area that random crops cover: smallest, largest.", "nargs": 2},
    )

    def __post_init__(self):
        super().__post_init__()
        subsets = [n for n in ("labels_per_class", "label_fraction", "label_subset") if getattr(self, n) is not None]
        if len(subsets) > 1:
            raise ValueError(f"{subsets[1]}: give either it or --{subsets[0]}")
        if subsets and self.streaming:
            raise ValueError(f"{subsets[0]}: a stream cannot be drawn from; leave --streaming out")
        if self.aug_repeats < 1:
            raise ValueError(f"aug_repeats: must be at least 1, got {self.aug_repeats}")
        for name in ("hflip", "vflip", "reprob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be in [0, 1], got {getattr(self, name)}")
        if self.remode not in ("const", "rand", "pixel"):
            raise ValueError(f"remode: must be const, rand or pixel, got {self.remode!r}")
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} repeats one")
        if len(self.sources) > 1:
            raise ValueError("dataset_name: labelled images come from one source")

    def load(self, train: bool, token: str | None = None):
        if not train and self.validation_dir is None and self.validation_split is None and self.train_dir is None:
            self.validation_split = find_validation_split(self.sources[0], self.dataset_config_name)
        dataset = super().load(train, token)
        if dataset is None:
            return None
        if list(dataset.features) == ["image"]:
            by_folder = self.train_dir is not None if train else self.validation_dir is not None
            raise ValueError(
                "label_column_name: the images have no labels; "
                + (
                    "for each class a folder must lie in the one that is named"
                    if by_folder
                    else "`datasets` takes the folders of images for classes only where there are two or more and all "
                    "images lie equally deep; --train_dir takes the first folder below the one that is named"
                )
            )
        if self.problem_type in (MULTI, REGRESSION):
            return dataset
        column = find_column(dataset, ClassLabel, self.label_column_name, "label_column_name")
        feature = dataset.features.get(column)
        if isinstance(feature, ClassLabel):
            return dataset
        if isinstance(dataset, DatasetSource):
            rows = encode_classes(dataset.dataset, column)  # all labels are at hand, only images are streamed
            return DatasetSource(rows, dataset.name, storage_options=dataset.storage_options, retries=dataset.retries)
        if self.streaming and train:
            raise ValueError(f"label_column_name: column {column!r} names no classes, which --streaming needs")
        return encode_classes(dataset, column)

    def provenance(self) -> dict:
        result = super().provenance()
        if few := self.few_labels():
            result["evaluation_note"] = ", ".join(filter(None, [result["evaluation_note"], f"trained with {few}"]))
        result["augmentation"] = ", ".join(f"{name} {value}" for name, value in self.augmentation().items()) or None
        return result

    def few_labels(self) -> str | None:
        """How few labels are trained with, in words; `None` for all."""
        if self.labels_per_class is not None:
            return f"{self.labels_per_class} labels of each class"
        if self.label_fraction is not None:
            return f"{self.label_fraction:.3g} of the labels of each class"
        return None if self.label_subset is None else "a saved subset of the labels"

    def augmentation(self) -> dict:
        """What was given of the augmentation beside crops, as keyword arguments of FineTuneTransform."""
        values = {"hflip": self.hflip, "vflip": self.vflip, "color_jitter": self.color_jitter}
        values |= {"auto_augment": self.auto_augment, "re_prob": self.reprob or None}
        if self.reprob:
            values["re_mode"] = self.remode
        return {name: value for name, value in values.items() if value is not None}

    def labels(self, dataset) -> tuple[str, list[str]]:
        """The column of the labels and the names of the classes of a dataset from `load`.

        Raises:
            ValueError: if there are fewer than two classes.
        """
        column = find_column(dataset, ClassLabel, self.label_column_name, "label_column_name")
        names = list(dataset.features[column].names)
        if len(names) < 2:
            raise ValueError(
                f"label_column_name: column {column!r} has fewer than two classes: {names}; of folders, name the "
                "one in which those of the classes lie"
            )
        return column, names
