"""Models of this package from the root of an export, which is a checkpoint of another format."""

import json
import os
from typing import Any

import torch
from transformers import PreTrainedModel

from ..configuration_a2mim import A2MIMConfig
from .hub_files import HUB_KWARGS, find_file
from .models import PRETRAINING_CONFIG, PRETRAINING_FOLDER, Pretrained, open_pretrained


def other_format(source: str | os.PathLike | None, model_type: str, kwargs: dict[str, Any]) -> Pretrained | None:
    """What `from_pretrained(source, **kwargs)` was given, if transformers would not find the weights in it: a
    checkpoint that is neither of the model's own type nor of an A2MIM model."""
    if source is None:
        return None
    source, subfolder = str(source), kwargs.get("subfolder") or ""
    where = {name: kwargs[name] for name in HUB_KWARGS if kwargs.get(name) is not None}
    try:
        path = find_file(source, f"{subfolder}/config.json" if subfolder else "config.json", **where)
    except ValueError:  # transformers has its own words for it
        return None
    if path is None or json.loads(path.read_text()).get("model_type") in (A2MIMConfig.model_type, model_type):
        return None
    return open_pretrained(source, subfolder, **where)


def weights_for(
    empty: PreTrainedModel, prefix: str, found: Pretrained, ignore_mismatched_sizes: bool = False
) -> dict[str, torch.Tensor]:
    """All weights of a model from those of an encoder, with its classifier if it has one.

    Args:
        empty: the model, whose own values are not looked at.
        prefix: before the names of its encoder's weights.
        found: where weights are taken from.
        ignore_mismatched_sizes: let weights of another shape pass, which transformers then leaves out with a warning.

    Raises:
        ValueError: if one is missing, naming the subfolder that has others, or of another shape.
    """
    weights = {f"{prefix}{name}": tensor for name, tensor in found.encoder_weights().items()}
    needed, kind = empty.state_dict(), type(empty).__name__
    if missing := [name for name in needed if name not in weights]:
        other = f"there is no subfolder {PRETRAINING_FOLDER}/ with a pre-training model either"
        if not found.subfolder and find_file(found.source, PRETRAINING_CONFIG, **found.hub_kwargs) is not None:
            other = (
                f'{kind}.from_pretrained(..., subfolder="{PRETRAINING_FOLDER}") reads the pre-training model beside it'
            )
        lacking = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"{found.place}: {found.what}, without {lacking}, which {kind} needs; {other}")
    weights = {name: weights[name] for name in needed}
    wrong = [name for name, tensor in weights.items() if tensor.shape != needed[name].shape]
    if wrong and not ignore_mismatched_sizes:
        shapes = [tuple(tensors[wrong[0]].shape) for tensors in (weights, needed)]
        raise ValueError(
            f"{found.place}: {wrong[0]} is of shape {shapes[0]}, with this configuration {kind} has {shapes[1]}"
        )
    return weights
