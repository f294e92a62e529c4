"""Models from a folder or the Hub, as this package exports them."""

import json
import logging

import torch

from ..configuration_a2mim import A2MIMConfig, is_timm
from ..evaluation.decisions import FIELD
from ..modeling_a2mim import A2MIMForPreTraining
from ..models.classifier import A2MIMForImageClassification
from ..models.linear_probe import LinearProbe
from ..pretrained import (
    CLASSIFIERS,
    MASKED,
    PRETRAINED,
    PRETRAINING_CONFIG,
    PRETRAINING_FOLDER,
    SAFE_FILES,
    Pretrained,
    find_file,
    open_pretrained,
)
from ..utils.labels import label_fields
from .filenames import RECORD_FILE
from .methods import method_of
from .record import earlier_runs


logger = logging.getLogger("a2mim")


def load_pretraining_model(folder_or_repo: str, **hub_kwargs) -> A2MIMForPreTraining:
    """The full pre-training model of an exported folder or Hub repository (its `pretraining/`), or of a folder or
    repository that `save_pretrained` or a checkpoint wrote. `hub_kwargs`: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: if there is none, or the repository could not be asked.
    """
    model, place = _read_pretraining_model(folder_or_repo, **hub_kwargs)
    logger.info("weights: the pre-training model in %s", place)
    return model


def pretraining_config(folder_or_repo: str, **hub_kwargs) -> A2MIMConfig:
    """The configuration of what `load_pretraining_model` gives; arguments and errors as there."""
    nested = find_file(folder_or_repo, PRETRAINING_CONFIG, **hub_kwargs) is not None
    return open_pretrained(folder_or_repo, PRETRAINING_FOLDER if nested else "", **hub_kwargs).config


def _read_pretraining_model(folder_or_repo: str, **hub_kwargs) -> tuple[A2MIMForPreTraining, str]:
    """The model, and where it is."""
    nested = find_file(folder_or_repo, PRETRAINING_CONFIG, **hub_kwargs) is not None
    where = {"subfolder": PRETRAINING_FOLDER if nested else "", **hub_kwargs}
    try:
        found = open_pretrained(folder_or_repo, **where)
        if found.data.get("model_type") != A2MIMConfig.model_type or found.kind != "pre-training model":
            raise OSError(
                f"it holds {found.what}, not an A2MIMForPreTraining, which run_pretraining.py leaves in pretraining/"
            )
        prefix = f"{where['subfolder']}/" if nested else ""
        if not any(find_file(folder_or_repo, prefix + name, **hub_kwargs) for name in SAFE_FILES):
            raise OSError(f"it has no {prefix}{SAFE_FILES[0]}")
        return A2MIMForPreTraining.from_pretrained(folder_or_repo, config=found.config, **where), found.place
    except OSError as error:
        raise ValueError(f"{folder_or_repo}: no pre-training model there: {error}") from error


def origin_of(start: Pretrained) -> str:
    """What a run starts from, in words, for its record: "an encoder pre-trained by masked image modelling"."""
    try:
        beside = find_file(start.source, PRETRAINING_CONFIG, **start.hub_kwargs) is not None
    except ValueError:  # not to be asked now: nothing is claimed
        beside = False
    return f"{start.what} {PRETRAINED}" if beside and start.kind == "encoder" else start.what


def pretraining_beside(start: Pretrained) -> A2MIMForPreTraining | None:
    """The pre-training model that an encoder was, to be kept beside what it becomes; `None`, and the reason in the
    log, if it has one that cannot be had."""
    try:
        if start.kind != "pre-training model" and not find_file(start.source, PRETRAINING_CONFIG, **start.hub_kwargs):
            return None
        return _read_pretraining_model(start.source, **start.hub_kwargs)[0]
    except ValueError as error:
        logger.warning("the result will hold no %s/, as that of %s: %s", PRETRAINING_FOLDER, start.source, error)
        return None


def load_encoder(folder_or_repo: str, **hub_kwargs) -> tuple[A2MIMConfig, dict[str, torch.Tensor]]:
    """The encoder in the root of a folder or repository, whatever model it is part of (`pretrained`): its
    configuration and its weights. `hub_kwargs`: `revision`, `token`.

    Raises:
        ValueError: naming `model_name_or_path`, if there is no model of this package or of timm, or it could not be
            asked for.
    """
    found = open_pretrained(folder_or_repo, **hub_kwargs)
    return found.config, found.encoder_weights()


def load_classifier(folder_or_repo: str, **hub_kwargs) -> A2MIMForImageClassification | LinearProbe:
    """A classifier with its label names, such as `run_finetune.py` exports or leaves in a checkpoint, or any of
    timm's; transformers knows the names of those that were trained on ImageNet. `hub_kwargs`: `revision`, `token`.

    Raises:
        ValueError: naming `model_name_or_path`, if there is none.
    """
    found = open_pretrained(folder_or_repo, **hub_kwargs)
    if found.kind not in CLASSIFIERS:
        raise ValueError(
            f"model_name_or_path: {folder_or_repo} holds {found.what}, and is no timm classifier with label_names"
        )
    logger.info("weights: %s", found.describe("with its head"))
    if not is_timm(found.data):
        kind = LinearProbe if found.kind == "linear probe" else A2MIMForImageClassification
        return kind.from_pretrained(folder_or_repo, subfolder=found.subfolder, **hub_kwargs).eval()
    config = A2MIMConfig.from_dict(found.data)
    config.update(label_fields(found.names))
    config.problem_type = found.data.get("problem_type")
    if FIELD in found.data:
        setattr(config, FIELD, found.data[FIELD])
    model = A2MIMForImageClassification(config)
    try:
        model.a2mim.encoder.load_state_dict(found.weights)
    except RuntimeError as error:
        raise ValueError(f"model_name_or_path: its weights do not fit {config.architecture}: {error}") from error
    return model.eval()


def earlier_of(folder_or_repo: str | None, **hub_kwargs) -> list[dict]:
    """The runs (`records.earlier_runs`) behind the model in the root of a folder or Hub repository; without a
    `training.json`, of a pre-training model its method alone, and one that is not known where that cannot be had.
    `hub_kwargs`: `revision`, `token`."""
    try:
        path = None if folder_or_repo is None else find_file(folder_or_repo, RECORD_FILE, **hub_kwargs)
        record = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        if folder_or_repo is not None and path is None:
            return _method_of_weights(folder_or_repo, **hub_kwargs)
    except ValueError as error:  # of the network, or of JSON
        logger.warning("the runs behind %s are not known: %s", folder_or_repo, error)
        return [{}]
    return earlier_runs(record) if isinstance(record, dict) and record else []


def _method_of_weights(folder_or_repo: str, **hub_kwargs) -> list[dict]:
    for name in (PRETRAINING_CONFIG, "config.json"):
        path = find_file(folder_or_repo, name, **hub_kwargs)
        data = {} if path is None else json.loads(path.read_text())
        if A2MIMForPreTraining.__name__ in (data.get("architectures") or ()):
            return [{"task": MASKED, "method": method_of(A2MIMConfig.from_dict(data))}]
    return []
