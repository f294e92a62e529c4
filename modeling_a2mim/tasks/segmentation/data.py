"""What a segmenter is trained and evaluated on: images with their maps of classes, their samples, and batches.

Training: the image is scaled by a random factor (1: it just covers the crop), cropped, padded where it is smaller, and
flipped. Evaluation: the whole image is brought to the crop's size, whatever its aspect ratio, as the exported image
processor does; the prediction is brought back to the size of the annotation and compared there.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, Image
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import SegformerImageProcessor

from ...arguments.data import sources_of
from ...arguments.dense import check_trained
from ...arguments.segmentation import LABELS_FILE, SegmentationArguments, ignored_value
from ...data.columns import choose_images, find_column
from ...data.decoding import BrokenImage, load_turned, take_as_shown, turned
from ...data.overlap import evaluates_on_training
from ...data.pixel_spec import PixelSpec, given_as
from ...data.sources import RowSource
from ...data.splits import NO_VALIDATION, as_source, find_evaluation_split, load_evaluation_split, load_training_split
from ...export.record import hub_id
from ...pretrained import find_file
from .labels import LabelValues, read_labels
from .scan import EVALUATION, TRAINING, label_maps


logger = logging.getLogger("a2mim")

ANNOTATIONS = ("annotation", "annotations", "label", "labels", "mask", "masks", "segmentation_mask", "semantic")


class Labelled(NamedTuple):
    """The images with labels to train on and, if there are any, to evaluate on (`split` is their name, `seen` whether
    some of them are trained on), the classes of their maps, and the columns of both."""

    train: RowSource | None
    validation: RowSource | None
    labels: LabelValues
    label_column: str
    image_column: str | None = None
    split: str | None = None
    seen: bool = False

    @property
    def stored(self) -> tuple[Dataset | RowSource, str | None]:
        """All images to train on, and their column, if the arguments do not say it."""
        return self.train, self.image_column


def load_labelled(args: SegmentationArguments, token: str | None = None) -> Labelled:
    """The images to train on and to evaluate on. Raises as `load_training_split` and `read_maps`."""
    check_trained(args)
    train, split = load_training_split(args, token), find_evaluation_split(args)
    validation = load_evaluation_split(args, split, token)
    image_column, column = find_columns(args, train)
    args = replace(args, image_column_name=image_column)
    seen = evaluates_on_training(args, split, train, validation)
    return read_maps(args, train, validation, column, split, token)._replace(image_column=image_column, seen=seen)


def load_to_evaluate(args: SegmentationArguments, names: list[str], token: str | None = None) -> Labelled:
    """The images to evaluate a segmenter on that has classes of these names; without names of their own, the values
    in their maps are the numbers of its classes.

    Raises:
        ValueError: naming the argument, if there is nothing to evaluate on, or an unknown class.
    """
    split = find_evaluation_split(args)
    validation = load_evaluation_split(args, split, token)
    if validation is None:
        raise ValueError(NO_VALIDATION)
    image_column, column = find_columns(args, validation)
    if find_labels_file(args, token) is None:
        logger.warning("no names of classes (--labels_file): values in the maps are taken for those of the segmenter")
    return read_maps(args, None, validation, column, split, token, names)._replace(image_column=image_column)


def find_columns(args: SegmentationArguments, dataset: Dataset | RowSource) -> tuple[str, str]:
    """The columns of the images and of their maps of classes.

    Raises:
        ValueError: if there are none.
    """
    kinds = {name: isinstance(kind, Image) for name, kind in dataset.features.items()}
    label = args.label_column_name
    if label is None:
        label = next((name for name in ANNOTATIONS if kinds.get(name)), None)
        if label is None:
            raise ValueError(
                "label_column_name: the dataset has no column of maps (images) by a usual name; its columns are "
                f"{', '.join(kinds)}"
            )
    label = find_column(dataset, Image, label, "label_column_name")
    if not kinds[label]:
        raise ValueError(f"label_column_name: column {label!r} holds {dataset.features[label]}, no images")
    image = args.image_column_name
    if image is None:
        others = [name for name, is_image in kinds.items() if is_image and name != label]
        image = choose_images(others) if others else None
        if others and image is None:
            raise ValueError(
                f"image_column_name: the dataset has several columns of images beside {label!r} "
                f"({', '.join(others)}); choose one with --image_column_name"
            )
    if image is None or image == label:
        raise ValueError(f"image_column_name: no column of images beside {label!r}; there are {', '.join(kinds)}")
    return find_column(dataset, Image, image, "image_column_name"), label


def read_maps(
    args: SegmentationArguments,
    train: Dataset | RowSource | None,
    validation: Dataset | RowSource | None,
    column: str,
    split: str | None = None,
    token: str | None = None,
    names: list[str] | None = None,
) -> Labelled:
    """Look through all maps of both splits, as far as they are on this machine: the classes, and the images that
    have labels.

    Args:
        args: how maps are read.
        train, validation: the splits; one of them may be `None`.
        column: of the maps.
        split: the name of the split to evaluate on, for messages.
        token: of the Hub.
        names: the classes of a segmenter that is there already: those of the maps are told apart by names, and
            without a file of names, values are their numbers.

    Raises:
        ValueError: naming the argument or the file, if there are not two classes, values of no class, or no image
            with a label.
    """
    named, colours = None, False
    if (file := find_labels_file(args, token)) is not None:
        named, colours = read_labels(file)
        if len(named) < 2:
            raise ValueError(f"labels_file: fewer than two classes: {', '.join(named.values())}")
        if colours and args.do_reduce_labels:
            raise ValueError("do_reduce_labels: is for maps of numbers, and --labels_file names colours")
    elif names is not None:
        own = [name.removeprefix("class ") for name in names]  # of values, if nobody has named them
        values = list(map(int, own)) if all(map(str.isdecimal, own)) else range(len(names))
        named = dict(zip(values, names, strict=True))
    options: dict[str, Any] = {"reduce_labels": args.do_reduce_labels, "colours": colours}
    taken = LabelValues(list((named or {}).values()), list(named or ()), None, **options)
    ignored = ignored_value(args.ignore_index, taken.stored, colours)
    if ignored in taken.stored:
        raise ValueError(f"ignore_index: {args.ignore_index} is the class {taken.names[taken.stored[ignored]]!r}")
    sources = {TRAINING: train, EVALUATION: validation}
    sources = {what: as_source(args, part) for what, part in sources.items() if part is not None}
    reading: dict[str, Any] = {"max_pixels": args.max_image_pixels, "most_broken": args.max_skipped_ratio}
    sources, labels = label_maps(sources, column, named, **options, ignore_value=ignored, **reading)
    if sources.get(TRAINING) is None and train is not None:
        raise ValueError(f"label_column_name: no training image has a map in {column!r} with a class")
    validation = sources.get(EVALUATION)
    if validation is None and EVALUATION in sources:
        if args.validation_dir is not None or args.validation_split is not None:
            raise ValueError(f"validation_split: no image for evaluation has a map in {column!r} with a class")
        logger.warning("the split %s has no maps with classes: there is no evaluation", split)
    labels = labels if names is None else labels.ordered_as(names)
    return Labelled(sources.get(TRAINING), validation, labels, column, split=split)


def find_labels_file(args: SegmentationArguments, token: str | None = None) -> Path | None:
    """The file of the names of classes: the given one, else the one beside the data, if there is any."""
    if args.labels_file is not None:
        return Path(args.labels_file)
    source = sources_of(args)[0] or args.validation_dir
    if hub_id(source) is not None:
        where = {"repo_type": "dataset", "argument": "labels_file", "revision": args.dataset_revision}
        return find_file(source, LABELS_FILE, token=token, **where)
    folder = Path(source).expanduser()
    places = [folder] if args.dataset_name else [folder, folder.parent]
    return next((place / LABELS_FILE for place in places if (place / LABELS_FILE).is_file()), None)


def transform_options(args: SegmentationArguments) -> dict:
    """Keyword arguments of `SegmentationTransform`."""
    names = ("resize_scale", "horizontal_flip", "photometric_distortion")
    return {name: getattr(args, name) for name in names}


class SegmentationTransform:
    """A stored image and its stored map of classes to a sample, as at the top of this module. What is drawn comes from
    torch's generator.

    Args:
        processor: size and normalisation; what evaluation uses, and users of the model.
        spec: what is taken of the images.
        labels: how to read maps.
        train: whether to augment.
        resize_scale: lowest and highest random factor, 1: the image just covers the crop.
        horizontal_flip, photometric_distortion: whether to draw them.

    Raises:
        ValueError: naming `photometric_distortion`, if the images are not RGB.
    """

    takes_label = True

    def __init__(
        self,
        processor: SegformerImageProcessor,
        spec: PixelSpec,
        labels: LabelValues,
        train: bool = True,
        resize_scale: Sequence[float] = (0.5, 2.0),
        horizontal_flip: bool = True,
        photometric_distortion: bool = False,
    ):
        self.processor, self.spec, self.train = processor, spec, train
        self.labels, self.resize_scale = labels, resize_scale
        self.size = (processor.size["height"], processor.size["width"])
        mean, std = list(processor.image_mean), list(processor.image_std)
        fill = {tv_tensors.Image: mean, tv_tensors.Mask: labels.ignored}  # of values in [0, 1]
        if spec.value_range is None:
            fill[tv_tensors.Image] = [round(255 * value) for value in mean]
        steps = [v2.RandomCrop(self.size, pad_if_needed=True, fill=fill)]
        if horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if photometric_distortion:
            if spec.num_channels != 3:
                raise ValueError(f"photometric_distortion: is for RGB images, not for {spec.num_channels} channel(s)")
            steps.append(v2.RandomPhotometricDistort())
        self.augment = v2.Compose([*steps, v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)])
        self.normalize = v2.Normalize(mean, std)

    def __call__(self, image, label) -> dict[str, torch.Tensor]:
        """
        Returns:
            `pixel_values`, float32 (channels, height, width), normalised; `labels`, int64 (height, width); for
            evaluation also `maps`, int64, the annotation at its own size.

        Raises:
            BrokenImage: if there is no image or map that can be used, the map holds what is no class, or one is larger
                than the other.
            ValueError: if the map is no image of numbers or colours.
        """
        pixels, raw, turn = load_turned(image, self.spec)
        values = self.labels.read(label, self.spec.max_pixels)
        if values.shape == raw != tuple(pixels.shape[1:]):  # annotated as stored, not as shown
            values = turned(values, turn)
        elif values.shape == raw:
            take_as_shown(turn)
        classes = torch.from_numpy(values)
        if classes.shape != pixels.shape[1:]:
            sizes = " x ".join(map(str, classes.shape)), " x ".join(map(str, pixels.shape[1:]))
            raise BrokenImage("its map of classes has {} pixels, the image {}".format(*sizes))
        return self._augmented(pixels, classes) if self.train else self._whole(pixels, classes.long())

    def _augmented(self, pixels: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        low, high = self.resize_scale
        cover = max(wanted / size for wanted, size in zip(self.size, classes.shape, strict=True))
        scale = cover * (low + (high - low) * torch.rand(1).item())
        size = [max(1, round(scale * side)) for side in classes.shape]
        image, mask = v2.functional.resize(tv_tensors.Image(pixels), size), tv_tensors.Mask(classes[None])
        mask = v2.functional.resize(mask, size, v2.InterpolationMode.NEAREST_EXACT)
        image, mask = self.augment(image, mask)
        image = self.normalize(image)
        return {"pixel_values": image.as_subclass(torch.Tensor), "labels": mask.as_subclass(torch.Tensor)[0].long()}

    def _whole(self, pixels: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        made = self.processor(images=pixels, return_tensors="pt", **given_as(pixels))
        nearest = v2.InterpolationMode.NEAREST_EXACT
        labels = v2.functional.resize(tv_tensors.Mask(classes[None]), list(self.size), nearest)
        return {
            "pixel_values": made["pixel_values"][0],
            "labels": labels.as_subclass(torch.Tensor)[0],
            "maps": classes,
        }


def collate_maps(samples: list[dict]) -> dict:
    """A batch; `maps`, which differ in size, stay a list."""
    maps = [sample["maps"] for sample in samples if "maps" in sample]
    batch = default_collate([{k: v for k, v in sample.items() if k != "maps"} for sample in samples])
    return {**batch, "maps": maps} if maps else batch
