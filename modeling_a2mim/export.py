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
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import get_token
from safetensors.torch import save_file

from .cards import CONFUSION, CURVE, EXAMPLE, PICTURE, eval_results, model_card
from .configuration_a2mim import A2MIMConfig, is_timm
from .encoders.tracing import NoValues
from .hub import SHOWING_DATA, push_folder
from .methods import method_of
from .modeling_a2mim import A2MIMForPreTraining, A2MIMModel, A2MIMPreTrainedModel, without_sharing
from .models.classifier import A2MIMForImageClassification
from .models.linear_probe import LinearProbe
from .pretrained import (
    CLASSIFIERS,
    MASKED,
    PRETRAINED,
    PRETRAINING_CONFIG,
    PRETRAINING_FOLDER,
    WEIGHTS_FILES,
    Pretrained,
    find_file,
    open_pretrained,
)
from .records import RECORD_FILE, earlier_runs
from .utils.files import sync
from .utils.plotting import loss_curve


EVAL_RESULTS_FOLDER = ".eval_results"
SCRATCH = ".export-"
SHOWS = " *"  # behind the name of a picture of images of the data, in a list of files
# Keys of timm's pretrained_cfg that still hold for new weights (where they came from does not).
KEPT_CFG = ("pool_size", "first_conv", "classifier", "crop_mode", "fixed_input_size")

logger = logging.getLogger("a2mim")


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
    beside = [place / PRETRAINING_CONFIG for place in (scratch, folder) if (place / PRETRAINING_CONFIG).is_file()]
    pretraining = A2MIMConfig.from_pretrained(beside[0].parent) if beside else None
    model_card(model, record, repo_id, files, pretraining).save(scratch / "README.md")


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
    """The full pre-training model of an exported folder or Hub repository (its `pretraining/`), or of a folder or
    repository that `save_pretrained` or a checkpoint wrote. `hub_kwargs`: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: if there is none, or the repository could not be asked.
    """
    model, place = _read_pretraining_model(folder_or_repo, **hub_kwargs)
    logger.info("weights: the pre-training model in %s", place)
    return model


def _read_pretraining_model(folder_or_repo: str, **hub_kwargs) -> tuple[A2MIMForPreTraining, str]:
    """The model, and where it is."""
    nested = find_file(folder_or_repo, PRETRAINING_CONFIG, **hub_kwargs) is not None
    where = {"subfolder": PRETRAINING_FOLDER if nested else "", **hub_kwargs}
    try:
        found = open_pretrained(folder_or_repo, **where)
        if found.data.get("model_type") != A2MIMConfig.model_type or found.kind != "pre-training model":
            raise OSError(
                f"it holds {found.what}, not an A2MIMForPreTraining, which run_pretraining.py leaves in pretraining/"
            )
        prefix = f"{where['subfolder']}/" if nested else ""
        if not any(find_file(folder_or_repo, prefix + name, **hub_kwargs) for name in WEIGHTS_FILES):
            raise OSError(f"it has no {prefix}{WEIGHTS_FILES[0]}")
        return A2MIMForPreTraining.from_pretrained(folder_or_repo, config=found.config, **where), found.place
    except OSError as error:
        raise ValueError(f"{folder_or_repo}: no pre-training model there: {error}") from error


def origin_of(start: Pretrained) -> str:
    """What a run starts from, in words, for its record: "an encoder pre-trained by masked image modelling"."""
    try:
        beside = find_file(start.source, PRETRAINING_CONFIG, **start.hub_kwargs) is not None
    except ValueError:  # not to be asked now: nothing is claimed
        beside = False
    return f"{start.what} {PRETRAINED}" if beside and start.kind == "encoder" else start.what


def pretraining_beside(start: Pretrained) -> A2MIMForPreTraining | None:
    """The pre-training model that an encoder was, to be kept beside what it becomes; `None`, and the reason in the
    log, if it has one that cannot be had."""
    try:
        if start.kind != "pre-training model" and not find_file(start.source, PRETRAINING_CONFIG, **start.hub_kwargs):
            return None
        return _read_pretraining_model(start.source, **start.hub_kwargs)[0]
    except ValueError as error:
        logger.warning("the result will hold no %s/, as that of %s: %s", PRETRAINING_FOLDER, start.source, error)
        return None


def load_encoder(folder_or_repo: str, **hub_kwargs) -> tuple[A2MIMConfig, dict[str, torch.Tensor]]:
    """The encoder in the root of a folder or repository, whatever model it is part of (`pretrained`): its
    configuration and its weights. `hub_kwargs`: `revision`, `token`.

    Raises:
        ValueError: naming `model_name_or_path`, if there is no model of this package or of timm, or it could not be
            asked for.
    """
    found = open_pretrained(folder_or_repo, **hub_kwargs)
    return found.config, found.encoder_weights()


def load_classifier(folder_or_repo: str, **hub_kwargs) -> A2MIMForImageClassification | LinearProbe:
    """A classifier with its label names, such as `run_finetune.py` exports or leaves in a checkpoint, or any of
    timm's; transformers knows the names of those that were trained on ImageNet. `hub_kwargs`: `revision`, `token`.

    Raises:
        ValueError: naming `model_name_or_path`, if there is none.
    """
    found = open_pretrained(folder_or_repo, **hub_kwargs)
    if found.kind not in CLASSIFIERS:
        raise ValueError(
            f"model_name_or_path: {folder_or_repo} holds {found.what}, and is no timm classifier with label_names"
        )
    logger.info("weights: %s", found.describe("with its head"))
    if not is_timm(found.data):
        kind = LinearProbe if found.kind == "linear probe" else A2MIMForImageClassification
        return kind.from_pretrained(folder_or_repo, subfolder=found.subfolder, **hub_kwargs).eval()
    config = A2MIMConfig.from_dict(found.data)
    config.id2label = dict(enumerate(found.names))
    config.label2id = {name: i for i, name in config.id2label.items()}
    config.problem_type = found.data.get("problem_type")
    model = A2MIMForImageClassification(config)
    try:
        model.a2mim.encoder.load_state_dict(found.weights)
    except RuntimeError as error:
        raise ValueError(f"model_name_or_path: its weights do not fit {config.architecture}: {error}") from error
    return model.eval()


def load_into_encoder(model: A2MIMPreTrainedModel, weights: dict[str, torch.Tensor], partly: bool = False):
    """Give the encoder of a model the weights of another one; classifiers are left out, so that its own stays new.

    Args:
        model: that holds an `A2MIMModel` as `a2mim`.
        weights: under timm's names.
        partly: whether weights may be missing, as those that follow the last map which a segmenter reads.

    Raises:
        ValueError: if any other weight is missing, left over or of another shape.
    """
    encoder, names = model.a2mim.encoder, set(model.a2mim.plan.names)
    kept = {name: value for name, value in weights.items() if name in names}
    new = set()
    pooled_norm = {name for name in names if name.startswith("fc_norm.")}
    if pooled_norm and not pooled_norm & set(weights):
        # Mean pooling: a new norm after it takes the place of the old one (MAE, BEiT).
        new, weights = pooled_norm, {k: v for k, v in weights.items() if k not in ("norm.weight", "norm.bias")}
    over = [name for name in weights if name not in names]
    if over:
        over = sorted(set(over) - classifier_names(model.a2mim))
    try:
        missing, _ = encoder.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise ValueError(f"model_name_or_path: its weights do not fit {model.config.architecture}: {error}") from error
    # Some classifiers have norms of their own, which no encoder without classes has (LeViT, RepViT).
    wrong = [*over, *(name for name in missing if name in names - new and not partly)]
    if wrong:
        raise ValueError(f"model_name_or_path: weights missing or left over: {', '.join(wrong[:5])}")


def classifier_names(core: A2MIMModel) -> set[str]:
    """Names of what timm's classifier adds to the weights of an encoder."""
    with torch.device("meta"), NoValues():
        return set(core.plan.create(1).state_dict()) - core.plan.names


def read_record(folder: str) -> dict:
    """`training.json` of an exported folder, empty if it has none."""
    path = Path(folder, RECORD_FILE)
    return json.loads(path.read_text()) if path.is_file() else {}


def earlier_of(folder_or_repo: str | None, **hub_kwargs) -> list[dict]:
    """The runs (`records.earlier_runs`) behind the model in the root of a folder or Hub repository; without a
    `training.json`, of a pre-training model its method alone, and one that is not known where that cannot be had.
    `hub_kwargs`: `revision`, `token`."""
    try:
        path = None if folder_or_repo is None else find_file(folder_or_repo, RECORD_FILE, **hub_kwargs)
        record = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
        if folder_or_repo is not None and path is None:
            return _method_of_weights(folder_or_repo, **hub_kwargs)
    except ValueError as error:  # of the network, or of JSON
        logger.warning("the runs behind %s are not known: %s", folder_or_repo, error)
        return [{}]
    return earlier_runs(record) if isinstance(record, dict) and record else []


def _method_of_weights(folder_or_repo: str, **hub_kwargs) -> list[dict]:
    for name in (PRETRAINING_CONFIG, "config.json"):
        path = find_file(folder_or_repo, name, **hub_kwargs)
        data = {} if path is None else json.loads(path.read_text())
        if A2MIMForPreTraining.__name__ in (data.get("architectures") or ()):
            return [{"task": MASKED, "method": method_of(A2MIMConfig.from_dict(data))}]
    return []


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
    config = find_file(folder, "config.json") if Path(folder).is_dir() else None
    data = {} if config is None else json.loads(config.read_text())
    if data.get("model_type") != A2MIMConfig.model_type:
        return Path(folder)
    known = {c.__name__: c for c in (A2MIMForPreTraining, A2MIMForImageClassification, A2MIMModel)}
    model_class = next((known[name] for name in data.get("architectures") or () if name in known), A2MIMModel)
    return export_model(model_class.from_pretrained(folder).eval(), scratch)


if __name__ == "__main__":
    main()
