"""Command-line arguments of the two scripts, parsed by transformers' HfArgumentParser, and what follows from them."""

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import datasets
import transformers
from datasets import ClassLabel, Image, Value
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser

from .cards import PRETRAINING_CONFIG
from .checkpoints import check_output_dir, find_checkpoint
from .configuration_a2mim import A2MIMConfig
from .data import ImageSamples
from .decoding import MAX_PIXELS
from .export import load_encoder, load_into_encoder, read_record, resized_weights
from .loading import find_column, find_validation_split, load_images
from .modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining
from .order import mix_counts
from .recipes import as_flags, load_recipe
from .sources import DatasetSource, MixedSource, ReadError, RowSource


BUNDLED = "zalando-datasets/fashion_mnist"  # what the bundled sample is a part of
TASK_NAMES = ("image-classification", "semantic-segmentation", "object-detection", "instance-segmentation")
PRESETS = ("auto", "resnet", "convnext", "vit", "swin", "simmim")

logger = logging.getLogger("a2mim")


def parse(
    model_type: type,
    data_type: type,
    training_type: type,
    argv: list[str] | None,
    script: str,
    task: str | None = None,
) -> tuple:
    """Parse the command line into these dataclasses, set logging up, and check what needs neither data nor model.

    Args:
        argv: the command line; of the recipe that it names, what it does not give itself.
        script, task: what a recipe must be for.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    parser = HfArgumentParser((model_type, data_type, training_type), allow_abbrev=False)
    if task is not None:
        parser.add_argument("--task", default=task, help=f"What to train for: {', '.join(TASK_NAMES)}.")
    argv = list(sys.argv[1:] if argv is None else argv)
    name = peek(argv).recipe
    if name is not None:
        recipe = dict(load_recipe(name, script, task)["arguments"])
        if any(flag.partition("=")[0] == "--architecture" for flag in argv):
            recipe.pop("model_args", None)  # which are for the recipe's own architecture
        argv = as_flags(recipe, {action.dest for action in parser._actions}) + argv
    model_args, data_args, args = parser.parse_args_into_dataclasses(argv)[:3]
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("a2mim").setLevel(logging.INFO if args.should_log else logging.WARNING)
    transformers.utils.logging.set_verbosity(args.get_process_log_level())
    if name is not None:
        logger.info("recipe %s: %s", name, " ".join(as_flags(recipe, set(recipe))))
    logger.info("%s", args.batch_note)
    check_output_dir(args.output_dir, args.resume_from_checkpoint)
    if not getattr(data_args, "seeds", None):  # whose checkpoints are in folders of their own
        find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    return model_args, data_args, args


def peek(argv: list[str] | None) -> argparse.Namespace:
    """`recipe` and `task` on the command line, before the rest can be parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    parser.add_argument("--task")
    return parser.parse_known_args(argv)[0]


def run_as_command(main: Callable[[], object]):
    """Run a script: what is wrong with arguments or data ends it with a message, and with its traceback at
    `--log_level debug`."""
    try:
        main()
    except (ValueError, ReadError) as error:
        if transformers.utils.logging.get_verbosity() <= logging.DEBUG:
            raise
        # Of an error in a worker, torch gives the traceback as the message.
        message = str(error).strip()
        if message.startswith("Caught "):
            message = message.splitlines()[-1].split(": ", 1)[-1]
        sys.exit(f"error: {message}")


def helped(default, text: str, **metadata):
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class EncoderArguments:
    """The encoder and the images that it takes; what is not given is the configuration's default."""

    architecture: str = helped("resnet50", "A timm model: any name of timm.list_models().")
    model_args: str | None = helped(
        None, "Further arguments of timm.create_model as JSON, e.g. '{\"patch_size\": 8}'."
    )
    image_size: list[int] | None = helped(None, "Image size in pixels: one number, or height and width.", nargs="+")
    num_channels: int | None = helped(None, "Channels of the images: 1 grey, 3 RGB (default).")
    image_mean: list[float] | None = helped(None, "Mean of each channel (pixels in [0, 1]).", nargs="+")
    image_std: list[float] | None = helped(None, "Standard deviation of each channel.", nargs="+")
    crop_pct: float | None = helped(None, "Share of the resized image that is seen in evaluation. Default 0.95.")

    def given(self) -> dict:
        """What was given, as keyword arguments of A2MIMConfig."""
        names = [f.name for f in fields(self) if f.name in A2MIMConfig.__annotations__]
        values = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name in ("image_size", "mask_patch_size"):
            if name in values and len(values[name]) == 1:
                values[name] = values[name][0]
        if "model_args" in values:
            try:
                values["model_args"] = json.loads(values["model_args"])
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"model_args: expected a JSON object, got {values['model_args']!r}: {error}"
                ) from error
        return values


@dataclass
class PreTrainingModelArguments(EncoderArguments):
    """The encoder, the mask and the loss (fields of A2MIMConfig)."""

    preset: str = helped(
        "auto",
        "Whose settings of the paper to start from; auto: resnet for hierarchical encoders, vit for isotropic ones.",
        choices=PRESETS,
    )
    model_name_or_path: str | None = helped(
        None, "Continue from a pre-trained folder or Hub id (with pretraining/) instead of new weights."
    )
    model_revision: str | None = helped(None, "Branch, tag or commit of --model_name_or_path on the Hub.")
    mask_ratio: float | None = helped(None, "Share of masked cells, in (0, 1). Default 0.6.")
    mask_patch_size: list[int] | None = helped(None, "Size of one masked cell in pixels. Default 32.", nargs="+")
    mask_fill: str | None = helped(None, "What masked pixels become: mean, zero or none.")
    mask_site: str | None = helped(None, "Where the mask token enters: a timm module, or an index into feature_info.")
    mask_token_mode: str | None = helped(None, "add (A2MIM) or replace (SimMIM).")
    mask_gamma_init: str | None = helped(None, "First value of gamma, or none.")
    decoder_kernel_size: int | None = helped(None, "Size of the convolution that predicts the pixels. Default 1.")
    decoder_norm: bool | None = helped(None, "Decode after the norm of the encoder's head, where it has one.")
    spatial_loss: str | None = helped(None, "l1 or focal_l1.")
    frequency_loss_weight: float | None = helped(None, "Weight of the Fourier term; 0 turns it off.")
    frequency_focal: bool | None = helped(None, "Focal frequency loss, or the spatial criterion of the spectrum.")
    frequency_replacement: str | None = helped(None, "mixed, prediction, target or mean.")
    frequency_unmasked_weight: float | None = helped(None, "Share of the visible prediction in the Fourier term.")
    frequency_batch_average: bool | None = helped(None, "Average the batch before the Fourier transform.")

    def config(self) -> A2MIMConfig:
        """The configuration that these arguments describe.

        Raises:
            ValueError: naming the field that is wrong.
        """
        values = self.given()
        site, gamma = values.get("mask_site"), values.get("mask_gamma_init")
        if site is not None and site.lstrip("-").isdigit():
            values["mask_site"] = int(site)
        if gamma is not None:
            try:
                values["mask_gamma_init"] = None if gamma.lower() == "none" else float(gamma)
            except ValueError:
                raise ValueError(f"mask_gamma_init: expected a number or none, got {gamma!r}") from None
        make = A2MIMConfig.for_architecture if self.preset == "auto" else getattr(A2MIMConfig, self.preset)
        return make(**values)


@dataclass
class ClassifierArguments(EncoderArguments):
    """What to fine-tune: a pre-trained encoder, or a new one (`architecture`)."""

    architecture: str | None = helped(None, "Train this timm model from scratch: any name of timm.list_models().")
    model_name_or_path: str | None = helped(None, "An exported folder, its name on the Hub, or any timm model there.")
    model_revision: str | None = helped(None, "Branch, tag or commit of --model_name_or_path on the Hub.")
    global_pool: str | None = helped(
        None, "How the last map is pooled: avg for the mean of a ViT's patches instead of its class token, ..."
    )
    drop_path: float | None = helped(None, "Rate of stochastic depth.")
    linear_probe: bool = helped(False, "Freeze the encoder and train only a linear classifier.")
    probe_batch_norm: bool = helped(
        False, "Normalise the features of --linear_probe by BatchNorm (no scale, no shift)."
    )
    probe_layers: list[int] | None = helped(
        None,
        "Layers whose features are probed: indices of timm's feature_info, -1 the last map. One for --linear_probe, "
        "several for --knn. Default of --knn: -1; of --linear_probe: what timm's classifier reads.",
        nargs="+",
    )
    eval_only: bool = helped(False, "Train nothing: evaluate the classifier in --model_name_or_path.")
    knn: bool = helped(False, "Train nothing: k-nearest neighbours and logistic regression on frozen features.")
    knn_neighbours: int = helped(20, "Nearest neighbours that vote in --knn.")
    knn_temperature: float | None = helped(0.07, "A neighbour at cosine similarity s counts exp(s / temperature).")

    probe_strength: float | None = helped(
        None, "Inverse regularisation (scikit-learn's C) of logistic regression; default: by cross-validation."
    )
    add_to_card: bool = helped(False, "Write what was measured into the card of the folder --model_name_or_path.")

    def __post_init__(self):
        modes = [name for name in ("linear_probe", "knn", "eval_only") if getattr(self, name)]
        if len(modes) > 1:
            raise ValueError(f"{modes[1]}: give either it or --{modes[0]}")
        if self.add_to_card and not Path(self.model_name_or_path or "", PRETRAINING_CONFIG).is_file():
            raise ValueError("add_to_card: --model_name_or_path is no folder with a pre-trained encoder")
        if self.probe_layers is not None and not (self.knn or self.linear_probe):
            raise ValueError("probe_layers: is for --linear_probe and --knn")
        if self.linear_probe and len(self.probe_layers or [None]) > 1:
            raise ValueError("probe_layers: --linear_probe trains on one layer; --knn compares several")
        if self.probe_batch_norm and not self.linear_probe:
            raise ValueError("probe_batch_norm: is for --linear_probe")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: must be in [0, 1), got {self.drop_path}")

    def base_model(self) -> str | None:
        """Where the encoder is on the Hub, if it is there: its id, or where its folder says that it was pushed to."""
        source = self.model_name_or_path
        if source is None or not Path(source).is_dir():
            return source
        return read_record(source).get("repo_id")

    @property
    def task(self) -> str:
        if self.linear_probe or self.knn:
            return "linear probing" if self.linear_probe else "k-NN and logistic regression on frozen features"
        return "fine-tuning" if self.architecture is None else "training from scratch"

    def build(
        self, names: list[str], token: str | None = None
    ) -> tuple[A2MIMForImageClassification, A2MIMForPreTraining | None]:
        """A classifier for classes of these names, and the pre-training model that its encoder comes from, if any.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        if (self.architecture is None) == (self.model_name_or_path is None):
            raise ValueError("model_name_or_path: give either it or, to train from scratch, --architecture")
        values = self.given()
        timm_args = {"drop_path_rate": self.drop_path, "global_pool": self.global_pool}
        timm_args = {name: value for name, value in timm_args.items() if value is not None}
        if timm_args:
            values["model_args"] = {**values.get("model_args", {}), **timm_args}
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        if self.architecture is not None:
            return A2MIMForImageClassification(A2MIMConfig.for_encoder(**values, **labels)), None
        source = folder_or_id(self.model_name_or_path)
        pretraining, (config, weights) = load_encoder(source, revision=self.model_revision, token=token)
        kept = {f.name: getattr(config, f.name) for f in fields(EncoderArguments)}
        kept["model_args"] = {**config.model_args, **values.pop("model_args", {})}
        model = A2MIMForImageClassification(A2MIMConfig.for_encoder(**{**kept, **values}, **labels))
        load_into_encoder(model, resized_weights(weights, config, model.a2mim))
        return model, pretraining


@dataclass
class DataArguments:
    """Where the images come from. Without any source: the bundled Fashion-MNIST sample."""

    dataset_name: list[str] | None = helped(
        None,
        "A dataset on the Hub, a local folder of images, parquet or tar files, or one file; several are mixed.",
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

    @property
    def sources(self) -> list[str | None]:
        """What was named for training; None is the bundled sample."""
        named = self.train_dir or self.dataset_name
        return [named] if isinstance(named, str) else list(named or [None])

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
        if not isinstance(dataset, MixedSource):
            column = find_column(dataset, Image, self.image_column_name, "image_column_name")
        if isinstance(dataset, datasets.Dataset):
            dataset = DatasetSource(dataset, retries=self.read_retries)
        return ImageSamples(
            dataset, transform, column, label_column, seed, self.shuffle_buffer_size, self.max_skipped_ratio
        )


@dataclass
class ClassificationArguments(DataArguments):
    """Where labelled images come from."""

    label_column_name: str | None = helped(None, "Column of the labels; found if not given.")
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
        default_factory=lambda: [0.35, 1.0],
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
        column = find_column(dataset, ClassLabel, self.label_column_name, "label_column_name")
        feature = dataset.features.get(column)
        if isinstance(feature, ClassLabel):
            return dataset
        if self.streaming and train:
            raise ValueError(f"label_column_name: column {column!r} names no classes, which --streaming needs")
        if not isinstance(feature, Value) or feature.dtype.startswith("float"):
            raise ValueError(f"label_column_name: column {column!r} holds {feature}, which are no class labels")
        return dataset.class_encode_column(column)

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
            raise ValueError(f"label_column_name: column {column!r} has fewer than two classes: {names}")
        return column, names


def hub_id(name: str | None) -> str | None:
    """`name`, if it is the id of a repository on the Hub and no path, pattern or URL."""
    if name is None or Path(name).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def folder_or_id(name: str) -> str:
    """`name`, if it is a folder that exists or may be a repository on the Hub.

    Raises:
        ValueError: if it can only be a folder and is not there.
    """
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()):
        raise ValueError(f"model_name_or_path: there is no folder {name}")
    return name
