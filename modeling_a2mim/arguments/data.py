"""Command-line arguments that say where images and labels come from, and how they are augmented."""

import math
import os
from collections.abc import Collection
from dataclasses import dataclass

from transformers.hf_argparser import HfArg


MAX_PIXELS = 178_956_970  # where Pillow itself speaks of a decompression bomb
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)  # as transformers names them
MONITOR_SAMPLES = 512  # whose forward pass is short, and of which an accuracy of 0.5 is known to 0.02


@dataclass
class DataArguments:
    """Where the images come from. Without any source: the bundled Fashion-MNIST sample."""

    dataset_name: list[str] | None = HfArg(
        default=None,
        help="A dataset on the Hub, a local folder of images, parquet, tar or zip files, or one file; several are "
        "mixed.",
        metadata={"nargs": "+"},
    )
    dataset_config_name: str | None = HfArg(default=None, help="Configuration of the dataset on the Hub.")
    dataset_revision: str | None = HfArg(default=None, help="Revision of the dataset on the Hub.")
    dataset_weights: list[float] | None = HfArg(
        default=None,
        help="How much each of several sources gives; without, every image comes once in a pass.",
        metadata={"nargs": "+"},
    )
    train_dir: list[str] | None = HfArg(
        default=None, help="A folder all of whose images are for training; several are mixed.", metadata={"nargs": "+"}
    )
    validation_dir: str | None = HfArg(default=None, help="A folder all of whose images are for evaluation.")
    train_split: str = HfArg(default="train", help="Name of the training split.")
    validation_split: str | None = HfArg(default=None, help="Name of the evaluation split.")
    image_column_name: str | None = HfArg(default=None, help="Column of the images; found if not given.")
    streaming: bool = HfArg(
        default=False, help="Read parquet, WebDataset or image files on the fly instead of preparing them."
    )
    shuffle_buffer_size: int = HfArg(
        default=16384, help="Images to shuffle among while streaming parquet or WebDataset files."
    )
    read_retries: int = HfArg(
        default=5, help="Further attempts to read what cannot be read, after 1, 2, 4, ... seconds."
    )
    max_skipped_ratio: float = HfArg(
        default=0.05, help="Share of a source's images that may be broken; more stop the run."
    )
    max_image_pixels: int = HfArg(default=MAX_PIXELS, help="Images of more pixels are skipped as decompression bombs.")
    max_train_samples: int | None = HfArg(default=None, help="Use only so many training images, from all over them.")
    max_eval_samples: int | None = HfArg(
        default=None, help="Use only so many images for evaluation, from all over them."
    )
    crop_scale: list[float] = HfArg(
        default_factory=lambda: [0.8, 1.0],
        help="Share of the image's area that random crops cover: smallest, largest.",
        metadata={"nargs": 2},
    )

    def __post_init__(self):
        if len(self.crop_scale) != 2:
            raise ValueError(f"crop_scale: expected the smallest and the largest share, got {self.crop_scale}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale: expected 0 < smallest <= largest <= 1, got {low} {high}")
        for name in ("dataset_name", "train_dir", "validation_dir"):
            named = getattr(self, name)
            if named is not None and not all(named if isinstance(named, list) else [named]):
                raise ValueError(f"{name}: is empty")
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
        sources = sources_of(self)
        if self.dataset_weights is not None and len(self.dataset_weights) != len(sources):
            raise ValueError(
                f"dataset_weights: there are {len(sources)} sources, but {len(self.dataset_weights)} weights"
            )
        if len({os.path.normpath(source or "") for source in sources}) < len(sources):
            raise ValueError(
                f"{images_field(self, train=True)}: {' '.join(map(str, sources))} names a source twice, of which "
                "images that are held out would be trained on; --dataset_weights counts one more than the others"
            )
        if len(sources) > 1 and self.max_train_samples is not None:
            raise ValueError("max_train_samples: cannot be used with several sources")


def sources_of(args: DataArguments) -> list[str | None]:
    """The sources to train on, as they are named; `None` is the bundled sample."""
    named = args.train_dir or args.dataset_name
    return [named] if isinstance(named, str) else list(named or [None])


def images_field(args: DataArguments, train: bool) -> str:
    """The argument that names the images to train on, or to evaluate on, for messages."""
    if train:
        return "dataset_name" if args.train_dir is None else "train_dir"
    return "validation_split" if args.validation_dir is None else "validation_dir"


def sources_by_field(args: DataArguments) -> dict[str, Collection[str | None]]:
    """All sources, by the argument that names them."""
    named: dict[str, Collection[str | None]] = {
        images_field(args, train=True): sources_of(args),
        "validation_dir": [args.validation_dir],
    }
    if isinstance(args, PreTrainingDataArguments):
        named |= {"monitor_dir": [args.monitor_dir], "monitor_dataset": [args.monitor_dataset]}
    return named


@dataclass
class PreTrainingDataArguments(DataArguments):
    """Where images come from, which of them are held out, how they are augmented, and what the encoder is measured on
    while it learns."""

    holdout: int | None = HfArg(
        default=None,
        help="Leave so many images, from all over the training data, out of training, and evaluate on them. Without "
        "it and without images for evaluation, the model is evaluated on some of the training images.",
    )
    crop_pixels: int | None = HfArg(
        default=None,
        help="Crop so many pixels square at the resolution of the image, instead of a share of its area; resized to "
        "--image_size if that is another. Smaller images are skipped.",
    )
    min_content: float | None = HfArg(
        default=None,
        help="With --crop_pixels: take crops of which at least this share is not background, the best of ten draws if "
        "none is; an image without any is skipped.",
    )
    hflip: float = HfArg(default=0.5, help="Share of images that are mirrored left to right.")
    vflip: float = HfArg(default=0.0, help="Share of images that are mirrored top to bottom.")
    rotate90: bool = HfArg(default=False, help="Turn images by 0, 90, 180 or 270 degrees.")
    color_jitter: float = HfArg(
        default=0.0, help="Strength of colour jitter, as timm's: brightness, contrast and (3 channels) saturation."
    )
    grayscale: float = HfArg(default=0.0, help="Share of images of 3 channels that lose their colour.")
    monitor_dir: str | None = HfArg(
        default=None,
        help="A folder with a sub-folder of images for each class, on which the encoder is measured while it learns "
        "(k-NN accuracy, RankMe, ...). Without it and --monitor_dataset: images that the model is evaluated on.",
    )
    monitor_dataset: str | None = HfArg(
        default=None, help="The same as a dataset: on the Hub, a local folder or one file; without labels, no k-NN."
    )
    monitor_split: str | None = HfArg(
        default=None, help="Split of --monitor_dataset; default: the one for evaluation, or train if it has none."
    )
    monitor_samples: int = HfArg(
        default=MONITOR_SAMPLES, help="Measure on at most so many images, of all classes alike; always the same ones."
    )
    monitor_steps: str = HfArg(
        default="auto",
        help="Measure every so many steps, and at the start and the end; auto: as often as costs less than 3%% of the "
        "training, at most 20 times in all; 0: not at all.",
    )
    probe_layers: str = HfArg(
        default="last",
        help="What is measured: last, the mean of the last map, or all, mean and standard deviation of the maps of "
        "every stage together.",
        metadata={"choices": ["last", "all"]},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.holdout is not None and self.holdout < 1:
            raise ValueError(f"holdout: must be at least 1, got {self.holdout}")
        if self.holdout is not None and (self.validation_dir or self.validation_split):
            raise ValueError("holdout: give either it or images for evaluation (--validation_dir, --validation_split)")
        if self.crop_pixels is not None and self.crop_pixels < 1:
            raise ValueError(f"crop_pixels: must be at least 1, got {self.crop_pixels}")
        if self.crop_pixels is not None and tuple(self.crop_scale) != (0.8, 1.0):
            raise ValueError("crop_scale: has no effect beside --crop_pixels; leave it out")
        if self.min_content is not None and self.crop_pixels is None:
            raise ValueError("min_content: is of crops of --crop_pixels; give that, too")
        if self.min_content is not None and not 0 < self.min_content <= 1:
            raise ValueError(f"min_content: must be in (0, 1], got {self.min_content}")
        if self.holdout is not None and self.max_eval_samples is not None:
            raise ValueError("max_eval_samples: --holdout says how many images there are to evaluate on")
        for name in ("hflip", "vflip", "grayscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.color_jitter < math.inf:
            raise ValueError(f"color_jitter: must be a finite number of at least 0, got {self.color_jitter}")
        if self.monitor_dir is not None and self.monitor_dataset is not None:
            raise ValueError("monitor_dataset: give either --monitor_dataset or --monitor_dir, not both")
        if self.monitor_samples < 2:
            raise ValueError(f"monitor_samples: must be at least 2, got {self.monitor_samples}")
        self.monitor_steps = steps_or_auto(self.monitor_steps, "monitor_steps")


def steps_or_auto(value: str | int, field: str) -> str | int:
    """A number of steps, or "auto", as it was given.

    Raises:
        ValueError: naming the field, if it is neither, or negative.
    """
    if value == "auto":
        return value
    try:
        steps = int(str(value))
    except ValueError:
        steps = -1
    if steps < 0:
        raise ValueError(f"{field}: expected a number of steps, 0 for none, or auto, got {value!r}")
    return steps


@dataclass
class ClassificationArguments(DataArguments):
    """Where labelled images come from."""

    label_column_name: str | None = HfArg(default=None, help="Column of the labels; found if not given.")
    problem_type: str | None = HfArg(
        default=None,
        help="What the labels are: one class of each image (default), several (multi_label_classification: a column "
        "of lists of classes, or of 0 and 1 for each class), or a number (regression).",
        metadata={"choices": PROBLEM_TYPES},
    )
    labels_per_class: int | None = HfArg(
        default=None, help="Train on only so many images of each class (drawn with --data_seed)."
    )
    label_fraction: float | None = HfArg(default=None, help="Train on only this share of each class.")
    label_subset: str | None = HfArg(
        default=None, help="Train on the images of a subset.json that an earlier run wrote."
    )
    seeds: list[int] | None = HfArg(
        default=None,
        help="Repeat everything (labels drawn, first weights, order) with each of these seeds; with means and "
        "intervals.",
        metadata={"nargs": "+"},
    )
    train_image_size: list[int] | None = HfArg(
        default=None, help="Size of images in training, if it is another.", metadata={"nargs": "+"}
    )
    auto_augment: str | None = HfArg(default=None, help="timm's augmentation policy, e.g. rand-m6-mstd0.5-inc1.")
    color_jitter: float | None = HfArg(
        default=None, help="Strength of colour jitter (timm leaves it out under a policy)."
    )
    hflip: float = HfArg(default=0.5, help="Share of images that are mirrored left to right.")
    vflip: float = HfArg(default=0.0, help="Share of images that are mirrored top to bottom.")
    reprob: float = HfArg(default=0.0, help="Share of images of which a rectangle is erased.")
    remode: str = HfArg(
        default="const", help="What it is filled with: const (zero), rand (a colour) or pixel (noise)."
    )
    aug_repeats: int = HfArg(
        default=1, help="How often each image comes in a row, differently augmented; a pass stays as long."
    )
    corruptions: list[str] | None = HfArg(
        default=None,
        help="Evaluate on corrupted images, too: all, or some of the 15 types of ImageNet-C.",
        metadata={"nargs": "+"},
    )
    crop_scale: list[float] = HfArg(
        default_factory=lambda: [0.8, 1.0],
        help="Share of the image's area that random crops cover: smallest, largest.",
        metadata={"nargs": 2},
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
        if len(sources_of(self)) > 1:
            raise ValueError(f"{images_field(self, train=True)}: labelled images come from one source; give one")
