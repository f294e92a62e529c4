"""Weights that lie in no folder with a config.json: those of timm's registry, and single files."""

import copy
import functools
import logging
import math
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

from ..configuration_a2mim import A2MIMConfig
from ..encoders.foreign import FoundEncoder, Weights, find_encoder
from ..encoders.meta import TimmEncoder, build_on_meta
from ..encoders.plan import plan_encoder
from ..encoders.timm_config import fields_of_timm
from .models import ENCODER_FIELDS, Pretrained
from .weight_files import SUFFIXES, read_file


logger = logging.getLogger("a2mim")

OPENMIXUP = ("patch_embed.projection.", ".depthwise_conv.", ".w_msa.")  # in names of its encoders


class RegisteredWeights(Pretrained):
    """Weights of timm's registry, `source` being their name there: what `timm.create_model(pretrained=True)` loads."""

    @functools.cached_property
    def found(self) -> FoundEncoder:
        """
        Raises:
            ValueError: naming `architecture`, if they cannot be had or read.
        """
        args = {**plan_encoder(self.config, for_masking=False).create_args, "model_name": self.source}
        try:
            encoder = timm.create_model(**args, pretrained=True, num_classes=0)
        except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"architecture: the weights {self.source} of timm cannot be had: {first}") from error
        classifier = self.data["pretrained_cfg"].get("classifier") or ()
        heads = [classifier] if isinstance(classifier, str) else classifier
        return FoundEncoder(dict(encoder.state_dict()), left_over=[f"{name}.weight" for name in heads])

    @property
    def place(self) -> str:
        return "timm's registry"

    @property
    def what(self) -> str:
        return f"the weights {self.source} of timm"

    def describe(self, head: str | None = None) -> str:
        return self.what


class WeightsFile(Pretrained):
    """Weights in the file `source`, for the encoder that `config` describes; of other channels, if that is what it
    holds."""

    @property
    def what(self) -> str:
        return f"the weights of a {self.config.architecture} in the file {Path(self.source).name}"

    def describe(self, head: str | None = None) -> str:
        return f"the weights of a {self.config.architecture} in {self.source}"

    @functools.cached_property
    def weights(self) -> Weights:
        """All that is in the file.

        Raises:
            ValueError: naming `model_name_or_path`, if it cannot be read.
        """
        try:
            return read_file(Path(self.source))
        except (ValueError, OSError) as error:
            raise ValueError(f"model_name_or_path: {error}") from error

    @functools.cached_property
    def found(self) -> FoundEncoder:
        return self.found_for(self.config)[0]

    def found_for(self, config: A2MIMConfig) -> tuple[FoundEncoder, A2MIMConfig]:
        """As timm loads them into that encoder.

        Raises:
            ValueError: naming `model_name_or_path`, if they are not in the file.
        """
        plan = plan_encoder(config, for_masking=False)
        encoder = build_on_meta(plan.create_args)
        try:
            found = find_encoder(self.weights, encoder, plan.create_args)
            _tell_grid(found, encoder)
            return found, config
        except ValueError as error:
            if str(error).startswith("model_name_or_path: "):
                raise
            official = any(part in name for name in self.weights for part in OPENMIXUP)
            hint = "; a checkpoint of OpenMixup becomes a folder by `python -m modeling_a2mim.conversion`"
            raise ValueError(
                f"model_name_or_path: {self.source}, read as --architecture {config.architecture} of "
                f"{' x '.join(map(str, config.input_size))} px: {error}{hint if official else ''}"
            ) from error


def _tell_grid(found: FoundEncoder, encoder: TimmEncoder):
    """Warn of positions that are taken as they are and may be of a square: a file tells their number alone."""
    rows, columns = getattr(getattr(encoder, "patch_embed", None), "grid_size", None) or (0, 0)
    side, own = math.isqrt(rows * columns), encoder.state_dict()
    changed = " ".join(found.adapted)
    names = [name for name, value in found.weights.items() if value.ndim == 3 and "pos" in name and name in own]
    names = [name for name in names if rows * columns <= own[name].shape[1] and f"{name} " not in changed]
    if names and rows != columns and side * side == rows * columns:
        logger.warning(
            "%s: taken as positions of %d x %d patches; if they are of %d x %d, as most are, give the weights as a "
            "folder of timm, whose config.json has the size of their images (input_size), so that they are resampled",
            names[0],
            rows,
            columns,
            side,
            side,
        )


def open_registered(name: str) -> Pretrained:
    """Weights of timm's registry.

    Args:
        name: of an architecture, for its usual weights, or with a tag (`resnet50.a1_in1k`).

    Raises:
        ValueError: naming `architecture`, if timm has no such weights.
    """
    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        A2MIMConfig.for_encoder(architecture=name)  # which says what is wrong with it
    tags = timm.list_pretrained(f"{plain}.*")
    if not (tags if name == plain else name in tags):
        known = f"there are {', '.join(tags[:10])}{', ...' if len(tags) > 10 else ''}" if tags else "there are none"
        raise ValueError(f"architecture: timm has no weights {name}; {known} of {plain}")
    cfg = timm.get_pretrained_cfg(name)
    full = f"{plain}.{cfg.tag}" if cfg.tag else plain
    data = {"architecture": plain, "num_classes": 0, "pretrained_cfg": cfg.to_dict()}
    fields = {key: value for key, value in fields_of_timm(copy.deepcopy(data)).items() if key in ENCODER_FIELDS}
    config = A2MIMConfig.for_encoder(**fields)
    return RegisteredWeights(full, "", "encoder", config, None, data, {})


def is_weights_file(source: str) -> bool:
    """Whether this names a file of weights: one that is there, or one by its ending."""
    return Path(source).is_file() or (source.endswith(SUFFIXES) and not Path(source).is_dir())


def open_weights_file(path: str, config: A2MIMConfig) -> Pretrained:
    """Weights in a file, which does not tell what encoder it is of.

    Args:
        path: of the file.
        config: of the encoder.

    Raises:
        ValueError: naming `model_name_or_path`, if there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(f"model_name_or_path: there is no file {path}")
    data: dict[str, Any] = {}
    return WeightsFile(path, "", "encoder", config, None, data, {})
