"""UperNet of transformers on a pre-trained encoder: built, given an image processor, and exported."""

import copy
import logging
from typing import Any

import torch
from torch import nn
from transformers import SegformerImageProcessor, TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

from ...arguments.segmentation import SegmentationModelArguments
from ...models.heads import kept_as_it_is, load_head, say_start
from ...pretrained import backbone_names
from ...utils.labels import label_fields
from ...utils.value_range import STORED
from ..encoder import build_backbone
from ..start import open_start


logger = logging.getLogger("a2mim")

UPERNET: dict[str, Any] = {"hidden_size": 512, "auxiliary_channels": 256, "auxiliary_loss_weight": 0.4}


def build_segmenter(
    model_args: SegmentationModelArguments, names: list[str], ignore_index: int = 255, token: str | None = None
) -> UperNetForSemanticSegmentation:
    """UperNet for classes of these names, on the encoder of `model_args`, or from the whole segmenter, if that is what
    they name.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    start = open_start(model_args, token)
    whole = start is not None and start.kind == "segmenter"
    known = UPERNET
    if whole:
        known = {name: start.data[name] for name in UPERNET}
        for flag, name in (("head_channels", "hidden_size"), ("auxiliary_channels", "auxiliary_channels")):
            given = getattr(model_args, flag)
            if given not in (None, known[name]):
                raise kept_as_it_is(flag, start, known[name], given)
        if not start.data["use_auxiliary_head"]:
            known = {**known, "auxiliary_loss_weight": 0.0}
    backbone = build_backbone(model_args, start, whole)
    weight = known["auxiliary_loss_weight"] if model_args.auxiliary_weight is None else model_args.auxiliary_weight
    labels: dict[str, Any] = label_fields(names)
    config = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=model_args.head_channels or known["hidden_size"],
        use_auxiliary_head=weight > 0 and len(backbone.channels) > 2,  # it reads the third map
        auxiliary_loss_weight=weight,
        auxiliary_channels=model_args.auxiliary_channels or known["auxiliary_channels"],
        loss_ignore_index=ignore_index,
        **labels,
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone = backbone
    note = ""
    if whole:
        load_head(model.decode_head, start, "decode_head.", ["classifier"], names)
        if model.auxiliary_head is not None and start.data["use_auxiliary_head"]:
            load_head(model.auxiliary_head, start, "auxiliary_head.", ["classifier"], names)
        elif model.auxiliary_head is not None:
            note = "; the auxiliary head is new"
    say_start(start, whole, names, note)
    if model_args.sync_batch_norm and torch.cuda.is_available() and torch.distributed.is_initialized():
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def image_processor(model: UperNetForSemanticSegmentation, reduce_labels: bool = False) -> SegformerImageProcessor:
    """What makes images of any size those that the model was trained on."""
    config = model.backbone.config
    height, width = config.input_size
    return SegformerImageProcessor(
        size={"height": height, "width": width},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
        do_reduce_labels=reduce_labels,
    )


def without_package(model: UperNetForSemanticSegmentation) -> UperNetForSemanticSegmentation | None:
    """The same model on transformers' `TimmBackbone`, which loads without this package; `None`, and the reason in the
    log, where that cannot hold the encoder or does not give the same logits, bit for bit. Stochastic depth is left
    out: the model is for use, or for training with other settings."""
    config = model.backbone.config
    model = copy.deepcopy(model).cpu().eval()
    architecture, channels = config.architecture, config.num_channels
    try:
        if model.backbone.pyramid is not None:
            raise ValueError("it has a feature pyramid")
        plain = copy.deepcopy(model.config)
        indices = list(model.backbone.out_indices)
        plain.backbone_config = TimmBackboneConfig(  # type: ignore[call-arg] # it takes and documents `out_indices`
            backbone=architecture, num_channels=channels, out_indices=indices
        )
        if config.stored_images:
            setattr(plain, STORED, config.stored_images)
        twin = UperNetForSemanticSegmentation(plain).eval()
        twin.backbone.load_state_dict(_renamed(model.backbone.a2mim.encoder, twin.backbone))
        twin.decode_head.load_state_dict(model.decode_head.state_dict())
        if model.auxiliary_head is not None:
            twin.auxiliary_head.load_state_dict(model.auxiliary_head.state_dict())
        images = torch.randn(2, channels, *config.input_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            maps = [features.shape for features in twin.backbone(images).feature_maps]
            if maps != [features.shape for features in model.backbone(images).feature_maps]:
                raise ValueError(f"its first map comes out as {tuple(maps[0])}")
            if not torch.equal(twin(images).logits, model(images).logits):
                raise ValueError("its outputs would differ")
    except (ValueError, RuntimeError, TypeError, AttributeError, AssertionError) as error:  # timm's kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logger.warning(
            "transformers' TimmBackbone cannot hold this %s (%s): loading the segmenter takes `import modeling_a2mim`",
            architecture,
            reason,
        )
        return None
    return twin


def _renamed(encoder: nn.Module, backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a timm encoder by the names that timm's features_only gives them."""
    weights = {other: tensor for name, tensor in encoder.state_dict().items() for other in backbone_names(name)}
    wanted = backbone.state_dict()
    if missing := [name for name in wanted if name not in weights]:
        raise ValueError(f"it has no {missing[0].removeprefix('_backbone.')}")
    return {name: weights[name] for name in wanted}
