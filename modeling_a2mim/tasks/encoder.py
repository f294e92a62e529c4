"""What the arguments say of the encoder: where it comes from, and models on it, a classifier or a backbone."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from ..arguments.data import SINGLE
from ..arguments.dense import DenseModelArguments
from ..arguments.model import ClassifierArguments, EncoderArguments
from ..arguments.settings import ENCODER_FIELDS, given_settings
from ..configuration_a2mim import A2MIMConfig, is_timm
from ..encoders.meta import NoValues
from ..export.loading import earlier_of, folder_or_id, load_into_encoder, origin_of
from ..export.record import read_record
from ..modeling_a2mim import A2MIMModel
from ..models.backbone import A2MIMBackbone, four_stages
from ..models.classifier import A2MIMForImageClassification
from ..models.heads import kept_as_it_is, load_head
from ..models.resizing import resized_weights
from ..pretrained import Pretrained, open_pretrained
from ..utils.labels import label_fields


logger = logging.getLogger("a2mim")


# Where an encoder comes from


def task_of(args: EncoderArguments) -> str:
    """What is done with the encoder, as the training record has it."""
    if getattr(args, "linear_probe", False):
        return "linear probing"
    if getattr(args, "knn", False):
        return "k-NN and logistic regression on frozen features"
    return "fine-tuning" if args.architecture is None else "training from scratch"


def base_model_of(model_name_or_path: str | None) -> str | None:
    """The encoder's id on the Hub, or the one that its folder says it was pushed to; `None` if there is none."""
    if model_name_or_path is None or not Path(model_name_or_path).is_dir():
        return model_name_or_path
    return read_record(model_name_or_path).get("repo_id")


def encoder_provenance(args: ClassifierArguments | DenseModelArguments, token: str | None = None) -> dict:
    """Where the encoder comes from, as the training record has it: `base_model`, `start` (the kind of model, in
    words), and `earlier` if its runs are known."""
    source = args.model_name_or_path
    if source is None:
        return {"base_model": None}
    where = {"revision": args.model_revision, "token": token}
    start, earlier = open_pretrained(source, **where), earlier_of(source, **where)
    if not earlier and not is_timm(start.data):
        earlier = [{}]  # it has a run behind it, which is not known
    return {
        "base_model": base_model_of(source),
        "start": origin_of(start),
        **({"earlier": earlier} if earlier else {}),
    }


def open_start(args: ClassifierArguments | DenseModelArguments, token: str | None = None) -> Pretrained | None:
    """The model in the root of `model_name_or_path`; `None` to train from scratch.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    if (args.architecture is None) == (args.model_name_or_path is None):
        raise ValueError("model_name_or_path: give either it or, to train from scratch, --architecture")
    if args.model_name_or_path is None:
        return None
    return open_pretrained(folder_or_id(args.model_name_or_path), revision=args.model_revision, token=token)


def open_model_of_task(args: DenseModelArguments, kinds: Collection[str], token: str | None = None) -> Pretrained:
    """The model in `model_name_or_path`, for `--eval_only`.

    Raises:
        ValueError: naming the argument, if that is no model of one of these kinds.
    """
    start = open_start(args, token)
    if start is None or start.kind not in kinds:
        found = "" if start is None else f"; {start.place} holds {start.what}"
        raise ValueError(f"model_name_or_path: --eval_only needs a model of this task ({' or '.join(kinds)}){found}")
    return start


# Models


def build_classifier(
    args: ClassifierArguments, names: Sequence[str], problem_type: str = SINGLE, token: str | None = None
) -> tuple[A2MIMForImageClassification, Pretrained | None]:
    """A classifier on the encoder in `model_name_or_path`, and what that holds; `None` if it is trained from scratch.

    Args:
        args: of the model.
        names: of the classes.
        problem_type: what the classifier learns.
        token: of the Hub.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    values = given_settings(args)
    timm_args = {"drop_path_rate": args.drop_path, "global_pool": args.global_pool}
    timm_args = {name: value for name, value in timm_args.items() if value is not None}
    if timm_args:
        values["model_args"] = {**values.get("model_args", {}), **timm_args}
    labels: dict[str, Any] = label_fields(names)
    if problem_type != SINGLE:
        labels["problem_type"] = problem_type
    start = open_start(args, token)
    if start is None:
        return A2MIMForImageClassification(A2MIMConfig.for_encoder(**values, **labels)), None
    config, weights = start.config, start.encoder_weights()
    kept = {name: getattr(config, name) for name in ENCODER_FIELDS}
    kept["model_args"] = {**config.model_args, **values.pop("model_args", {})}
    model = A2MIMForImageClassification(A2MIMConfig.for_encoder(**{**kept, **values}, **labels))
    load_into_encoder(model, resized_weights(weights, config, model.a2mim))
    logger.info("weights: %s", start.describe())
    return model, start


def build_backbone(args: DenseModelArguments, start: Pretrained | None = None, whole: bool = False) -> A2MIMBackbone:
    """The encoder with its pre-trained weights, if it has any, at the size that is asked for. An isotropic one gets a
    `FeaturePyramid`.

    Args:
        args: of the model.
        start: where the weights come from, as `open_start` gives it.
        whole: whether that is a model of this task, whose feature maps and pyramid are kept.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    known = {}
    if start is not None:
        known = {name: getattr(start.config, name) for name in ENCODER_FIELDS}
        if whole and args.out_indices not in (None, start.config.out_indices):
            raise kept_as_it_is("out_indices", start, start.config.out_indices, args.out_indices)
    given = {name: value for name, value in given_settings(args).items() if name in ENCODER_FIELDS}
    model_args = {**(known.get("model_args") or {}), **given.pop("model_args", {})}
    if args.drop_path is not None:
        model_args["drop_path_rate"] = args.drop_path
    settings = {**known, **given, "model_args": model_args}
    with torch.device("meta"), NoValues():
        probe = A2MIMModel(A2MIMConfig.for_encoder(**settings))
    settings["feature_pyramid"] = probe.plan.isotropic
    settings["out_indices"] = start.config.out_indices if whole else args.out_indices or four_stages(probe)
    backbone = A2MIMBackbone(A2MIMConfig.for_encoder(**settings))
    if start is not None:
        weights = resized_weights(start.encoder_weights(), start.config, backbone.a2mim)
        load_into_encoder(backbone, weights, partly=whole and start.is_plain_backbone)
    if whole and backbone.pyramid is not None:
        load_head(backbone.pyramid, start, "backbone.pyramid.")
    return backbone.freeze_encoder() if args.freeze_encoder else backbone
