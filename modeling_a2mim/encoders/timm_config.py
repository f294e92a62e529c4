"""The config.json of a timm checkpoint: what it says, as fields of `A2MIMConfig`."""

from typing import Any

import timm

from ..utils.value_range import stored_fields
from .meta import build_on_meta


OUR_TYPE = "a2mim"  # what `model_type` begins with in files of this package
# What the other arguments of `timm.create_model` are set from. Inside `model_args` they would be given twice, or read
# files that whoever wrote the configuration chose.
RESERVED_MODEL_ARGS = {
    "num_classes": "num_labels",
    "in_chans": "num_channels",
    "img_size": "image_size",
    "model_name": "architecture",
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"), "from_pretrained"
    ),
    "features_only": "output_hidden_states",
}


def is_timm(data: dict[str, Any]) -> bool:
    """Whether a config.json is that of a timm checkpoint: one of timm, of transformers' TimmWrapper, or an export."""
    ours = str(data.get("model_type")).startswith(OUR_TYPE)
    return not ours and "architecture" in data and "input_size" in (data.get("pretrained_cfg") or data)


def fields_of_timm(data: dict[str, Any]) -> dict[str, Any]:
    """What the config.json of a timm checkpoint says, as fields of `A2MIMConfig`, with `id2label` if it names classes.
    Where the two disagree, the arguments that the model was made with hold, not those of the weights it came from."""
    cfg, args = data.get("pretrained_cfg") or data, dict(data.get("model_args") or {})
    channels, *size = cfg["input_size"]
    made_for, channels = args.pop("img_size", None), args.pop("in_chans", None) or channels
    args.pop("num_classes", None)  # which is that of the root of the file
    if args.get("global_pool") == "":  # features that are not pooled, which a classifier would need
        del args["global_pool"]
    if made_for is not None and _is_dynamic(data["architecture"], args):
        args["dynamic_img_size"] = False  # else it would be built, with other positions, for the size of its name
    height, width = (made_for, made_for) if isinstance(made_for, int) else made_for or size
    fields = {
        "architecture": without_tag(data["architecture"]),
        "model_args": args,
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
    }
    fields |= stored_fields(data)
    if cfg.get("crop_pct"):
        fields["crop_pct"] = cfg["crop_pct"]
    for name in ("mean", "std"):
        values = list(cfg.get(name) or ())
        if values and len(values) != channels:  # as timm does for other channels than the weights were made for
            values = [sum(values) / len(values)] * channels
        fields[f"image_{name}"] = values or None
    names = data.get("label_names") or cfg.get("label_names") or ()
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    if data.get("num_classes") and len(names) == data["num_classes"]:
        fields["id2label"] = dict(enumerate(names))
        fields["label2id"] = {name: i for i, name in enumerate(names)}
    return fields


def _is_dynamic(architecture: Any, args: dict[str, Any]) -> bool:
    """Whether timm would build an encoder that resamples its positions in each forward."""
    if not timm.is_model(without_tag(architecture)) or RESERVED_MODEL_ARGS.keys() & args.keys():
        return False  # which is refused elsewhere
    encoder = build_on_meta({"model_name": without_tag(architecture), **args})
    return bool(getattr(encoder, "dynamic_img_size", False))


def without_tag(name: Any) -> Any:
    """The name of an architecture in a file, which has weights of its own, without the tag of timm's weights."""
    return name.partition(".")[0] if isinstance(name, str) and timm.is_model(name) else name
