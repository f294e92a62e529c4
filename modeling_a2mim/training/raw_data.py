"""What a user of Trainer passes as data: rows of `datasets` with a column of images become samples, and ready samples
are checked before training."""

import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Image, Value
from torch.utils.data import IterableDataset, Subset, get_worker_info
from transformers import default_data_collator

from ..data.columns import find_column
from ..data.dataset import ImageSamples
from ..data.decoding import BrokenImage
from ..data.pixel_spec import PixelSpec
from ..data.progress import SkippedImages
from ..data.transforms import FineTuneTransform, PreTrainTransform, generators_kept, seed_generators
from ..export.folder import timm_pretrained_cfg
from ..modeling_a2mim import NORMALISE, A2MIMForPreTraining
from ..models.classifier import A2MIMForImageClassification
from ..models.linear_probe import LinearProbe
from ..utils.value_range import ValueRange


logger = logging.getLogger("a2mim")

LABELS = ("labels", "label", "label_ids")  # as `default_data_collator` knows them
AUGMENTATION: dict[str, Any] = {
    "scale": (0.8, 1.0),
    "hflip": 0.5,
    "vflip": 0.0,
}  # the command's defaults for classifiers
MAX_SKIPPED_RATIO = 0.05
ROWS = (datasets.Dataset, datasets.IterableDataset)
OURS = A2MIMForPreTraining | A2MIMForImageClassification | LinearProbe
NUMBERS = (torch.Tensor, np.ndarray, list, tuple)
MOST = 10  # times the largest normalised value: other statistics than the config's give less, 0 to 255 gives more


def as_samples(dataset, model, seed: int, name: str, collated: bool = False):
    """`dataset` as what the trainer reads: rows with a column of images become `ImageSamples`, or `StreamedSamples` if
    they have no length; anything else, and data for other models than ours, is checked and stays as it is.

    Args:
        dataset: or a dict of several, or `None`.
        model: that it is for: images alone for pre-training, images and labels for a classifier.
        seed: of crops, flips and masks.
        name: the argument: `train_dataset`, whose images are augmented, `eval_dataset`, or `test_dataset`, which need
            have no labels.
        collated: whether a collator or steps of the user's make of the samples what the model takes.

    Raises:
        ValueError: naming `name`, and what to pass instead.
    """
    if isinstance(dataset, dict):
        return {key: as_samples(one, model, seed, name, collated) for key, one in dataset.items()}
    if dataset is None or isinstance(dataset, ImageSamples | StreamedSamples | str) or not isinstance(model, OURS):
        return dataset
    transformed = _transformed(dataset)
    if not isinstance(dataset, ROWS) or transformed or _holds_pixels(dataset):
        if not collated:
            _check_samples(dataset, model, name)
        # Of rows, Trainer drops the columns that the model does not take before the user's transform reads them; of
        # other data, it drops what the samples have of others.
        return Subset(dataset, range(len(dataset))) if transformed else dataset
    train = name == "train_dataset"
    try:
        image = find_column(_Columns(dataset), Image, None, name)
    except ValueError as error:
        raise ValueError(
            f"{error}; cast one, dataset.cast_column('image', datasets.Image()), or pass {_wanted(model)}"
        ) from None
    label = None
    transform: PreTrainTransform | FineTuneTransform
    if isinstance(model, A2MIMForPreTraining):
        transform = PreTrainTransform(model.config, train=train)
    else:
        label = _label_column(dataset, model, name)
        options = AUGMENTATION if train else {}
        spec = PixelSpec.from_config(model.config)
        transform = FineTuneTransform(timm_pretrained_cfg(model.a2mim), train, spec, **options)
    if isinstance(dataset, datasets.IterableDataset):
        return StreamedSamples(dataset, transform, image, label, seed, name)
    return ImageSamples(dataset.with_format(None), transform, image, label, seed)


class StreamedSamples(IterableDataset):
    """Samples of a `datasets.IterableDataset`, in its order. What is drawn for a sample depends on the seed, the epoch
    and its place in what a worker reads alone. Broken images are left out, and counted as of `ImageSamples`.

    Args:
        rows: with images.
        transform: a stored image to a dict of tensors.
        image_column, label_column: names of columns; no labels if `None`.
        seed: of everything random.
        name: what to call the data in a message.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        transform,
        image_column: str,
        label_column: str | None,
        seed: int,
        name: str,
    ):
        if rows.features is not None and isinstance(rows.features.get(image_column), Image):
            rows = rows.cast_column(image_column, Image(decode=False))
        self.rows, self.transform, self.columns = rows, transform, (image_column, label_column)
        self.seed, self.name, self.epoch = seed, name, 0

    def set_epoch(self, epoch: int):
        """Set the epoch, from 0, on which order and what is drawn depend; `Trainer` calls it."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict]:
        worker, skipped = get_worker_info(), SkippedImages(MAX_SKIPPED_RATIO, rows=None)
        image, label = self.columns
        for place, row in enumerate(self.rows):
            report: dict[str, Any] = {"seen": {self.name: 1}, "skipped": []}
            try:
                with generators_kept():
                    seed_generators(self.seed, self.epoch, worker.id if worker else 0, place)
                    sample = self.transform(row[image])
            except BrokenImage as error:
                report["skipped"].append((self.name, f"row {place} of {self.name}: {error}"))
            skipped.add(report)
            if report["skipped"]:
                continue
            yield sample if label is None else {**sample, "labels": torch.tensor(row[label])}
        skipped.check(skipped.seen, skipped.skipped)


def collate_samples(samples: list) -> dict:
    """As transformers' default collator.

    Raises:
        ValueError: if the samples are not dicts with `pixel_values`, or these are no numbers (a PIL image).
    """
    if not isinstance(samples[0], Mapping) or "pixel_values" not in samples[0]:
        raise ValueError(
            f"train_dataset, eval_dataset: a sample is {_described(samples[0])}; pass dicts with pixel_values (and "
            "labels, for a classifier), rows of datasets with a column of images, or a data_collator"
        )
    if not isinstance(values := samples[0]["pixel_values"], NUMBERS):
        raise ValueError(f"train_dataset, eval_dataset: {_no_numbers(values)}")
    return default_data_collator(samples)


class _Columns:
    """The columns of rows, of a stream that does not know its features as well."""

    def __init__(self, dataset):
        self.features = dataset.features or dict.fromkeys(_columns(dataset))


@functools.lru_cache(1)
def _first_row(dataset) -> dict:
    return next(iter(dataset.take(1)), {})


def _columns(dataset) -> list[str]:
    return list(dataset.features or dataset.column_names or _first_row(dataset))


def _holds_pixels(dataset) -> bool:
    """Whether the rows are samples: a column of this name that holds images is one to be read as any other."""
    named = "pixel_values" in _columns(dataset)
    return named and not isinstance((dataset.features or {}).get("pixel_values"), Image)


def _transformed(dataset) -> bool:
    """Whether the rows have a transform of the user's (`with_transform`)."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"


def _label_column(dataset, model, name: str) -> str | None:
    count, own = model.config.num_labels, [model.config.id2label[i] for i in range(model.config.num_labels)]
    try:
        column = find_column(_Columns(dataset), ClassLabel, None, name)
    except ValueError as error:
        if name == "test_dataset":
            return None
        raise ValueError(f"{error}; a classifier needs them") from None
    feature = (dataset.features or {}).get(column)
    if isinstance(feature, ClassLabel):
        if feature.num_classes != count:
            raise ValueError(
                f"{name}: column {column!r} has {feature.num_classes} classes, the model {count}; make the model with "
                "id2label of these classes"
            )
        if own != [f"LABEL_{i}" for i in range(count)] and own != feature.names:
            raise ValueError(
                f"{name}: the classes of column {column!r}, {feature.names[:5]}, are not those of the model, "
                f"{own[:5]}; give the model the same id2label, or align them, dataset.align_labels_with_mapping"
            )
    elif feature is not None and not (isinstance(feature, Value) and "int" in feature.dtype):
        raise ValueError(
            f"{name}: column {column!r} holds {feature}, which are no numbers of classes; "
            f"dataset.class_encode_column({column!r}) makes them"
        )
    elif isinstance(dataset, datasets.Dataset):
        wrong = [value for value in dataset.unique(column) if value is None or not 0 <= value < count]
        if wrong:
            raise ValueError(f"{name}: column {column!r} holds {wrong[0]}, the model's classes are 0 to {count - 1}")
    return column


def _check_samples(dataset, model, name: str):
    """
    Raises:
        ValueError: if the first sample is not what the model takes. Those of a stream are seen by `collate_samples`.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not len(dataset):
        return
    with generators_kept():  # the sample may be drawn at random
        sample = dataset[0]
    values = sample.get("pixel_values") if isinstance(sample, Mapping) else None
    if values is None:
        raise ValueError(f"{name}: a sample is {_described(sample)}; pass {_wanted(model)}, or rows of datasets")
    pixels = _as_tensor(values, model, name)
    shape = tuple(pixels.shape)
    if len(shape) != 3 or shape[0] != model.config.num_channels:
        raise ValueError(f"{name}: pixel_values of a sample are of shape {shape}; pass {_wanted(model)}")
    _check_pixels(pixels, model.config, name)
    needs_labels = not isinstance(model, A2MIMForPreTraining) and name != "test_dataset"
    if needs_labels and not any(key in sample for key in LABELS):
        raise ValueError(f"{name}: a sample has no labels, but {', '.join(sample)}; pass {_wanted(model)}")


def check_batch(batch, model, name: str):
    """Check a batch of data that is not ours, and warn of values that are hardly normalised by the config.

    Raises:
        ValueError: naming `name`, if the model takes no such `pixel_values`.
    """
    if not isinstance(model, OURS):
        return
    pixels = batch.get("pixel_values") if isinstance(batch, Mapping) else None
    if not isinstance(pixels, torch.Tensor):
        raise ValueError(f"{name}: a batch is {_described(batch)}; it needs a tensor pixel_values")
    size = tuple(pixels.shape[-2:])
    if size != tuple(model.config.input_size):
        logger.warning(
            "%s: pixel_values are of %d x %d px; the config says %d x %d, which is how the exported model will be "
            "given images; if that is not meant, make the model with image_size=%s in its config",
            *(name, *size, *model.config.input_size, list(size)),
        )
    extremes = _check_pixels(pixels, model.config, name)
    if extremes is not None:
        logger.warning(
            "%s: pixel_values are from %g to %g, far from those normalised by image_mean and image_std of the model's "
            "config, which is how the exported model will be given images",
            name,
            *extremes,
        )


def _as_tensor(values, model, name: str) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values
    if not isinstance(values, NUMBERS):
        raise ValueError(f"{name}: {_no_numbers(values)}")
    try:
        return torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: pixel_values of a sample are no numbers ({error}); pass {_wanted(model)}") from None


def _no_numbers(values) -> str:
    return (
        f"pixel_values of a sample are of type {type(values).__name__}, the model takes normalised tensors; pass rows "
        "of datasets with a column of images, or what the model's image processor makes of each image"
    )


def _check_pixels(pixels: torch.Tensor, config, name: str) -> tuple[float, float] | None:
    """The lowest and highest of these values, (..., channels, height, width), if they are far beyond normalised ones.

    Raises:
        ValueError: if they are integers, or not normalised at all.
    """
    if not pixels.is_floating_point():
        raise ValueError(f"{name}: pixel_values are of {pixels.dtype}, which are not normalised; {NORMALISE}")
    known = ValueRange.from_config(config.value_range)
    if not pixels.numel() or (known is not None and not known.clip):  # any values may be right
        return None
    normal = max(max(mean, 1 - mean) / std for mean, std in zip(config.image_mean, config.image_std, strict=True))
    low, high = (value.item() for value in pixels.aminmax())
    if not max(-low, high) > MOST * normal:
        return None
    if low >= 0:  # no mean was subtracted
        raise ValueError(f"{name}: pixel_values are from {low:g} to {high:g}, which are not normalised; {NORMALISE}")
    return low, high


def _wanted(model) -> str:
    config = model.config
    height, width = config.input_size
    labels = "" if isinstance(model, A2MIMForPreTraining) else ", and labels, each the number of a class"
    return f"samples with pixel_values, normalised tensors of shape ({config.num_channels}, {height}, {width}){labels}"


def _described(sample) -> str:
    if isinstance(sample, Mapping):
        return f"a dict of {', '.join(map(str, sample)) or 'nothing that the model takes'}"
    if isinstance(sample, tuple | list):
        return f"a {type(sample).__name__} of {', '.join(type(part).__name__ for part in sample)}"
    return f"a {type(sample).__name__}"
