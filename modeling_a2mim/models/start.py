"""The first weights of an encoder: those of another model, brought to its channels and size."""

import copy
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from ..arguments.settings import ENCODER_FIELDS
from ..configuration_a2mim import A2MIMConfig
from ..encoders.foreign import Weights, with_channels
from ..encoders.meta import NoValues
from ..encoders.timm_config import without_tag
from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel, A2MIMPreTrainedModel
from ..pretrained import Pretrained
from .resizing import resized_weights


logger = logging.getLogger("a2mim")

MOST_NAMED = 4  # names in a line of the log


@dataclass(frozen=True)
class LoadedWeights:
    """What became of the weights that a model starts from.

    Args:
        loaded: how many of the encoder's weights are set.
        adapted: what was changed for other channels or another size, in words.
        new: names of the model's weights that start anew, those of a part of it as `decoder.*`.
        left_over: names of the stored weights that are not used, likewise.
        copies: prefixes of the encoder's names, where it is stored several times; the first one is used.
    """

    loaded: int
    adapted: list[str]
    new: list[str]
    left_over: list[str]
    copies: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """In one line, for the log."""
        under = (
            f", those under {self.copies[0]!r} and not {', '.join(map(repr, self.copies[1:]))}" if self.copies else ""
        )
        parts = [f"{self.loaded} weights of the encoder loaded{under}"]
        parts += [f"adapted: {_some(self.adapted)}"] if self.adapted else []
        parts += [f"new: {_some(self.new)}"] if self.new else []
        parts += [f"left over: {_some(self.left_over)}"] if self.left_over else []
        return "; ".join(parts)

    def record(self) -> dict:
        """For the training record."""
        return {
            "loaded": self.loaded,
            "adapted": self.adapted,
            "new": self.new,
            "left_over": self.left_over,
        }


def pretraining_model_from(
    start: Pretrained, preset: str = "auto", **settings: Any
) -> tuple[A2MIMForPreTraining, LoadedWeights]:
    """A new pre-training model on the encoder of another model, and what became of that one's weights; mask token and
    decoder are new.

        model, loaded = pretraining_model_from(open_encoder("timm/resnet50.a1_in1k"), image_size=96)

    Args:
        start: as `open_encoder` gives it.
        preset: whose settings of the paper to start from: "resnet", "convnext", "vit", "swin", "simmim", or "auto".
        settings: fields of `A2MIMConfig`.

    Raises:
        ValueError: naming the field that is wrong, or that the weights do not fit.
    """
    model = A2MIMForPreTraining(A2MIMConfig.preset(preset, **encoder_settings(start, settings)))
    return model, load_start(model, start)


def load_start(model: A2MIMPreTrainedModel, start: Pretrained, partly: bool = False) -> LoadedWeights:
    """Give the encoder of a model the weights that it starts from, with its first convolution for other channels and
    its positions for another size of images as timm adapts them; what else the model has stays new.

    Args:
        model: that holds an `A2MIMModel` as `a2mim`.
        start: where the weights are.
        partly: whether weights may be missing, as those that follow the last map which a segmenter reads.

    Raises:
        ValueError: naming the argument, if weights are missing, left over or of another shape.
    """
    core = cast(A2MIMModel, model.a2mim)
    found, config = start.found_for(core.config)
    weights, adapted = with_channels(found.weights, core.encoder, core.config.num_channels)
    if config.num_channels != core.config.num_channels:
        config = copy.copy(config)
        config.num_channels = core.config.num_channels
    resized = resized_weights(weights, config, core)
    for name, value in resized.items():
        if name in weights and value is not weights[name] and value.shape != weights[name].shape:
            adapted.append(f"{name} {_sides(weights[name])} -> {_sides(value)}")
    loaded = load_into_encoder(model, resized, partly)
    inside = f"{next(name for name, module in model.named_modules() if module is core.encoder)}."
    new = [name for name, _ in model.named_parameters() if name.removeprefix(inside) not in loaded]
    left_over = [f"{found.prefix}{name}" for name in resized if name not in loaded]
    left_over += [name for name in found.left_over if name not in left_over]
    copies = [found.prefix, *found.others] if found.others else []
    if found.doubtful:
        logger.warning(
            "the encoder is stored %d times, with other weights: those under %r are taken, and not those under %s; if "
            "others are meant, store them alone",
            len(copies),
            copies[0],
            ", ".join(map(repr, copies[1:])),
        )
    own, stored = ([f"{place}{name}" for name in loaded] for place in (inside, found.prefix))
    parts = _grouped(new, own), _grouped(left_over, stored)
    core.loaded = LoadedWeights(len(loaded), [*found.adapted, *adapted], *parts, copies)
    return core.loaded


def load_into_encoder(model: A2MIMPreTrainedModel, weights: Weights, partly: bool = False) -> set[str]:
    """Give the encoder of a model the weights of another one; classifiers are left out, so that its own stays new.

    Args:
        model: that holds an `A2MIMModel` as `a2mim`.
        weights: under timm's names.
        partly: whether weights may be missing.

    Returns:
        The names of those that it took.

    Raises:
        ValueError: if any other weight is missing, left over or of another shape.
    """
    core = cast(A2MIMModel, model.a2mim)
    names = core.plan.names
    kept = {name: value for name, value in weights.items() if name in names}
    new: set[str] = set()
    pooled_norm = {name for name in names if name.startswith("fc_norm.")}
    if pooled_norm and not pooled_norm & set(weights):
        # Mean pooling: a new norm after it takes the place of the old one (MAE, BEiT).
        new, weights = pooled_norm, {k: v for k, v in weights.items() if k not in ("norm.weight", "norm.bias")}
    over = [name for name in weights if name not in names]
    if over:
        over = sorted(set(over) - classifier_names(core))
    try:
        missing, _ = core.encoder.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise ValueError(f"model_name_or_path: its weights do not fit {model.config.architecture}: {error}") from error
    # Some classifiers have norms of their own, which no encoder without classes has (LeViT, RepViT).
    lacking = [name for name in missing if name in names - new and not name.endswith("num_batches_tracked")]
    wrong = [*over, *(lacking if not partly else ())]
    if wrong:
        raise ValueError(f"model_name_or_path: weights missing or left over: {', '.join(wrong[:5])}")
    return set(kept)


def classifier_names(core: A2MIMModel) -> set[str]:
    """Names of what timm's classifier adds to the weights of an encoder."""
    with torch.device("meta"), NoValues():
        return set(core.plan.create(1).state_dict()) - core.plan.names


def encoder_settings(start: Pretrained, given: dict[str, Any]) -> dict[str, Any]:
    """The encoder of a model that starts from another one: fields of its `A2MIMConfig`.

    Args:
        start: the other model, whose fields are kept where they are not given. For another number of channels,
            `image_mean` and `image_std` become the mean of theirs, as in timm.
        given: fields; `model_args` are added to the other model's.

    Raises:
        ValueError: naming `architecture`, if another one is given.
    """
    config = start.config
    if without_tag(given.get("architecture", config.architecture)) != config.architecture:
        raise ValueError(f"architecture: the weights are for {config.architecture}, not {given['architecture']}")
    kept = {name: getattr(config, name) for name in ENCODER_FIELDS}
    channels = given.get("num_channels", config.num_channels)
    if channels != config.num_channels:
        for name in ("image_mean", "image_std"):
            kept[name] = [sum(kept[name]) / len(kept[name])] * channels
    own = {"architecture": config.architecture, "model_args": {**config.model_args, **given.get("model_args", {})}}
    return {**kept, **given, **own}


def _grouped(names: list[str], used: Collection[str]) -> list[str]:
    """Names of weights, those of one part of a model as one, `decoder_blocks.*`: the largest part that has none of the
    used ones."""

    def parts(name: str) -> list[str]:
        return [name[: place + 1] for place, letter in enumerate(name) if letter == "."]

    taken = {part for name in used for part in parts(name)}
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(next((part for part in parts(name) if part not in taken), name), []).append(name)
    return [one for part, group in groups.items() for one in ([f"{part}*"] if len(group) > 2 else group)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def _sides(value: torch.Tensor) -> str:
    return " x ".join(map(str, value.shape))
