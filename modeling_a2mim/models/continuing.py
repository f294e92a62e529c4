"""Go on pre-training a model under other settings: what is given takes effect, and its weights are kept as far as they
fit; what contradicts them is refused."""

import json
import logging
from collections.abc import Collection
from typing import Any

import torch

from ..configuration_a2mim import A2MIMConfig
from ..modeling_a2mim import A2MIMForPreTraining
from ..utils.value_range import STORED_FIELDS
from .resizing import resized_weights


OF_THE_WEIGHTS = ("architecture", "num_channels", "decoder")

logger = logging.getLogger("a2mim")


def with_settings(model: A2MIMForPreTraining, settings: dict[str, Any]) -> tuple[A2MIMForPreTraining, list[str]]:
    """A pre-trained model under other settings, `model` itself if none of them differs, and what changed: sentences
    like `mask_ratio: 0.6 -> 0.75`, which are logged as well.

    Args:
        model: keeps its weights.
        settings: fields of A2MIMConfig; those of `model_args` are added to the model's own. Weights for images of
            another `image_size` are resampled (`resizing`). The mask token starts anew at another site or in another
            mode, and so does what another `decoder_kernel_size` changes in the decoder.

    Raises:
        ValueError: naming the field that its weights do not fit, or that the encoder does not work with.
    """
    old = model.config
    values = {name: value for name, value in settings.items() if not same_setting(old, name, value)}
    if "model_args" in values:
        values["model_args"] = {**old.model_args, **values["model_args"]}
        values = {name: value for name, value in values.items() if not same_setting(old, name, value)}
    for name in OF_THE_WEIGHTS:
        if name in values:
            theirs = getattr(old, name)
            raise ValueError(
                f"{name}: the weights in --model_name_or_path are for {theirs}, not {values[name]}; leave --{name} "
                f"out (where a recipe gives it: --{name} {theirs}), or start a new model without --model_name_or_path"
                f"{'' if name == 'architecture' else f', or on the encoder alone: {_encoder_alone(old, values)}'}"
            )
    if not values:
        return model, []
    config = A2MIMConfig.from_dict({**old.to_dict(), **values})
    new, site = A2MIMForPreTraining(config), model.a2mim.site.module
    if "mask_site" not in values and new.a2mim.site.module != site:  # images of another size have led elsewhere
        config.mask_site = site
        new = A2MIMForPreTraining(config)
    changed = [f"{name}: {getattr(old, name)} -> {getattr(config, name)}" for name in values if name != "mask_site"]
    if new.a2mim.site.module != site:
        changed.append(f"mask_site: {site} -> {new.a2mim.site.module}")
    weights = {**_encoder_weights(model, new, values), **_kept_parts(model, new)}
    missing, _ = new.load_state_dict(weights, strict=False)
    if missing:
        changed.append(f"start anew: {', '.join(missing)}")
    for sentence in changed:
        logger.info("%s", sentence)
    new.to(model.dtype)  # type: ignore[arg-type]  # the stub of transformers' `to` lacks `self`
    return new.train(model.training), changed


def _encoder_alone(config: A2MIMConfig, given: Collection[str]) -> str:
    """How to start a new pre-training model from the encoder of this one: the arguments, beside those given, that its
    file does not tell."""
    height, width = config.input_size
    words = ["--model_name_or_path FOLDER/model.safetensors", f"--architecture {config.architecture}"]
    words += [f"--image_size {height} {width}"]
    if config.model_args:
        words += [f"--model_args '{json.dumps(config.model_args)}'"]
    usual = A2MIMConfig.for_encoder()
    fields = ("num_channels", "image_mean", "image_std", *STORED_FIELDS)
    differ = [f"--{name}" for name in fields if name not in given and getattr(config, name) != getattr(usual, name)]
    return " ".join(words) + (f", and the model's {', '.join(differ)} (config.json)" if differ else "")


def same_setting(config: A2MIMConfig, name: str, value: Any) -> bool:
    """Whether a field of a configuration has this value, which may be spelled otherwise."""
    own = getattr(config, name)
    if name in ("image_size", "mask_patch_size"):
        own, value = ([size] * 2 if isinstance(size, int) else list(size) for size in (own, value))
    return own == value


def _encoder_weights(
    model: A2MIMForPreTraining, new: A2MIMForPreTraining, values: dict[str, Any]
) -> dict[str, torch.Tensor]:
    prefix = "a2mim.encoder."
    weights, expected = model.a2mim.encoder.state_dict(), new.a2mim.encoder.state_dict()
    unfit = sorted(weights.keys() ^ expected.keys())
    if not unfit:
        weights = resized_weights(weights, model.config, new.a2mim)
        unfit = [name for name in weights if weights[name].shape != expected[name].shape]
    if unfit:
        field = "model_args" if "model_args" in values else "image_size"
        raise ValueError(
            f"{field}: the weights in --model_name_or_path do not fit {new.config.architecture} with "
            f"{getattr(new.config, field)} ({', '.join(unfit[:3])}); leave --{field} out, or start a new model "
            "without --model_name_or_path"
        )
    return {f"{prefix}{name}": value for name, value in weights.items()}


def _kept_parts(model: A2MIMForPreTraining, new: A2MIMForPreTraining) -> dict[str, torch.Tensor]:
    """Of the mask token and the decoder, what still does what it was trained for."""
    old_token, token = model.a2mim.mask_token, new.a2mim.mask_token
    moved = new.a2mim.site.module != model.a2mim.site.module or token.mode != old_token.mode
    other_gamma = token.gamma_init != old_token.gamma_init
    expected, kept, unfit = new.state_dict(), {}, set()
    for name, value in model.state_dict().items():
        if name.startswith("a2mim.encoder."):
            continue
        if name.startswith("a2mim.mask_token.") and (moved or (other_gamma and name.endswith(".gamma"))):
            continue
        if name in expected and expected[name].shape == value.shape:
            kept[name] = value
        else:
            unfit.add(name.rpartition(".")[0])
    return {name: value for name, value in kept.items() if name.rpartition(".")[0] not in unfit}
