"""A detector on a pre-trained encoder."""

from collections.abc import Sequence
from dataclasses import fields

import torch
from timm.layers import convert_sync_batchnorm

from ...arguments.detection import DetectionModelArguments
from ...configuration_a2mim import A2MIMConfig
from ...models.detection import A2MIMDetectorConfig, A2MIMForObjectDetection
from ...models.heads import kept_as_it_is, load_head, say_start
from ...pretrained import DETECTORS, Pretrained
from ...utils.labels import label_fields
from ..encoder import build_backbone
from ..start import open_start


HEAD_FIELDS = [name for name in A2MIMDetectorConfig.__annotations__ if name not in A2MIMConfig.__annotations__]
HEAD_FIELDS.remove("predict_masks")
OF_WEIGHTS = ("fpn_channels", "box_channels", "head_norm", "anchor_scale")  # what weights were trained for


def build_detector(
    args: DetectionModelArguments, names: Sequence[str], masks: bool, token: str | None = None
) -> A2MIMForObjectDetection:
    """A detector with the encoder's pre-trained weights if it has any, or with those of a whole detector, if that is
    what `model_name_or_path` names.

    Args:
        args: of the model.
        names: of the classes.
        masks: whether it predicts them.
        token: of the Hub.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    start = open_start(args, token)
    whole = start is not None and start.kind in DETECTORS
    backbone = build_backbone(args, start, whole)
    shared = {f.name for f in fields(DetectionModelArguments)} & set(A2MIMDetectorConfig.__annotations__)
    own = {name: getattr(args, name) for name in shared if getattr(args, name) is not None}
    if whole:
        known = {name: start.data[name] for name in A2MIMDetectorConfig.__annotations__ if name in start.data}
        for name in (name for name in OF_WEIGHTS if own.get(name, known.get(name)) != known.get(name)):
            raise kept_as_it_is(name, start, known.get(name), own[name])
        own = {**{name: known[name] for name in HEAD_FIELDS if name in known}, **own}
    kept = {name: getattr(backbone.config, name) for name in A2MIMConfig.__annotations__ if name != "model_type"}
    labels = label_fields(names)
    settings = {**kept, **own, **labels, "predict_masks": masks}
    if whole or args.out_indices is not None or backbone.pyramid is not None:
        settings |= {"out_indices": backbone.config.out_indices, "feature_pyramid": backbone.pyramid is not None}
    model = A2MIMForObjectDetection(A2MIMDetectorConfig(**settings))
    model.backbone.load_state_dict(backbone.state_dict())
    model.backbone.a2mim.loaded = backbone.a2mim.loaded
    note = _load_heads(model, start, names) if whole else ""
    say_start(start, whole, names, note)
    if args.freeze_encoder:
        model.backbone.freeze_encoder()
    if args.batch_norm == "frozen":
        model.freeze_batch_norm()
    return convert_sync_batchnorm(model) if args.batch_norm == "sync" else model


def _load_heads(model: A2MIMForObjectDetection, start: Pretrained, names: Sequence[str]) -> str:
    """Give a detector the heads of another one; returns what becomes of masks, where only one of the two has them."""
    by_class = [f"box_predictor.{layer}" for layer in ("cls_score", "bbox_pred")]
    by_class.append("mask_predictor.mask_fcn_logits")
    masks, with_masks = model.config.predict_masks, start.kind == "instance segmenter"
    load_head(model.heads.rpn, start, "heads.rpn.")
    load_head(model.heads.pyramid, start, "heads.pyramid.")
    for name, part in model.heads.roi_heads.named_children():
        if with_masks or not name.startswith("mask_"):
            inside = [layer.removeprefix(f"{name}.") for layer in by_class if layer.startswith(f"{name}.")]
            load_head(part, start, f"heads.roi_heads.{name}.", inside, names, first=1)
    if masks == with_masks:
        return ""
    return "; the head that predicts masks is new" if masks else "; it predicts masks, which are left out"


def check_other_sizes(model: A2MIMForObjectDetection):
    """Raises ValueError, naming `shortest_edge`, if the encoder takes images of no other size than its own."""
    config, divisor = model.config, int(max(model.strides))
    size = [side + (-side % divisor) + divisor * step for step, side in enumerate(config.input_size, 1)]
    training = model.training
    try:
        with torch.no_grad():
            model.eval().backbone(torch.zeros(1, config.num_channels, *size, device=model.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"shortest_edge: {config.architecture} takes only images of {config.input_size} px, which --image_size "
            f"changes ({error}); timm has options for some: --model_args '{{\"dynamic_img_size\": true}}' (ViT), "
            "'{\"strict_img_size\": false}' (Swin)"
        ) from error
    finally:
        model.train(training)
