"""What a classifier is trained and evaluated on: the chosen images, and both splits as samples."""

import copy
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, Image

from ...arguments.data import ClassificationArguments
from ...data.augmentation import finetuning_augmentation
from ...data.columns import find_column
from ...data.dataset import ImageSamples
from ...data.pixel_spec import PixelSpec
from ...data.splits import as_source, image_samples
from ...data.subsets import checksum_of_images, draw_subset, load_subset, save_subset
from ...data.transforms import FineTuneTransform
from ...encoders.plan import plan_encoder
from ...export.folder import timm_pretrained_cfg
from ...export.provenance import few_labels
from .labelled_images import LabelledImages


SUBSET = "subset.json"


def choose_rows(data_args: ClassificationArguments, images: LabelledImages, seed: int) -> list[int] | None:
    """The rows to train on, `None` for all."""
    if few_labels(data_args) is None:
        return None
    labels = cast(Dataset, images.train)[images.column][:]  # nothing is drawn from a stream
    if data_args.label_subset is not None:
        return load_subset(data_args.label_subset, labels, partial(_checksum, data_args, images))
    per_class, fraction = data_args.labels_per_class, data_args.label_fraction
    return draw_subset(labels, per_class=per_class, fraction=fraction, seed=seed, names=images.names)


def keep_subset(folder: str, rows: list[int], data_args: ClassificationArguments, images: LabelledImages, seed: int):
    """Write `subset.json`, with which a later run trains on the same images."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Any] = {} if data_args.label_subset else {"seed": seed}
    drawn |= {"per_class": data_args.labels_per_class, "fraction": data_args.label_fraction}
    labels = cast(Dataset, images.train)[images.column][:]
    save_subset(Path(folder, SUBSET), rows, labels, checksum=_checksum(data_args, images, rows), **drawn)


def _checksum(data_args: ClassificationArguments, images: LabelledImages, rows: list[int]) -> str:
    column = find_column(images.train, Image, data_args.image_column_name, "image_column_name")
    return checksum_of_images(as_source(data_args, images.train).select(column), rows)


def evaluation_samples(model, data_args: ClassificationArguments, images: LabelledImages, seed: int) -> ImageSamples:
    """The images to evaluate on, as the trainer reads them."""
    transform = FineTuneTransform(
        timm_pretrained_cfg(model.a2mim), False, PixelSpec.from_config(model.config, data_args.max_image_pixels)
    )
    return image_samples(data_args, images.validation, transform, seed, images.column)


def training_transform(model, data_args: ClassificationArguments) -> FineTuneTransform:
    """timm's augmentation, at another size if `train_image_size` says so.

    Raises:
        ValueError: naming `train_image_size`, if the encoder was built for one size of images, or the augmentation
            that is not for images of this kind.
    """
    cfg, size = timm_pretrained_cfg(model.a2mim), data_args.train_image_size
    if size is not None:
        size = list(size) * (3 - len(size))
        config = copy.deepcopy(model.config)
        config.image_size = size
        if plan_encoder(config, for_masking=False).create_args != model.a2mim.plan.create_args:
            own = " x ".join(map(str, model.config.input_size))
            raise ValueError(f"train_image_size: {config.architecture} takes images of {own} px and no others")
        cfg["input_size"] = [config.num_channels, *size]
    spec = PixelSpec.from_config(model.config, data_args.max_image_pixels)
    options = {"scale": tuple(data_args.crop_scale), **finetuning_augmentation(data_args)}
    return FineTuneTransform(cfg, True, spec, **options)
