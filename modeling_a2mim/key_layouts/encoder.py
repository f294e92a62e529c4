"""Which of timm's encoders a model of transformers has, and its weights under timm's names."""

import logging
import re
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..encoders.tracing import EncoderSpec, trace_encoder
from . import beit, convnext, dinov2, dinov3, resnet, swin, vit
from .config import other_eps, read_config
from .images import image_fields
from .layout import KeyLayout
from .names import Weights, fit, fuse_qkv, rename_all


LAYOUTS: dict[str, KeyLayout] = {
    **vit.LAYOUTS,
    **dinov2.LAYOUTS,
    **dinov3.LAYOUTS,
    **beit.LAYOUTS,
    **convnext.LAYOUTS,
    **swin.LAYOUTS,
    **resnet.LAYOUTS,
}
logger = logging.getLogger("a2mim")
IMAGE_SIZE = 224  # in pixels, where neither file says it and the encoder takes any


def encoder_fields(config: dict[str, Any], processor: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What a model of transformers says of its encoder, as fields of `A2MIMConfig`.

    timm's encoder computes the same features in evaluation, with weights from `timm_weights`. Its norms keep their own
    eps where the other one is at most 1e-6 away (`config.LARGEST_EPS_DIFFERENCE`), which is logged.

    Args:
        config: the config.json; what it leaves out is what the class of the configuration has.
        processor: the preprocessor_config.json, `None` if there is none.

    Returns:
        `architecture`, `model_args`, `image_size`, `num_channels`, and where they are known `image_mean`, `image_std`
        and `crop_pct`. `None` if models of this `model_type` are none that are known here.

    Raises:
        ValueError: naming `model_name_or_path`, the field and its value, if timm's encoder would compute something
            else, or images are not brought to [0, 1].
    """
    layout = LAYOUTS.get(str(config.get("model_type")))
    if layout is None:
        return None
    read = read_config(config)
    fields = _network_fields(layout, read)
    if layout.norm_eps and (eps := other_eps(read, layout.norm_eps)) is not None:
        logger.info("layer_norm_eps: %s in the config.json, timm's norms have %s", eps, layout.norm_eps)
    images = image_fields(config, processor, read.num_channels)
    seen = images.pop("size", None)
    if not layout.has_positions and seen is not None:
        fields["image_size"] = seen[0] if seen[0] == seen[1] else list(seen)
    return fields | images


def timm_weights(config: dict[str, Any], weights: Weights) -> tuple[Weights, list[str]]:
    """The weights of the encoder in a model of transformers, under timm's names and in timm's shapes.

    Args:
        config: the config.json, of a `model_type` that `encoder_fields` knows.
        weights: under the names that `save_pretrained` writes: of the bare model, or with a head, or of a backbone.

    Returns:
        All that timm's encoder without a classifier has, and the names of the stored weights that are no part of it
        (classifier, pooler, mask token, decoder, ...). A norm after pooling that a model has none of is as new (ones
        and zeros); no feature map depends on it.

    Raises:
        ValueError: naming `model_name_or_path` and the weight, if one is missing, of another shape, or unknown; or as
            `encoder_fields`.
    """
    layout = LAYOUTS[config["model_type"]]
    read = read_config(config)
    left_over = _left_over(layout, read, weights)
    stored = rename_all([name for name in weights if name not in left_over], layout.renames)
    renamed = fuse_qkv({new: weights[name] for new, name in stored.items()}, layout.separate_biases)
    renamed = layout.finish(renamed) if layout.finish else renamed
    shapes = _shapes(_network_fields(layout, read))
    return fit(renamed, shapes, stored, f"a {read.model_type} of transformers"), sorted(left_over)


def _left_over(layout: KeyLayout, config: PreTrainedConfig, weights: Weights) -> set[str]:
    left_over = {name for name in weights if any(re.search(pattern, name) for pattern in layout.left_over)}
    return left_over | (layout.unused(config, weights.keys()) if layout.unused else set())


def _network_fields(layout: KeyLayout, config: PreTrainedConfig) -> dict[str, Any]:
    """Those that need no images. Raises ValueError for what timm's encoder would compute otherwise."""
    if layout.norm_eps:
        other_eps(config, layout.norm_eps)
    return {"image_size": IMAGE_SIZE} | layout.fields(config) | {"num_channels": config.num_channels}


def _shapes(fields: dict[str, Any]) -> dict[str, torch.Size]:
    """Of what timm's encoder without a classifier holds."""
    size = fields["image_size"]
    pair = (size, size) if isinstance(size, int) else tuple(size)
    trace, _ = trace_encoder(EncoderSpec(fields["architecture"], fields["model_args"], pair, fields["num_channels"]))
    return {name: value.shape for name, value in trace.encoder.state_dict().items()}
