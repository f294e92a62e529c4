"""The model in the root of a folder or a repository of the Hub: its kind, and the encoder in it.

The root is what is used for everything but going on with pre-training; `pretraining/` serves only that.
"""

import copy
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, TimmWrapperConfig
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from ..configuration_a2mim import A2MIMConfig
from ..encoders.foreign import FoundEncoder, Weights, find_encoder
from ..encoders.meta import build_on_meta
from ..encoders.plan import plan_encoder
from ..encoders.timm_config import fields_of_timm, is_timm
from ..key_layouts import LAYOUTS, encoder_fields, timm_weights
from ..utils.value_range import STORED_FIELDS, stored_fields
from .hub_files import find_file, find_optional_file
from .weight_files import read_weights


MASKED = "masked image modelling"  # as a task
PRETRAINING_FOLDER = "pretraining"
PRETRAINING_CONFIG = f"{PRETRAINING_FOLDER}/config.json"  # which is there if the whole pre-training model is
PRETRAINED = f"pre-trained by {MASKED}"
DETECTOR_TYPE = "a2mim_detector"
ENCODER_FIELDS = (
    *("architecture", "model_args", "image_size", "num_channels", "image_mean", "image_std", "crop_pct"),
    *STORED_FIELDS,
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
    def weights(self) -> Weights:
        """As they are stored."""
        return read_weights(self.source, self.subfolder, **self.hub_kwargs)

    def encoder_weights(self) -> Weights:
        """Those of the encoder under timm's names, with those of timm's classifier if it has one. A segmenter that was
        exported for transformers alone lacks what follows the last map that it reads.

        Raises:
            ValueError: naming `model_name_or_path`, if they cannot be read.
        """
        return self.found.weights

    def found_for(self, config: A2MIMConfig) -> tuple[FoundEncoder, A2MIMConfig]:
        """`found`, and what encoder it is for.

        Args:
            config: of the encoder that is to get them.
        """
        return self.found, self.config

    @functools.cached_property
    def found(self) -> FoundEncoder:
        """The weights of the encoder, and what else is stored.

        Raises:
            ValueError: naming `model_name_or_path`, if they cannot be read.
        """
        if is_timm(self.data):
            return self._found_timm()
        if self.is_plain_backbone:
            return self._found_backbone()
        if self.data.get("model_type") in LAYOUTS:
            weights, left_over = timm_weights(self.data, self.weights)
            return FoundEncoder(weights, left_over=left_over)
        start = next((name.index(INSIDE) + len(INSIDE) for name in self.weights if INSIDE in name), len("encoder."))
        prefix = next((name[:start] for name in self.weights if name[:start].endswith("encoder.")), None)
        if prefix is None:
            raise ValueError(f"model_name_or_path: {self.place} holds no weights of an encoder")
        found = {name[start:]: tensor for name, tensor in self.weights.items() if name.startswith(prefix)}
        return FoundEncoder(found, prefix, [name for name in self.weights if not name.startswith(prefix)])

    def _found_timm(self) -> FoundEncoder:
        plan = plan_encoder(self.config, for_masking=False)
        needed = {name for name in plan.names if not name.endswith("num_batches_tracked")}
        if needed <= self.weights.keys():
            return FoundEncoder(self.weights)
        try:  # timm's own repositories keep some under their authors' names
            return find_encoder(self.weights, build_on_meta(plan.create_args), plan.create_args)
        except ValueError as error:
            raise ValueError(f"model_name_or_path: {self.place}: {error}") from error

    def _found_backbone(self) -> FoundEncoder:
        found, stored = {}, {name for name in self.weights if name.startswith("backbone.")}
        left_over = [name for name in self.weights if name not in stored]
        for name in plan_encoder(self.config, for_masking=False).names:
            for other in stored & {f"backbone.{other}" for other in backbone_names(name)}:
                found[name] = self.weights[other]
                stored.discard(other)
        if stored:  # what is left is no weight of this encoder
            raise ValueError(
                f"model_name_or_path: {self.place} holds {min(stored)}, which no {self.config.architecture} has"
            )
        return FoundEncoder(found, "backbone.", left_over)

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
        config = _backbone_config(source, subfolder, data, **hub_kwargs)
        if config is not None:
            kind = "segmenter" if model_type == "upernet" else (data.get("architectures") or [model_type])[0]
            return model(kind=kind, config=config, names=names)
    if not is_timm(data):
        config = _transformers_config(source, subfolder, data, **hub_kwargs)
        classifies = "ForImageClassification" in (data.get("architectures") or [""])[0]
        return model(kind=f"{model_type} of transformers", config=config, names=names if classifies else None)
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


def _backbone_config(source: str, subfolder: str, data: dict, **hub_kwargs: Any) -> A2MIMConfig | None:
    """That of the encoder in a model of transformers, `None` if it is none of timm's."""
    backbone = data["backbone_config"]
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
    fields |= stored_fields(data)
    fields |= {"architecture": backbone["backbone"], "num_channels": backbone.get("num_channels", 3)}
    return A2MIMConfig.for_encoder(**fields, out_indices=backbone["out_indices"])


def _transformers_config(source: str, subfolder: str, data: dict, **hub_kwargs: Any) -> A2MIMConfig:
    """That of the encoder in a model of transformers which is also a network of timm."""
    name = f"{subfolder}/preprocessor_config.json" if subfolder else "preprocessor_config.json"
    without = "image_mean and image_std are the usual ones of such models"
    known = data.get("model_type") in LAYOUTS
    path = find_optional_file(source, name, without, **hub_kwargs) if known else None
    fields = encoder_fields(data, None if path is None else json.loads(path.read_text(encoding="utf-8")))
    if fields is None:
        kind = data.get("model_type")
        raise ValueError(
            f"model_name_or_path: {source} is no timm checkpoint: its config.json names no architecture or no "
            f"input_size{f', it is that of a {kind} of transformers' if kind else ''}; of transformers, "
            f"{', '.join(LAYOUTS)} are known here"
        )
    return A2MIMConfig.for_encoder(**fields)


def backbone_names(name: str) -> tuple[str, ...]:
    """How transformers' `TimmBackbone` may call a weight of a timm encoder: what timm's features_only does, `model.`
    before the name or its first two parts joined, depends on the architecture."""
    return f"_backbone.{name}", f"_backbone.model.{name}", f"_backbone.{name.replace('.', '_', 1)}"


def _square(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


def _hint(source: str) -> str:
    checkpoints = [path.name for path in Path(source).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    if not checkpoints:
        return ""
    newest = max(checkpoints, key=lambda name: (len(name), name))
    return f"; a run that has not ended left checkpoints there: name one, {Path(source, newest)}"
