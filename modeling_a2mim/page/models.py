"""What the models of a page can do: reconstruct, classify, or find neighbors among images that were embedded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..analysis.comparison import NamedModel, check_device, holds_classifier, load_model, read_config
from ..pretrained import PRETRAINING_CONFIG, find_file, folder_or_id
from .uploads import as_seen


PRETRAINING_MODEL = "A2MIMForPreTraining"
CHANNELS = (1, 3, 4)  # of images that are uploaded: grey, RGB, RGBA


@dataclass
class PageModel:
    """A model that is named on the command line.

    Attributes:
        source: its folder, or its id on the Hub.
        name: what the page calls it.
        pretraining: to reconstruct images; `None` if it cannot.
        classifier: to classify them; `None` if it cannot. A classifier with `pretraining/` beside it does both.
    """

    source: str
    name: str
    pretraining: NamedModel | None = None
    classifier: NamedModel | None = None


def open_models(sources: Sequence[str], names: Sequence[str] | None = None, device: str = "cpu") -> list[PageModel]:
    """The models of a page, run once on a blank image, so that the first visitor need not wait for what is prepared
    then.

    Args:
        sources: folders, or ids on the Hub.
        names: what to call them; the last part of each, if not given.
        device: where they are to run.

    Raises:
        ValueError: naming the source that is no model or takes images that nobody can upload; naming `names`, if
            there are more or fewer than models, or two are the same; naming `device`, if it cannot be used.
    """
    check_device(device)
    if names is not None and len(names) != len(sources):
        raise ValueError(f"names: expected one for each of {len(sources)} models, got {len(names)}")
    names = [Path(source).resolve().name for source in sources] if names is None else names
    if alike := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"names: there are several models called {alike[0]}; give each one a name with --names")
    models = []
    for source, name in zip(sources, names, strict=True):
        reconstructs, classifies = abilities(source)
        model = PageModel(source, name)
        if reconstructs:
            model.pretraining = load_model(source, name, kind="pretraining")
        if classifies:
            model.classifier = load_model(source, name, kind="classifier")
        for named in filter(None, (model.pretraining, model.classifier)):
            channels = getattr(named.model.config, "num_channels", 3)
            if channels not in CHANNELS:
                raise ValueError(
                    f"{source}: takes images of {channels} channels; those that are uploaded have 1, 3 or 4"
                )
            named.model.to(device)
            warm_up(named)
        models.append(model)
    return models


def abilities(source: str) -> tuple[bool, bool]:
    """Whether there is a pre-training model at a source, and whether there is a classifier.

    Raises:
        ValueError: naming the source, if there is no model.
    """
    source = folder_or_id(source)
    beside = find_file(source, PRETRAINING_CONFIG) is not None
    data = read_config(source)
    reconstructs = beside or (data.get("architectures") or [""])[0] == PRETRAINING_MODEL
    return reconstructs, holds_classifier(source, data)


@torch.inference_mode()
def warm_up(named: NamedModel):
    """Run a model on a blank image."""
    named.model(as_seen(named.model, named.transform, Image.new("RGB", (64, 64)))[0])


def check_used(models: Sequence[PageModel], embedded: str | None, embeddings: str | os.PathLike | None):
    """Refuse models that no tab would show.

    Args:
        models: all of them.
        embedded: name of the model that wrote the embeddings.
        embeddings: their file, if there is one.

    Raises:
        ValueError: naming the model.
    """
    for model in models:
        if model.pretraining is None and model.classifier is None and model.name != embedded:
            if embeddings is None:
                raise ValueError(
                    f"{model.source}: is an encoder alone, which neither reconstructs nor classifies; with "
                    "--embeddings, written by a2mim embed, the page shows neighbors by it"
                )
            raise ValueError(
                f"{model.source}: neither reconstructs nor classifies, and {embeddings} was written by another model; "
                "leave it out"
            )
