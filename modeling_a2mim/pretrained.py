"""What a folder or a repository of the Hub holds: its files, the kind of model in its root, and the encoder in that.

The root is what is used for everything but going on with pre-training; `pretraining/` serves only that.
"""

import copy
import functools
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel, TimmWrapperConfig
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .configuration_a2mim import A2MIMConfig
from .encoders.plan import plan_encoder
from .encoders.timm_config import fields_of_timm, is_timm


MASKED = "masked image modelling"  # as a task


PRETRAINING_FOLDER = "pretraining"
PRETRAINING_CONFIG = f"{PRETRAINING_FOLDER}/config.json"  # which is there if the whole pre-training model is
PRETRAINED = f"pre-trained by {MASKED}"
HUB_KWARGS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
WEIGHTS_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)  # one file, or the index of several
DETECTOR_TYPE = "a2mim_detector"
ENCODER_FIELDS = (
    *("architecture", "model_args", "image_size", "num_channels", "image_mean", "image_std", "crop_pct"),
    *("out_indices", "feature_pyramid"),
)
INSIDE = "a2mim.encoder."  # in the names of the encoder's weights, wherever it is inside another model
KINDS = {
    "A2MIMForPreTraining": "pre-training model",
    "A2MIMForImageClassification": "classifier",
    "LinearProbe": "linear probe",
}
CLASSIFIERS = ("classifier", "linear probe")
DETECTORS = ("detector", "instance segmenter")

logger = logging.getLogger("a2mim")


# Files


def find_file(
    source: str, name: str, repo_type: str | None = None, argument: str = "model_name_or_path", **hub_kwargs: Any
) -> Path | None:
    """A file of a folder or Hub repository, `None` if it has no such file. A repository that cannot be asked is
    another matter than one that has no such file.

    Args:
        source: the folder, or the id of the repository.
        name: of the file, with `/` between folders.
        repo_type: "dataset", or `None` for a model.
        argument: that errors name.
        hub_kwargs: of `hf_hub_download`: `revision`, `token`, `cache_dir`, ...

    Raises:
        ValueError: naming the argument, if there is no such repository or revision, or it could not be asked.
    """
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name, repo_type=repo_type, **hub_kwargs))
    except LocalEntryNotFoundError as error:
        return _cached(source, name, repo_type, argument, hub_kwargs, error.__cause__ or error)
    except EntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise ValueError(
            f"{argument}: {source} is a repository whose terms must be accepted on its page, and then read with "
            "--hub_token or after `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{argument}: {source} cannot be read: it is no folder here, and the Hub has no repository of that name, "
            "or none that may be read without (another) --hub_token"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{argument}: {source} has no revision {hub_kwargs.get('revision')!r} on the Hub") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{argument}: {source} cannot be read: {error}") from error
    except HTTPError as error:  # of the connection
        return _cached(source, name, repo_type, argument, hub_kwargs, error)


def _cached(
    source: str, name: str, repo_type: str | None, argument: str, hub_kwargs: dict[str, Any], error: BaseException
) -> Path | None:
    """What is known of a file of a Hub that does not answer: the file, or `None` if it was not there when the Hub was
    last asked."""
    where = {key: hub_kwargs.get(key) for key in ("cache_dir", "revision")}
    cached = try_to_load_from_cache(source, name, repo_type=repo_type, **where)
    if cached is _CACHED_NO_EXIST:
        return None
    if cached is not None:
        return Path(cached)
    offline = constants.is_offline_mode() or hub_kwargs.get("local_files_only")
    first = next(iter(str(error).strip().splitlines()), "")
    raise ValueError(
        f"{argument}: {source} is no folder here, and the Hub could not be asked for {name} of a repository of that "
        "name, which is not in the cache either: "
        + ("this process is offline (HF_HUB_OFFLINE)" if offline else f"{type(error).__name__}: {first}")
    ) from error


def read_weights(source: str, subfolder: str = "", **hub_kwargs: Any) -> dict[str, torch.Tensor]:
    """The weights of a folder or repository, of one file or of several, under the names that are stored.

    Raises:
        ValueError: naming `model_name_or_path`, if there are none, or they cannot be read.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    place = f"{source}/{subfolder}" if subfolder else source
    files = [find_file(source, prefix + SAFE_WEIGHTS_NAME, **hub_kwargs)]
    if files == [None]:
        index = find_file(source, prefix + SAFE_WEIGHTS_INDEX_NAME, **hub_kwargs)
        if index is None:
            raise ValueError(
                f"model_name_or_path: {place} holds no weights, it has no {SAFE_WEIGHTS_NAME}; pytorch_model.bin and "
                "the like are pickles, which are not read"
            )
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{index.name}: names a file in another folder, {strange[0]!r}")
        files = [find_file(source, prefix + name, **hub_kwargs) for name in names]
        if None in files:
            raise ValueError(f"model_name_or_path: {place} has no {names[files.index(None)]}")
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model_name_or_path: the weights in {place} cannot be read: {error}") from error


# Models


@dataclass(frozen=True)
class Pretrained:
    """A model that may be the start of another one; its weights are read when they are asked for.

    Args:
        source: the folder, or the id of the repository.
        subfolder: of it, where the model is.
        kind: "encoder", "classifier", "linear probe", "pre-training model", "segmenter", "detector" or "instance
            segmenter", or what transformers calls another model on an `A2MIMBackbone`.
        config: of its encoder and the images that it takes.
        names: of the classes that it tells apart, in their order; `None` if there are none.
        data: its config.json.
        hub_kwargs: `revision`, `token`, `cache_dir`, ...
    """

    source: str
    subfolder: str
    kind: str
    config: A2MIMConfig
    names: list[str] | None
    data: dict[str, Any]
    hub_kwargs: dict[str, Any] = field(repr=False)

    @property
    def place(self) -> str:
        """Where it is, as messages name it."""
        return f"{self.source}/{self.subfolder}" if self.subfolder else self.source

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """As they are stored."""
        return read_weights(self.source, self.subfolder, **self.hub_kwargs)

    def encoder_weights(self) -> dict[str, torch.Tensor]:
        """Those of the encoder under timm's names, with those of timm's classifier if it has one. A segmenter that was
        exported for transformers alone lacks what follows the last map that it reads.

        Raises:
            ValueError: naming `model_name_or_path`, if they cannot be read.
        """
        if is_timm(self.data):
            return self.weights
        if self.is_plain_backbone:
            found, stored = {}, {name for name in self.weights if name.startswith("backbone.")}
            for name in plan_encoder(self.config, for_masking=False).names:
                for other in stored & {f"backbone.{other}" for other in backbone_names(name)}:
                    found[name] = self.weights[other]
                    stored.discard(other)
            if stored:  # what is left is no weight of this encoder
                raise ValueError(
                    f"model_name_or_path: {self.place} holds {min(stored)}, which no {self.config.architecture} has"
                )
            return found
        start = next((name.index(INSIDE) + len(INSIDE) for name in self.weights if INSIDE in name), len("encoder."))
        prefix = next((name[:start] for name in self.weights if name[:start].endswith("encoder.")), None)
        if prefix is None:
            raise ValueError(f"model_name_or_path: {self.place} holds no weights of an encoder")
        return {name[start:]: tensor for name, tensor in self.weights.items() if name.startswith(prefix)}

    @property
    def is_plain_backbone(self) -> bool:
        """Whether its encoder is a `TimmBackbone` of transformers."""
        return (self.data.get("backbone_config") or {}).get("model_type") == "timm_backbone"

    @property
    def what(self) -> str:
        """In words, such as "a classifier of 10 classes"."""
        article = "an" if self.kind[0].lower() in "aeiou" else "a"
        return f"{article} {self.kind}" + (f" of {len(self.names)} classes" if self.names else "")

    def describe(self, head: str | None = None) -> str:
        """What of it is used, and where it is, for the log.

        Args:
            head: what becomes of its head; default: it is left out.
        """
        if head is None and self.names:
            head = f"its {len(self.names)}-class head is left out"
        elif head is None and self.kind == "pre-training model":
            head = "its mask token and decoder are left out"
        return f"the {self.kind} in {self.place}" + (f" ({head})" if head else "")


def open_pretrained(source: str, subfolder: str = "", **hub_kwargs: Any) -> Pretrained:
    """What the root of a folder or Hub repository holds: any model of this package, or of timm. Only where the root
    holds nothing, `pretraining/` is what there is. `hub_kwargs`: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: naming `model_name_or_path`, if there is no such model, or the repository could not be asked.
    """
    path = find_file(source, f"{subfolder}/config.json" if subfolder else "config.json", **hub_kwargs)
    if path is None:
        has = {name: find_file(source, name, **hub_kwargs) for name in (SAFE_WEIGHTS_NAME, PRETRAINING_CONFIG)}
        if not subfolder and has[PRETRAINING_CONFIG] and not has[SAFE_WEIGHTS_NAME]:
            return open_pretrained(source, PRETRAINING_FOLDER, **hub_kwargs)
        raise ValueError(f"model_name_or_path: {source} holds no checkpoint, it has no config.json{_hint(source)}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model_name_or_path: the config.json of {source} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"model_name_or_path: the config.json of {source} is no JSON object")
    model = functools.partial(Pretrained, source, subfolder, data=data, hub_kwargs=hub_kwargs)
    labels: dict[Any, str] = PreTrainedConfig(
        **{name: data[name] for name in ("id2label", "num_labels") if name in data}
    ).id2label
    names = [labels[i] for i in sorted(labels)]
    model_type, backbone = data.get("model_type"), data.get("backbone_config")
    if model_type == A2MIMConfig.model_type:
        kind = KINDS.get((data.get("architectures") or [""])[0], "encoder")
        return model(kind=kind, config=A2MIMConfig.from_dict(data), names=names if kind in CLASSIFIERS else None)
    if model_type == DETECTOR_TYPE:
        return model(kind=DETECTORS[bool(data.get("predict_masks"))], config=_encoder_config(data), names=names)
    if isinstance(backbone, dict):
        config = _backbone_config(source, subfolder, backbone, **hub_kwargs)
        if config is not None:
            kind = "segmenter" if model_type == "upernet" else (data.get("architectures") or [model_type])[0]
            return model(kind=kind, config=config, names=names)
    if not is_timm(data):
        raise ValueError(
            f"model_name_or_path: {source} is no timm checkpoint: its config.json names no architecture or no "
            f"input_size{f', it is that of a {model_type} of transformers' if model_type else ''}"
        )
    fields = fields_of_timm(data)
    count = data.get("num_classes") or 0
    names = list(fields.get("id2label", {}).values())
    if not names and data.get("pretrained_cfg"):  # those of ImageNet, by the number of classes
        names = list(TimmWrapperConfig.from_dict(copy.deepcopy(data)).id2label.values())
    if len(names) != count:
        names = [f"LABEL_{i}" for i in range(count)]
    fields = {name: value for name, value in fields.items() if name in ENCODER_FIELDS}
    kind = "classifier" if count else "encoder"
    return model(kind=kind, config=A2MIMConfig.for_encoder(**fields), names=names if count else None)


def _encoder_config(data: dict) -> A2MIMConfig:
    return A2MIMConfig.for_encoder(**{name: data[name] for name in ENCODER_FIELDS if data.get(name) is not None})


def _backbone_config(source: str, subfolder: str, backbone: dict, **hub_kwargs: Any) -> A2MIMConfig | None:
    """That of the encoder in a model of transformers, `None` if it is none of timm's."""
    if backbone.get("model_type") == A2MIMConfig.model_type:
        return _encoder_config(backbone)
    if backbone.get("model_type") != "timm_backbone":
        return None
    # Such a model tells what images it takes only in the configuration of its processor.
    name = f"{subfolder}/preprocessor_config.json" if subfolder else "preprocessor_config.json"
    path = find_file(source, name, **hub_kwargs)
    processor = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    size = processor.get("size") or {}
    if "height" not in size:
        raise ValueError(f"model_name_or_path: {source} does not say what size of images it takes ({name})")
    fields = {"image_size": _square(size["height"], size["width"])}
    fields |= {field: processor[field] for field in ("image_mean", "image_std") if field in processor}
    fields |= {"architecture": backbone["backbone"], "num_channels": backbone.get("num_channels", 3)}
    return A2MIMConfig.for_encoder(**fields, out_indices=backbone["out_indices"])


def backbone_names(name: str) -> tuple[str, ...]:
    """How transformers' `TimmBackbone` may call a weight of a timm encoder: what timm's features_only does, `model.`
    before the name or its first two parts joined, depends on the architecture."""
    return f"_backbone.{name}", f"_backbone.model.{name}", f"_backbone.{name.replace('.', '_', 1)}"


def _square(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


# Models of this package from the root of an export, which is a checkpoint of another format


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


def weights_for(empty: PreTrainedModel, prefix: str, found: Pretrained) -> dict[str, torch.Tensor]:
    """All weights of a model from those of an encoder, with its classifier if it has one.

    Args:
        empty: the model, whose own values are not looked at.
        prefix: before the names of its encoder's weights.
        found: where weights are taken from.

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
    if wrong := [name for name, tensor in weights.items() if tensor.shape != needed[name].shape]:
        shapes = [tuple(tensors[wrong[0]].shape) for tensors in (weights, needed)]
        raise ValueError(
            f"{found.place}: {wrong[0]} is of shape {shapes[0]}, with this configuration {kind} has {shapes[1]}"
        )
    return weights


def _hint(source: str) -> str:
    checkpoints = [path.name for path in Path(source).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    if not checkpoints:
        return ""
    newest = max(checkpoints, key=lambda name: (len(name), name))
    return f"; a run that has not ended left checkpoints there: name one, {Path(source, newest)}"
