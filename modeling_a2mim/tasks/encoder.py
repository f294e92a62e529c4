"""Models on the encoder that the arguments name: a classifier, or a backbone."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..arguments.data import SINGLE
from ..arguments.dense import DenseModelArguments
from ..arguments.model import ClassifierArguments
from ..arguments.settings import ENCODER_FIELDS, given_settings
from ..configuration_a2mim import A2MIMConfig
from ..encoders.meta import NoValues
from ..modeling_a2mim import A2MIMModel
from ..models.backbone import A2MIMBackbone, four_stages
from ..models.classifier import A2MIMForImageClassification
from ..models.heads import kept_as_it_is, load_head
from ..models.start import encoder_settings, load_start
from ..pretrained import Pretrained
from ..utils.labels import label_fields
from ..utils.value_range import SAMPLES
from .start import open_start


logger = logging.getLogger("a2mim")


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
    model = A2MIMForImageClassification(A2MIMConfig.for_encoder(**encoder_settings(start, values), **labels))
    logger.info("weights: %s: %s", start.describe(), load_start(model, start).describe())
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
    if whole and args.out_indices not in (None, start.config.out_indices):
        raise kept_as_it_is("out_indices", start, start.config.out_indices, args.out_indices)
    given = {name: value for name, value in given_settings(args).items() if name in ENCODER_FIELDS}
    if args.drop_path is not None:
        given["model_args"] = {**given.get("model_args", {}), "drop_path_rate": args.drop_path}
    settings = given if start is None else encoder_settings(start, given)
    if settings.get("pages") == SAMPLES:
        raise ValueError("pages: the annotations are of files, not of each page; give --pages first, or channels")
    with torch.device("meta"), NoValues():
        probe = A2MIMModel(A2MIMConfig.for_encoder(**settings))
    settings["feature_pyramid"] = probe.plan.isotropic
    settings["out_indices"] = start.config.out_indices if whole else args.out_indices or four_stages(probe)
    backbone = A2MIMBackbone(A2MIMConfig.for_encoder(**settings))
    if start is not None:
        loaded = load_start(backbone, start, partly=whole and start.is_plain_backbone)
        logger.info("encoder: %s", loaded.describe())
    if whole and backbone.pyramid is not None:
        load_head(backbone.pyramid, start, "backbone.pyramid.")
    return backbone.freeze_encoder() if args.freeze_encoder else backbone
