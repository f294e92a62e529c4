"""The config.json of a model of transformers: read as transformers reads it, and checked for what timm's encoder of
the same family computes otherwise."""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import timm
from transformers import CONFIG_MAPPING, PreTrainedConfig


# transformers' names of activations -> timm's
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# By how much `layer_norm_eps` may differ from the eps of timm's norms, which no argument sets: transformers' default
# for ViT and its kin is 1e-12, timm has the 1e-6 that the published weights were trained with. A norm's output changes
# by the share eps / (2 * variance of the token). Measured on small random models with 1e-12 against 1e-6: features of
# standard deviation 1 differ by 2e-6 where tokens have a standard deviation of 1, and by 3e-5 where it is 0.1 for the
# class token and the positions. In models as transformers initialises them, features of patches differ by up to
# 2e-4, and those of class tokens, which are nearly zero then, by 8e-4 (ViT), 3e-3 (BEiT) and 3e-2 (DeiT).
# With 1e-5, all of that is ten times larger.
LARGEST_EPS_DIFFERENCE = 1.01e-6


def read_config(data: dict[str, Any]) -> PreTrainedConfig:
    """The configuration that a config.json of transformers stands for, with the defaults of its class.

    Raises:
        ValueError: naming `model_name_or_path`, if transformers refuses it.
    """
    try:
        return CONFIG_MAPPING[data["model_type"]].from_dict(dict(data))
    except Exception as error:  # of huggingface_hub, which checks types, or of the class
        raise ValueError(f"model_name_or_path: transformers cannot read its config.json: {error}") from error


def refuse(field: str, value: Any, reason: str) -> NoReturn:
    """Say that a value of the configuration cannot be had in timm's encoder.

    Raises:
        ValueError: naming `model_name_or_path`, the field and its value.
    """
    raise ValueError(f"model_name_or_path: {field} is {value!r} in its config.json, {reason}")


def require(config: PreTrainedConfig, **expected: Any) -> None:
    """Refuse values that timm's encoder has no argument for, other than the one that it computes with.

    Raises:
        ValueError: naming `model_name_or_path`, the field and its value.
    """
    for field, value in expected.items():
        found = getattr(config, field)
        if found != value:
            refuse(field, found, f"and timm's encoder of this family computes as with {value!r}")


def require_no_dropout(config: PreTrainedConfig, *fields: str) -> None:
    """Refuse rates of dropout (and of stochastic depth, where it is not timm's), which act in training only.

    Raises:
        ValueError: naming `model_name_or_path`, the field and its value.
    """
    for field in fields:
        if getattr(config, field):
            reason = (
                "which timm's encoder does not drop at the same places; it acts in training only: set it to 0 there"
            )
            refuse(field, getattr(config, field), reason)


def other_eps(config: PreTrainedConfig, timm_eps: float) -> float | None:
    """`layer_norm_eps` where it is another than timm's, `None` where it is the same.

    Raises:
        ValueError: naming `model_name_or_path`, the field and its value, if that could change features by much, see
            `LARGEST_EPS_DIFFERENCE`.
    """
    if abs(config.layer_norm_eps - timm_eps) > LARGEST_EPS_DIFFERENCE:
        refuse("layer_norm_eps", config.layer_norm_eps, f"and timm's norms have {timm_eps}, which cannot be set")
    return None if config.layer_norm_eps == timm_eps else config.layer_norm_eps


def activation_args(config: PreTrainedConfig, default: str) -> dict[str, Any]:
    """`act_layer` for timm, nothing where the activation is the `default` of the family.

    Raises:
        ValueError: naming `model_name_or_path`, `hidden_act` and its value, if timm has no such activation.
    """
    if config.hidden_act not in ACTIVATIONS:
        refuse("hidden_act", config.hidden_act, f"which timm does not have; it has {', '.join(ACTIVATIONS)}")
    name = ACTIVATIONS[config.hidden_act]
    return {} if name == default else {"act_layer": name}


def square_patch(config: PreTrainedConfig) -> int:
    """The side of a patch in pixels.

    Raises:
        ValueError: naming `model_name_or_path`, `patch_size` and its value, if patches are not square.
    """
    sides = {config.patch_size} if isinstance(config.patch_size, int) else set(config.patch_size)
    if len(sides) != 1:
        refuse("patch_size", config.patch_size, "and only square patches are supported")
    return sides.pop()


def image_size(config: PreTrainedConfig) -> int | list[int]:
    """The size of the images in pixels, as `A2MIMConfig` has it."""
    size = config.image_size
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else [height, width]


def require_square_images(config: PreTrainedConfig) -> None:
    """Refuse other images where transformers takes the grid of their positions for a square one.

    Raises:
        ValueError: naming `model_name_or_path`, `image_size` and its value.
    """
    if not isinstance(image_size(config), int):
        refuse("image_size", config.image_size, "and transformers computes the positions of square images alone")


def mlp_ratio(hidden: int, width: int) -> float:
    """`hidden / width` so that timm, which cuts `width * mlp_ratio` to an integer, gets `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def first_name(names: Sequence[str]) -> str | None:
    """The first of these names that is one of timm's architectures."""
    return next((name for name in names if timm.is_model(name)), None)
