"""The folder that a user keeps and the Hub gets: a plain timm / transformers checkpoint that needs nothing of ours.

config.json, model.safetensors   the encoder or classifier, in the format of timm and of transformers' TimmWrapper
README.md                        the model card: how it was made, what it is worth, how to load it
training.json, loss_curve.png    how it was made, if that is known
.eval_results/                   what was measured on datasets of the Hub
pretraining/                     the full A2MIMForPreTraining model (token, decoder, settings), to go on training

    python -m modeling_a2mim.export FOLDER org/name [--private] [--revision BRANCH] [--dry_run]

uploads such a folder, or a checkpoint of a run, which is exported first.
"""

import argparse
import copy
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import get_token, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors.torch import load_file, save_file
from transformers import TimmWrapperConfig

from .analysis.curves import loss_curve
from .cards import CONFUSION, CURVE, EXAMPLE, PICTURE, PRETRAINING_CONFIG, eval_results, model_card
from .checkpoints import sync
from .configuration_a2mim import A2MIMConfig
from .encoders import classifier_parameters
from .hub import SHOWING_DATA, push_folder
from .modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel, without_sharing
from .records import RECORD_FILE, earlier_runs


PRETRAINING_FOLDER = "pretraining"
EVAL_RESULTS_FOLDER = ".eval_results"
SCRATCH = ".export-"
SHOWS = " *"  # behind the name of a picture of images of the data, in a list of files
# Keys of timm's pretrained_cfg that still hold for new weights (where they came from does not).
KEPT_CFG = ("pool_size", "first_conv", "classifier", "crop_mode", "fixed_input_size")


def timm_pretrained_cfg(model: A2MIMModel) -> dict:
    """What timm, `AutoImageProcessor` and the evaluation here read image size and normalisation from."""
    config = model.config
    original = getattr(model.encoder, "pretrained_cfg", None) or {}
    return {
        "input_size": [config.num_channels, *config.input_size],
        "interpolation": "bicubic",
        "crop_pct": config.crop_pct,
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
        if config.problem_type not in (None, "single_label_classification"):
            result["problem_type"] = config.problem_type
    return result


def export_model(
    model: A2MIMForPreTraining | A2MIMForImageClassification | A2MIMModel,
    folder: str | os.PathLike,
    pretraining: A2MIMForPreTraining | None = None,
    record: dict | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write `model` to `folder` as described at the top of this module; other files in it are left alone.

    Args:
        model: what becomes the root of the folder: an encoder, alone or of a pre-training model, or a classifier.
        folder: made if missing. Files appear complete or not at all; a kill leaves each as it was or as it will be.
        pretraining: what goes to `pretraining/`: by default `model` itself if it is a pre-training model; for a
            classifier, the model that it was fine-tuned from.
        record: how the model was made (`records`), for its card.
        repo_id: its name on the Hub, for its card.

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
        core = model if isinstance(model, A2MIMModel) else model.a2mim
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in core.encoder.state_dict().items()}
        save_file(without_sharing(weights), scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "config.json").write_text(json.dumps(timm_config(core), indent=2) + "\n")
        if pretraining is not None:
            pretraining.save_pretrained(scratch / PRETRAINING_FOLDER)
        _describe(model, scratch, folder, record, repo_id)
        for weights_file in scratch.rglob("*.safetensors"):  # which safetensors makes readable for the owner only
            weights_file.chmod((scratch / "config.json").stat().st_mode)
        replace_files(folder, scratch)
    return folder


def describe_folder(model, folder: str | os.PathLike, record: dict | None = None, repo_id: str | None = None):
    """Write the card of an exported folder anew, and its record; arguments as for `export_model`."""
    folder = Path(folder)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        _describe(model, Path(scratch), folder, record, repo_id)
        replace_files(folder, Path(scratch))


def _describe(model, scratch: Path, folder: Path, record: dict | None, repo_id: str | None):
    if record is not None:
        (scratch / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
        if record.get("log"):
            loss_curve(record["log"], scratch / CURVE)
    for name, text in eval_results(record).items():
        (scratch / EVAL_RESULTS_FOLDER).mkdir(exist_ok=True)
        (scratch / EVAL_RESULTS_FOLDER / name).write_text(text)
    files = {path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file()}
    files |= {name for name in (PICTURE, EXAMPLE, CONFUSION, PRETRAINING_CONFIG) if (folder / name).is_file()}
    model_card(model, record, repo_id, files).save(scratch / "README.md")


def replace_files(folder: Path, scratch: Path):
    """Move everything to its place, and remove what an earlier export left and this one does not replace."""
    new = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    for name in new:
        sync(scratch / name)
    for name in new:
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(scratch / name, folder / name)
    old = [folder / RECORD_FILE, folder / CURVE, *(folder / EVAL_RESULTS_FOLDER).glob("*.yaml")]
    if Path(PRETRAINING_CONFIG) in new:  # weights in more or fewer files than before
        old += (folder / PRETRAINING_FOLDER).iterdir()
    for path in old:
        if path.relative_to(folder) not in new and path.is_file():
            path.unlink()


def load_pretraining_model(folder_or_repo: str, **hub_kwargs) -> A2MIMForPreTraining:
    """The full pre-training model of an exported folder or Hub repository (its `pretraining/`), or of a folder that
    `save_pretrained` or a checkpoint wrote. `hub_kwargs`: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: if there is none.
    """
    nested = not Path(folder_or_repo).is_dir() or (Path(folder_or_repo) / PRETRAINING_FOLDER).is_dir()
    where = {"subfolder": PRETRAINING_FOLDER if nested else "", **hub_kwargs}
    try:
        data, _ = A2MIMConfig.get_config_dict(folder_or_repo, **where)
        kinds = data.get("architectures") or [data.get("architecture", "nothing known")]
        if data.get("model_type") != A2MIMConfig.model_type or A2MIMForPreTraining.__name__ not in kinds:
            raise OSError(f"it holds {', '.join(map(str, kinds))}, not an A2MIMForPreTraining")
        config = A2MIMConfig.from_pretrained(folder_or_repo, **where)
        return A2MIMForPreTraining.from_pretrained(folder_or_repo, config=config, **where)
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
    if _find_file(folder_or_repo, PRETRAINING_CONFIG, **hub_kwargs) is None:
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


def load_classifier(folder_or_repo: str, **hub_kwargs) -> A2MIMForImageClassification:
    """A classifier of timm with its label names, such as `run_finetune.py` exports; those of timm's own that were
    trained on ImageNet are known by transformers. `hub_kwargs`: `revision`, `token`.

    Raises:
        ValueError: naming `model_name_or_path`, if there is none.
    """
    config_file = _find_file(folder_or_repo, "config.json", **hub_kwargs)
    data = {} if config_file is None else json.loads(config_file.read_text())
    names = data.get("label_names")
    if not names and data.get("pretrained_cfg"):
        names = list(TimmWrapperConfig.from_dict(copy.deepcopy(data)).id2label.values())
    if not data.get("num_classes") or len(names or ()) != data["num_classes"]:
        raise ValueError(f"model_name_or_path: {folder_or_repo} is no timm classifier with label_names")
    config, weights = _load_timm_checkpoint(folder_or_repo, data, **hub_kwargs)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in config.id2label.items()}
    config.problem_type = data.get("problem_type")
    model = A2MIMForImageClassification(config)
    try:
        model.a2mim.encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"model_name_or_path: its weights do not fit {config.architecture}: {error}") from error
    return model.eval()


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
    # Some classifiers have norms of their own, which no encoder without classes has (LeViT, RepViT).
    wrong = [*unexpected, *(name for name in missing if name in model.a2mim.plan.names - new)]
    if wrong:
        raise ValueError(f"model_name_or_path: weights missing or left over: {', '.join(wrong[:5])}")


def resized_weights(
    weights: dict[str, torch.Tensor], before: A2MIMConfig, after: A2MIMModel
) -> dict[str, torch.Tensor]:
    """Weights of an encoder made for images of another size, as `after` takes them: timm resamples the positions of
    those that know any.

    Raises:
        ValueError: naming `image_size`, if timm does not know how.
    """
    new = after.encoder.state_dict()
    if before.input_size == after.config.input_size or all(
        value.shape == new[name].shape for name, value in weights.items() if name in new
    ):
        return weights
    encoder = A2MIMModel(before).encoder
    encoder.load_state_dict({name: value for name, value in weights.items() if name in encoder.state_dict()})
    sizes = [" x ".join(map(str, config.input_size)) for config in (before, after.config)]
    if not hasattr(encoder, "set_input_size"):
        raise ValueError(
            f"image_size: {before.architecture} was pre-trained at {sizes[0]} px, and timm does not know how to bring "
            f"its weights to {sizes[1]} px"
        )
    encoder.set_input_size(after.config.input_size)
    return encoder.state_dict()


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
        crop_pct=cfg.get("crop_pct") or 0.95,
    )
    return config, load_file(weights_file)


def read_record(folder: str) -> dict:
    """`training.json` of an exported folder, empty if it has none."""
    path = Path(folder, RECORD_FILE)
    return json.loads(path.read_text()) if path.is_file() else {}


def earlier_of(folder_or_repo: str | None, **hub_kwargs) -> list[dict]:
    """The runs (`records.earlier_runs`) behind the model of an exported folder or Hub repository; none without a
    `training.json` that can be had. `hub_kwargs`: `revision`, `token`."""
    try:
        path = None if folder_or_repo is None else _find_file(folder_or_repo, RECORD_FILE, **hub_kwargs)
        record = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # of the network, or of JSON
        return []
    return earlier_runs(record) if isinstance(record, dict) and record else []


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m modeling_a2mim.export", description="Upload an exported folder, or a checkpoint, to the Hub."
    )
    parser.add_argument("folder", help="the output folder of a script, or one of its checkpoints")
    parser.add_argument("repo_id", help="org/name, or name for your own account; made if missing")
    visibility = parser.add_mutually_exclusive_group()
    visibility.add_argument("--private", action="store_true", default=None, help="make a private repository")
    visibility.add_argument("--public", dest="private", action="store_false", help="make a public repository")
    parser.add_argument("--revision", help="branch, made if missing (default: main)")
    parser.add_argument("--commit_message", default="Upload model")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request")
    parser.add_argument("--license", help="of the weights, such as apache-2.0, for the model card")
    parser.add_argument("--base_model", help="what a classifier was fine-tuned from on the Hub, for the model card")
    parser.add_argument("--no_pictures", action="store_true", help="leave out pictures that show images of the data")
    parser.add_argument("--dry_run", action="store_true", help="list the files and stop")
    args = vars(parser.parse_args(argv))
    folder, dry_run = args.pop("folder"), args["dry_run"]
    metadata = {name: value for name in ("license", "base_model") if (value := args.pop(name)) is not None}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            exported = _exported(folder, Path(scratch) / "export")
            done = push_folder(exported, metadata=metadata, pictures_of_data=not args.pop("no_pictures"), **args)
            if dry_run:
                sizes = [(name, (exported / name).stat().st_size) for name in done]
                lines = [f"{size:>15,} {name}{SHOWS if name in SHOWING_DATA else ''}" for name, size in sizes]
                lines.append(f"{sum(size for _, size in sizes):>15,} bytes would go to {args['repo_id']}")
                if any(name in SHOWING_DATA for name in done):
                    lines.append("* shows images of the data: --no_pictures leaves it out")
                print("\n".join(lines))
            else:
                print(done.pr_url or done.commit_url)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    except Exception as error:  # of the network: the kinds differ between releases of huggingface_hub
        hint = "" if get_token() else " (there is no token: log in with `hf auth login`)"
        parser.exit(2, f"error: {args['repo_id']}: {type(error).__name__}: {error}{hint}\n")


def _exported(folder: str, scratch: Path) -> Path:
    """`folder` itself if it is an export; a checkpoint of ours is exported to `scratch`."""
    config = _find_file(folder, "config.json") if Path(folder).is_dir() else None
    data = {} if config is None else json.loads(config.read_text())
    if data.get("model_type") != A2MIMConfig.model_type:
        return Path(folder)
    known = {c.__name__: c for c in (A2MIMForPreTraining, A2MIMForImageClassification, A2MIMModel)}
    model_class = next((known[name] for name in data.get("architectures") or () if name in known), A2MIMModel)
    return export_model(model_class.from_pretrained(folder).eval(), scratch)


if __name__ == "__main__":
    main()
