"""What the commands of this folder look at: models of any kind by name, and images that go to all of them alike."""

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Image
from PIL import Image as ImageFile
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
)

from ..configuration_a2mim import A2MIMConfig
from ..data.columns import find_column
from ..data.dataset import ImageSamples
from ..data.decoding import BrokenImage, load_pixels
from ..data.formats.listing import list_images
from ..data.image_statistics import kinds_of_first, refuse_bytes
from ..data.loading import find_validation_split, has_card, load_images, local_path
from ..data.pages import PagesSource, with_pages
from ..data.pixel_spec import PixelSpec, given_as
from ..data.sources import DatasetSource, RowsOf, RowSource
from ..data.transforms import FineTuneTransform, PreTrainTransform
from ..encoders.timm_config import is_timm
from ..export.folder import timm_pretrained_cfg
from ..export.loading import load_classifier, load_encoder, load_pretraining_model
from ..modeling_a2mim import A2MIMModel, A2MIMPreTrainedModel, find_core
from ..pretrained import CLASSIFIERS, find_file, folder_or_id, open_pretrained
from ..utils.labels import label_names
from ..utils.value_range import SAMPLES, ValueRange


logger = logging.getLogger("a2mim")

ENCODERS = (A2MIMConfig.model_type, "timm_backbone")  # types of backbones that hold an encoder of timm
DTYPES: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAFE = {"trust_remote_code": False, "use_safetensors": True}


@dataclass
class NamedModel:
    """A model, what it is called in figures, and a stored image to its `pixel_values` (a dict); of a classifier the
    names of its classes as well, and of an encoder the parameters that its weights lack: of transformers a pooler that
    it was trained without, which has new values; of timm, if `partial` allows that, the end of an encoder."""

    name: str
    model: nn.Module
    transform: Callable
    classes: list[str] | None = None
    missing: list[str] = field(default_factory=list)


class ProcessorTransform:
    """A stored image to `pixel_values` (channels, height, width) by a processor of transformers.

    Args:
        processor: of transformers.
        spec: what the model takes of an image.

    Raises:
        ValueError: naming `num_channels`, if the processor, as it is set, does not give so many.
    """

    def __init__(self, processor: Any, spec: PixelSpec = PixelSpec()):  # noqa: B008 - cannot change
        self.processor, self.spec = processor, spec
        num_channels = spec.num_channels
        if num_channels == 3:  # which every processor gives
            return
        try:
            found = self(ImageFile.new("RGB", (64, 64)))["pixel_values"].shape[0]
            why = f"it gives {found}"
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            found, why = None, str(error)
        if found != num_channels:
            raise ValueError(
                f"num_channels: the model takes {num_channels} channel(s), and its image processor "
                f"({type(processor).__name__}) does not give so many: {why}; image_mean and image_std in its "
                f"preprocessor_config.json must have {num_channels} value(s), and do_convert_rgb must be off"
            )

    def __call__(self, image) -> dict[str, torch.Tensor]:
        image = load_pixels(image, self.spec)
        told = given_as(image) if isinstance(image, torch.Tensor) else {}
        return {"pixel_values": self.processor(images=image, return_tensors="pt", **told)["pixel_values"][0]}


def load_model(
    source: str,
    name: str | None = None,
    kind: str = "encoder",
    partial: bool = False,
    value_range: ValueRange | None = None,
    pages: str | None = None,
    **hub_kwargs: Any,
) -> NamedModel:
    """A model by its folder or its id on the Hub: exports and checkpoints of this package, models of timm, models of
    transformers. No code of a repository is run, no pickle is read.

    Args:
        source: the folder or id.
        name: what to call it; the last part of `source`, if not given.
        kind: what of it is needed: "encoder", "classifier" or "pretraining" (A2MIMForPreTraining).
        partial: take a timm encoder without the weights at its end as well, as exported segmenters have them. They are
            named in `NamedModel.missing` and are NaN, so that nothing that depends on them looks like a feature.
        value_range, pages: of stored images (`PixelSpec`), in place of what the model keeps; which is logged.
        hub_kwargs: `revision`, `token`.

    Raises:
        ValueError: naming the source, if there is no such model.
    """
    source = folder_or_id(source)
    name, classifier = name or name_of(source), kind == "classifier"
    if kind == "pretraining":
        pretrained = load_pretraining_model(source, **hub_kwargs)
        return NamedModel(name, pretrained.eval(), PreTrainTransform(pretrained.config, train=False))
    model: PreTrainedModel
    transform: FineTuneTransform | ProcessorTransform
    missing_weights: list[str] = []
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **hub_kwargs)
        # Of timm or this package, segmenters among them
        backbone = getattr(getattr(config, "backbone_config", None), "model_type", None)
        ours = isinstance(config, TimmWrapperConfig | A2MIMConfig) or backbone in ENCODERS
        if classifier and not ours:
            model = AutoModelForImageClassification.from_pretrained(source, config=config, **SAFE, **hub_kwargs)
        elif classifier:
            model = load_classifier(source, **hub_kwargs)
        elif ours:
            config, weights = load_encoder(source, **hub_kwargs)
            model = encoder = A2MIMModel(config)
            own = encoder.encoder.state_dict()
            missing_weights = [name for name in own if name not in weights]
            if missing_weights and not partial:
                raise ValueError(f"its encoder lacks weights: {', '.join(missing_weights[:5])}")
            unknown = {n: torch.full_like(own[n], torch.nan) for n in missing_weights if own[n].is_floating_point()}
            kept = {name: weights[name] for name in own if name in weights}
            encoder.encoder.load_state_dict({**own, **unknown, **kept})
        else:
            found = AutoModel.from_pretrained(source, config=config, output_loading_info=True, **SAFE, **hub_kwargs)
            model, missing_weights = found[0], sorted(found[1]["missing_keys"])
        ours_too = isinstance(model, A2MIMPreTrainedModel)
        spec = PixelSpec.from_config(find_core(model).config if ours_too else model.config)
        spec = spec.with_given(value_range, pages, say=True)
        if ours_too:
            transform = FineTuneTransform(timm_pretrained_cfg(find_core(model)), False, spec)
        else:
            processor = AutoImageProcessor.from_pretrained(source, **hub_kwargs)
            transform = ProcessorTransform(processor, spec)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: cannot be loaded: {error}") from error
    classes = label_names(model.config) if classifier else None
    return NamedModel(name, model.eval(), transform, classes, missing_weights)


def read_config(source: str, **hub_kwargs: Any) -> dict[str, Any]:
    """The configuration in a folder or repository of the Hub; an empty one, if there is no config.json.
    `hub_kwargs`: `revision`, `token`.

    Raises:
        ValueError: naming the source, if the file holds something else.
    """
    path = find_file(source, "config.json", **hub_kwargs)
    if path is None:
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: its config.json cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{source}: its config.json is no JSON object")
    return data


def holds_classifier(source: str, data: dict[str, Any], **hub_kwargs: Any) -> bool:
    """Whether there is a classifier (else an encoder) in a folder or repository with this configuration.

    Raises:
        ValueError: if it holds no model.
    """
    if not data or is_timm(data) or data.get("model_type") == A2MIMConfig.model_type:
        return open_pretrained(source, **hub_kwargs).kind in CLASSIFIERS
    return "ForImageClassification" in (data.get("architectures") or [""])[0]


def name_of(source: str) -> str:
    """What a model is called if nothing else is said: the last part of its folder or id."""
    return Path(folder_or_id(source)).resolve().name


def model_names(args: argparse.Namespace) -> list[str]:
    """What the models of a command are called.

    Raises:
        ValueError: if two have the same name, or there are more names than models.
    """
    if args.names is not None and len(args.names) != len(args.models):
        raise ValueError(f"names: expected one for each of {len(args.models)} models, got {len(args.names)}")
    names = args.names or [name_of(source) for source in args.models]
    if alike := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"names: there are several models called {alike[0]}; give each one a name with --names")
    return names


def load_models(args: argparse.Namespace, kind: str = "encoder") -> list[NamedModel]:
    """The models that a command names, on its device.

    Raises:
        ValueError: if nothing can be computed on the device, two models have the same name, there are more names than
            models, or a revision is given of models that are all on this machine.
    """
    check_device(args.device)
    names = model_names(args)
    for source in args.models[1:]:
        if Path(source).is_file() or (Path(source).is_dir() and not any(Path(source).rglob("config.json"))):
            raise ValueError(f"models: {source} is here, but is no model; images are given with --dataset")
    if args.revision is not None and all(os.path.exists(os.path.expanduser(source)) for source in args.models):
        raise ValueError("revision: is of models on the Hub, and all of these are on this machine; leave it out")
    models = [
        load_model(source, name, kind, revision=args.revision) for source, name in zip(args.models, names, strict=True)
    ]
    for named in models:
        named.model.to(args.device or best_device())
    return models


def best_device() -> str:
    """Where models run if nothing else is said."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str | torch.device | None):
    """Refuse a device on which nothing can be computed here.

    Raises:
        ValueError: naming `device`.
    """
    if device is None:
        return
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # its type depends on the kind of device
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"device: {device} cannot be used here; leave it out, or give cpu ({first})") from error


@dataclass
class Images:
    """Rows of a dataset, drawn by a seed, the same for all models; `names` of the classes, if they are labelled. What
    is random in a transform (masks) follows from `seed` and the row."""

    dataset: datasets.Dataset | RowSource
    rows: list[int]
    image_column: str
    label_column: str | None = None
    names: list[str] | None = None
    seed: int = 0

    @classmethod
    def open(cls, args: argparse.Namespace, labelled: bool = False, models: Sequence[NamedModel] = ()) -> "Images":
        """The images that a command names, as these models take them: for those of which each page is an image, pages.

        Raises:
            ValueError: naming what is missing or has no effect; `value_range`, if the images are of 8 bits and a model
                keeps a range that they do not fill.
        """
        if args.images is not None and args.images < 1:
            raise ValueError(f"images: must be at least 1, got {args.images}")
        files = getattr(args, "files", None)
        label_column = names = None
        dataset: datasets.Dataset | RowSource
        if files:
            dataset, image_column = _listed(args, files), "image"
        else:
            check_config_name(args)
            split = args.split or find_validation_split(args.dataset, args.dataset_config_name) or "train"
            dataset = load_images(args.dataset, split, config_name=args.dataset_config_name, streaming=args.streaming)
            image_column = find_column(dataset, Image, args.image_column_name, "image_column_name")
        if labelled:
            label_column = find_column(dataset, ClassLabel, args.label_column_name, "label_column_name")
            names = getattr(dataset.features[label_column], "names", None)
        dataset = _with_pages(dataset, models, image_column, label_column)
        count = args.images or (len(dataset) if files else args.default_images)
        if count > len(dataset):
            logger.warning("images: %d, as there are no more", len(dataset))
        drawn = np.random.default_rng(args.seed).choice(len(dataset), min(count, len(dataset)), replace=False)
        images = cls(dataset, np.sort(drawn).tolist(), image_column, label_column, names, args.seed)
        for named in models:
            images.check_bytes(named)
        images.leave_out_broken(models, "files" if files else "dataset")
        return images

    def __len__(self) -> int:
        return len(self.rows)

    def samples(self, named: NamedModel) -> Iterator[dict[str, torch.Tensor]]:
        """`pixel_values` of each image for a model, and `labels` as stored; read as they are asked for."""
        samples = self._samples(named)
        return (sample for row in self.rows for sample in samples.__getitems__([row]))

    def _samples(self, named: NamedModel) -> ImageSamples:
        columns = (None, None) if isinstance(self.dataset, PagesSource) else (self.image_column, self.label_column)
        return ImageSamples(self.dataset, named.transform, *columns, self.seed)

    def leave_out_broken(self, models: Sequence[NamedModel], argument: str):
        """Leave out what one of the models cannot take, with a warning.

        Raises:
            ValueError: naming `argument`, if that is a file that was named, or all.
        """
        broken: dict[int, BrokenImage] = {}
        for named in models:
            samples = self._samples(named)
            for row in tqdm(self.rows, desc="looking at the images", unit=" images", delay=1, leave=False):
                try:
                    samples[row]  # raises where `__getitems__` takes another image
                except BrokenImage as error:
                    broken[row] = error
        if not broken:
            return
        first, total = next(iter(broken.values())), len(self.rows)
        if argument == "files" or len(broken) == total:
            raise ValueError(
                f"{argument}: {len(broken)} of {total} images cannot be used, the first: {first}"
            ) from first
        logger.warning("%d of %d images cannot be used and are left out, the first: %s", len(broken), total, first)
        self.rows = [row for row in self.rows if row not in broken]

    def check_bytes(self, named: NamedModel):
        """Refuse images of 8 bits for a model that keeps a range that they do not fill.

        Raises:
            ValueError: naming `value_range`.
        """
        spec = getattr(named.transform, "spec", None)
        if spec is None or spec.value_range is None:
            return
        source = self.dataset if isinstance(self.dataset, RowSource) else DatasetSource(self.dataset)
        source = source if isinstance(source, PagesSource) else source.select(self.image_column)
        kinds = kinds_of_first(RowsOf(source, self.rows), spec)
        refuse_bytes(kinds, spec.value_range, f"give {named.name} images like those that it was trained on")

    def classes(self, named: NamedModel, labels: str) -> list[int] | None:
        """For each label of the dataset the class of a model.

        Raises:
            ValueError: if the model knows no class of that name.
        """
        if labels == "predicted":
            return None
        if labels == "index":
            return list(range(len(named.classes)))
        place = {name: index for index, name in enumerate(named.classes)}
        missing = [name for name in self.names or [] if name not in place]
        if self.names is None or missing:
            what = f"no class {missing[0]!r}" if missing else "classes, but the labels have no names"
            raise ValueError(
                f"labels: {named.name} has {what} (its classes are {', '.join(named.classes[:5])}, ...); with "
                "--labels index the numbers are taken, with --labels predicted what each model says of the whole image"
            )
        return [place[name] for name in self.names]


def _listed(args: argparse.Namespace, files: Sequence[str]) -> datasets.Dataset:
    """Image files as a dataset. Raises ValueError naming one that is not there, or what has no effect on them."""
    for name in ("dataset", "dataset_config_name", "split", "streaming", "image_column_name"):
        if getattr(args, name):
            raise ValueError(f"{name}: has no effect beside --files, which are the images; leave one of them out")
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"files: there is no file {file}")
    return list_images(files, "files")


def check_config_name(args: argparse.Namespace):
    """Refuse a configuration of images that have none. Raises ValueError naming `dataset_config_name`."""
    if args.dataset is None or args.dataset_config_name is None:
        return
    path = local_path(args.dataset)
    if path.exists() and not (path.is_dir() and has_card(path)):
        raise ValueError(
            f"dataset_config_name: is of a dataset on the Hub, and {args.dataset} is on this machine; leave it out"
        )


def _with_pages(
    dataset: datasets.Dataset | RowSource, models: Sequence[NamedModel], image_column: str, label_column: str | None
) -> datasets.Dataset | RowSource:
    """Each page of each image as a row, if one of the models takes them so and there are files with several; else the
    images as they are."""
    specs = [spec for named in models if (spec := getattr(named.transform, "spec", None)) and spec.pages == SAMPLES]
    if not specs:
        return dataset
    source = DatasetSource(dataset) if isinstance(dataset, datasets.Dataset) else dataset
    found = with_pages(source.select(image_column, label_column), specs[0].stored_channels)
    return found if isinstance(found, PagesSource) else dataset
