"""The given arguments of a model as fields of `A2MIMConfig`."""

import json
from dataclasses import fields

from ..configuration_a2mim import A2MIMConfig
from ..utils.value_range import ValueRange
from .model import EncoderArguments, PreTrainingModelArguments, is_auto, numbers


# Fields that a preset decides, be it for the default.
PRESET_FIELDS = ("mask_fill", "mask_site", "mask_token_mode", "mask_gamma_init", "spatial_loss")
PRESET_FIELDS += ("frequency_loss_weight", "frequency_unmasked_weight")
ENCODER_FIELDS = tuple(f.name for f in fields(EncoderArguments) if f.name in A2MIMConfig.__annotations__)


def given_settings(args: EncoderArguments) -> dict:
    """The fields of the configuration that were given, as keyword arguments of A2MIMConfig.

    Raises:
        ValueError: naming the argument that cannot be read.
    """
    names = [f.name for f in fields(args) if f.name in A2MIMConfig.__annotations__]
    values = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name in ("image_size", "mask_patch_size"):
        if name in values and len(values[name]) == 1:
            values[name] = values[name][0]
    for name in ("image_mean", "image_std"):
        if is_auto(values.get(name)):
            del values[name]  # is found in the images, see tasks/stored_images.py
        elif name in values:
            values[name] = numbers(name, values[name])
    if "value_range" in values:
        known = ValueRange.from_words(values.pop("value_range"))
        values |= {} if known is None else {"value_range": known.to_config()}
    if "channels" in values:
        values.setdefault("num_channels", len(values["channels"]))
    if "model_args" in values:
        try:
            values["model_args"] = json.loads(values["model_args"])
        except json.JSONDecodeError as error:
            raise ValueError(f"model_args: expected a JSON object, got {values['model_args']!r}: {error}") from error
    site, gamma = values.get("mask_site"), values.get("mask_gamma_init")
    if site is not None and site.lstrip("-").isdigit():
        values["mask_site"] = int(site)
    if gamma is not None:
        try:
            values["mask_gamma_init"] = None if gamma.lower() == "none" else float(gamma)
        except ValueError:
            raise ValueError(f"mask_gamma_init: expected a number or none, got {gamma!r}") from None
    return values


def new_config(args: PreTrainingModelArguments) -> A2MIMConfig:
    """The configuration of a new model.

    Raises:
        ValueError: naming the field that is wrong.
    """
    return A2MIMConfig.preset(args.preset, **{"architecture": A2MIMConfig.architecture, **given_settings(args)})


def settings_for(args: PreTrainingModelArguments, config: A2MIMConfig) -> dict:
    """The fields that were given, `preset` included, for a model that continues.

    Args:
        args: of the model.
        config: of the model that continues.
    """
    values = given_settings(args)
    if args.preset == "auto":
        return values
    kept = {name: getattr(config, name) for name in ("architecture", "model_args", "num_channels")}
    kept |= {name: values[name] for name in (*kept, "image_size") if name in values}
    preset, plain = getattr(A2MIMConfig, args.preset)(**kept), A2MIMConfig(**kept)
    names = [f for f in A2MIMConfig.__annotations__ if f in PRESET_FIELDS or getattr(preset, f) != getattr(plain, f)]
    return {**{name: getattr(preset, name) for name in names}, **values}
