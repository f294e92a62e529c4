"""The folder that a user keeps and the Hub gets: a plain timm / transformers checkpoint that needs nothing of ours.

config.json, model.safetensors   the encoder or classifier, in the format of timm and of transformers' TimmWrapper
README.md                        the model card: how it was made, what it is worth, how to load it
training.json, loss_curve.png    how it was made, if that is known
.eval_results/                   what was measured on datasets of the Hub
pretraining/                     the full A2MIMForPreTraining model (token, decoder, settings), to go on training

    python -m modeling_a2mim.export FOLDER org/name [--private] [--revision BRANCH] [--dry_run]

uploads such a folder, or a checkpoint of a run, which is exported first.
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from ..configuration_a2mim import A2MIMConfig
from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel
from ..models.classifier import A2MIMForImageClassification
from ..pretrained import (
    PRETRAINING_CONFIG,
    PRETRAINING_FOLDER,
)
from ..utils.files import sync
from ..utils.plotting import loss_curve
from ..utils.weights import without_sharing
from .filenames import CONFUSION, CURVE, EVAL_RESULTS_FOLDER, EXAMPLE, PICTURE, RECORD_FILE
from .model_card import eval_results, model_card


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
