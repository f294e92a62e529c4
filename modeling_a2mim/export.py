"""The folder that a user keeps and the Hub gets: a plain timm / transformers checkpoint that needs nothing of ours.

config.json, model.safetensors   the encoder or classifier, in the format of timm and of transformers' TimmWrapper
README.md                        how to load it
pretraining/                     the full A2MIMForPreTraining model (token, decoder, settings), to go on training
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors.torch import load_file, save_file

from .checkpoints import sync
from .configuration_a2mim import A2MIMConfig
from .encoders import classifier_parameters
from .modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel, without_sharing


PRETRAINING_FOLDER = "pretraining"
# Everything that may leave this machine; never a pickle, an optimiser state or the training arguments.
UPLOADED_FILES = ["config.json", "model.safetensors", "README.md", "*.png", f"{PRETRAINING_FOLDER}/*"]
SCRATCH = ".export-"
# Keys of timm's pretrained_cfg that still hold for new weights (where they came from does not).
KEPT_CFG = ("pool_size", "first_conv", "classifier", "crop_mode", "fixed_input_size")


def timm_pretrained_cfg(model: A2MIMModel) -> dict:
    """What timm, `AutoImageProcessor` and the evaluation here read image size and normalisation from."""
    config = model.config
    original = getattr(model.encoder, "pretrained_cfg", None) or {}
    return {
        "input_size": [config.num_channels, *config.input_size],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "mean": list(config.image_mean),
        "std": list(config.image_std),
        **{key: original[key] for key in KEPT_CFG if key in original},
    }


def timm_config(model: A2MIMModel) -> dict:
    """The config.json of a plain timm checkpoint with the encoder of `model`."""
    config = model.config
    args = {key: value for key, value in model.plan.create_args.items() if key != "model_name"}
    result = {
        "architecture": config.architecture,
        "model_type": "timm_wrapper",
        "num_classes": model.num_classes,
        "num_features": model.encoder.num_features,
        "model_args": args,
        "pretrained_cfg": timm_pretrained_cfg(model),
    }
    if model.num_classes:
        result["label_names"] = [config.id2label[i] for i in range(model.num_classes)]
    return result


def export_model(
    model: A2MIMForPreTraining | A2MIMForImageClassification,
    folder: str | os.PathLike,
    pretraining: A2MIMForPreTraining | None = None,
) -> Path:
    """Write `model` to `folder` as described at the top of this module; other files in it are left alone.

    Args:
        model: what becomes the root of the folder: the encoder of a pre-training model, or a whole classifier.
        folder: made if missing. Files appear complete or not at all; a kill leaves each as it was or as it will be.
        pretraining: what goes to `pretraining/`: by default `model` itself if it is a pre-training model; for a
            classifier, the model that it was fine-tuned from.

    Raises:
        ValueError: if `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder to export to")
    if pretraining is None and isinstance(model, A2MIMForPreTraining):
        pretraining = model
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{SCRATCH}*"):  # of a process that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        scratch = Path(scratch)
        core = model.a2mim
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in core.encoder.state_dict().items()}
        save_file(without_sharing(weights), scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "config.json").write_text(json.dumps(timm_config(core), indent=2) + "\n")
        (scratch / "README.md").write_text(_card(model, has_picture=(folder / "reconstruction.png").exists()))
        if pretraining is not None:
            pretraining.save_pretrained(scratch / PRETRAINING_FOLDER)
        for weights_file in scratch.rglob("*.safetensors"):  # which safetensors makes readable for the owner only
            weights_file.chmod((scratch / "config.json").stat().st_mode)
        new = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
        for name in new:
            sync(scratch / name)
        for name in new:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(scratch / name, folder / name)
        if pretraining is not None:  # weights in more or fewer files than before
            for old in (folder / PRETRAINING_FOLDER).iterdir():
                if old.relative_to(folder) not in new and old.is_file():
                    old.unlink()
    return folder


def load_pretraining_model(folder_or_repo: str, **hub_kwargs) -> A2MIMForPreTraining:
    """The full pre-training model of an exported folder or Hub repository (its `pretraining/`), or of a folder that
    `save_pretrained` or a checkpoint wrote. `hub_kwargs`: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: if there is none.
    """
    nested = not Path(folder_or_repo).is_dir() or (Path(folder_or_repo) / PRETRAINING_FOLDER).is_dir()
    try:
        config = A2MIMConfig.from_pretrained(
            folder_or_repo, subfolder=PRETRAINING_FOLDER if nested else "", **hub_kwargs
        )
        if A2MIMForPreTraining.__name__ not in (config.architectures or ()):
            raise OSError(f"it holds a {config.architectures}, not an A2MIMForPreTraining")
        return A2MIMForPreTraining.from_pretrained(
            folder_or_repo, config=config, subfolder=PRETRAINING_FOLDER if nested else "", **hub_kwargs
        )
    except OSError as error:
        raise ValueError(f"{folder_or_repo}: no pre-training model there: {error}") from error


def load_encoder(
    folder_or_repo: str, **hub_kwargs
) -> tuple[A2MIMForPreTraining | None, tuple[A2MIMConfig, dict[str, torch.Tensor]]]:
    """An encoder to fine-tune: the pre-training model of an exported folder or repository, if there is one, and the
    encoder's configuration and weights. Any timm model on the Hub will do. `hub_kwargs`: `revision`, `token`.

    Raises:
        ValueError: if there is neither an A2MIM model nor a timm checkpoint with safetensors weights.
    """
    if _find_file(folder_or_repo, f"{PRETRAINING_FOLDER}/config.json", **hub_kwargs) is None:
        config_file = _find_file(folder_or_repo, "config.json", **hub_kwargs)
        if config_file is None:
            raise ValueError(f"model_name_or_path: {folder_or_repo} holds no checkpoint, it has no config.json")
        data = json.loads(config_file.read_text())
        if data.get("model_type") != A2MIMConfig.model_type:
            return None, _load_timm_checkpoint(folder_or_repo, data, **hub_kwargs)
        if A2MIMForPreTraining.__name__ not in (data.get("architectures") or ()):  # a classifier of ours
            encoder = A2MIMModel.from_pretrained(folder_or_repo, **hub_kwargs)
            return None, (encoder.config, encoder.encoder.state_dict())
    model = load_pretraining_model(folder_or_repo, **hub_kwargs)
    return model, (model.config, model.a2mim.encoder.state_dict())


def load_into_encoder(model: A2MIMForImageClassification, weights: dict[str, torch.Tensor]):
    """Give a classifier the weights of a pre-trained encoder; its own classifier stays new.

    Raises:
        ValueError: if any other weight is missing, left over or of another shape.
    """
    encoder = model.a2mim.encoder
    new = classifier_parameters(encoder)
    pooled_norm = {name for name in encoder.state_dict() if name.startswith("fc_norm.")}
    if pooled_norm:  # mean pooling: a new norm after it takes the place of the old one (MAE, BEiT)
        new |= pooled_norm
        weights = {k: v for k, v in weights.items() if k not in ("norm.weight", "norm.bias")}
    weights = {k: v for k, v in weights.items() if k not in new}
    try:
        missing, unexpected = encoder.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"model_name_or_path: its weights do not fit {model.config.architecture}: {error}") from error
    wrong = [*unexpected, *(name for name in missing if name not in new)]
    if wrong:
        raise ValueError(f"model_name_or_path: weights missing or left over: {', '.join(wrong[:5])}")


def _find_file(folder_or_repo: str, name: str, **hub_kwargs) -> Path | None:
    """A file of a folder or Hub repository, `None` if it has no such file."""
    if Path(folder_or_repo).is_dir():
        path = Path(folder_or_repo) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(folder_or_repo, name, **hub_kwargs))
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"model_name_or_path: {folder_or_repo} cannot be read: {error}") from error


def _load_timm_checkpoint(folder_or_repo: str, data: dict, **hub_kwargs) -> tuple[A2MIMConfig, dict]:
    weights_file = _find_file(folder_or_repo, "model.safetensors", **hub_kwargs)
    if weights_file is None:
        raise ValueError(f"model_name_or_path: {folder_or_repo} holds no weights, it has no model.safetensors")
    if "architecture" not in data or "input_size" not in (data.get("pretrained_cfg") or data):
        raise ValueError(
            f"model_name_or_path: {folder_or_repo} is no timm checkpoint: its config.json names no architecture "
            "or no input_size"
        )
    cfg = data.get("pretrained_cfg") or data
    channels, *size = cfg["input_size"]
    config = A2MIMConfig.for_encoder(
        architecture=data["architecture"],
        model_args={k: v for k, v in (data.get("model_args") or {}).items() if k not in ("img_size", "in_chans")},
        image_size=size,
        num_channels=channels,
        image_mean=list(cfg["mean"]),
        image_std=list(cfg["std"]),
    )
    return config, load_file(weights_file)


def _card(model, has_picture: bool) -> str:
    config = model.config
    classifier = isinstance(model, A2MIMForImageClassification)
    task = "image-classification" if classifier else "image-feature-extraction"
    auto = "AutoModelForImageClassification" if classifier else "AutoModel"
    height, width = config.input_size
    lines = [
        "---",
        "library_name: timm",
        f"pipeline_tag: {task}",
        "tags: [timm, transformers, a2mim, masked-image-modeling]",
        "---",
        "",
        f"# {config.architecture}, {'a classifier' if classifier else 'an encoder'} made with A2MIM",
        "",
        f"{config.architecture} for images of {height} x {width} px with {config.num_channels} channel(s)"
        + (f" and {config.num_labels} classes." if classifier else ", pre-trained by masked image modelling")
        + ("" if classifier else " ([A2MIM](https://arxiv.org/abs/2205.13943))."),
        "",
        "```python",
        f"from transformers import AutoImageProcessor, {auto}",
        "",
        'folder = "."  # this folder, or its name on the Hub',
        "processor = AutoImageProcessor.from_pretrained(folder)",
        f"model = {auto}.from_pretrained(folder)",
        "```",
        "",
        'In timm: `timm.create_model("local-dir:FOLDER", pretrained=True)`, or `"hf-hub:ORG/NAME"`.',
        f"`{PRETRAINING_FOLDER}/` holds the model with its mask token and decoder, for "
        f'`A2MIMForPreTraining.from_pretrained(folder, subfolder="{PRETRAINING_FOLDER}")` of the a2mim package.',
    ]
    if has_picture:
        lines += ["", "![original, masked, reconstruction, pasted](reconstruction.png)"]
    return "\n".join(lines) + "\n"
