"""The folder that a user keeps and the Hub gets: a plain timm / transformers checkpoint that needs nothing of ours.

config.json, model.safetensors   the encoder or classifier, in the format of timm and of transformers' TimmWrapper; or
                                 a segmenter or detector in that of transformers, with preprocessor_config.json
README.md                        the model card: how it was made, what it is worth, how to load it
training.json, loss_curve.png    how it was made, if that is known
.eval_results/                   what was measured on datasets of the Hub
pretraining/                     the full A2MIMForPreTraining model (token, decoder, settings), to go on training
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from transformers import BaseImageProcessor, PreTrainedModel

from ..configuration_a2mim import A2MIMConfig
from ..evaluation.decisions import FIELD, DecisionRule
from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel
from ..models.classifier import A2MIMForImageClassification
from ..pretrained import PRETRAINING_CONFIG, PRETRAINING_FOLDER
from ..utils.files import atomic_files, files_in, write_json
from ..utils.plotting import loss_curve
from ..utils.value_range import STORED
from ..utils.weights import without_sharing
from .eval_results import eval_results
from .filenames import (
    CONFUSION,
    CURVE,
    EVAL_RESULTS_FOLDER,
    EXAMPLE,
    PICTURE,
    PRECISION_RECALL,
    PREDICTIONS,
    RECORD_FILE,
    ROC,
    RUNTIME_FILES,
)
from .model_card import DenseTask, dense_card, model_card


logger = logging.getLogger("a2mim")

# Keys of timm's pretrained_cfg that still hold for new weights (where they came from does not).
KEPT_CFG = ("pool_size", "first_conv", "classifier", "crop_mode", "fixed_input_size")
OURS = f'"model_type": "{A2MIMConfig.model_type}'  # in the config.json of what transformers alone cannot load


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
    """The config.json of a plain timm checkpoint with the encoder of `model`.

    timm's own `save_for_hf` would write size, mean, standard deviation, tag and licence of the weights that the
    architecture is published with, and no `model_type`, by which transformers finds its class.
    """
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
    if config.stored_images:
        result[STORED] = config.stored_images
    if model.num_classes:
        id2label: dict = config.id2label  # by numbers; transformers allows names too, as in JSON
        result["label_names"] = [id2label[i] for i in range(model.num_classes)]
        if config.problem_type not in (None, "single_label_classification"):
            result["problem_type"] = config.problem_type
        if (decision := DecisionRule.from_config(config)) is not None:
            result[FIELD] = decision.to_config()
    return result


def export_model(
    model: A2MIMForPreTraining | A2MIMForImageClassification | A2MIMModel,
    folder: str | os.PathLike,
    pretraining: A2MIMForPreTraining | None = None,
    record: dict | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write an encoder or classifier to `folder` as described at the top of this module; other files in it are left
    alone.

    Args:
        model: what becomes the root of the folder: an encoder, alone or of a pre-training model, or a classifier.
        folder: made if missing. Files appear complete or not at all; a kill leaves each as it was or as it will be.
        pretraining: what goes to `pretraining/`: by default `model` itself if it is a pre-training model; for a
            classifier, the model that it was fine-tuned from.
        record: how the model was made (see `record`), for its card.
        repo_id: its name on the Hub, for its card.

    Raises:
        ValueError: if `folder` is a file.
    """
    if pretraining is None and isinstance(model, A2MIMForPreTraining):
        pretraining = model
    core = model if isinstance(model, A2MIMModel) else model.a2mim
    with _exported_files(folder) as temporary:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in core.encoder.state_dict().items()}
        save_file(without_sharing(weights), temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", timm_config(core), indent=2)
        if pretraining is not None:
            pretraining.save_pretrained(temporary / PRETRAINING_FOLDER)
        _add_card(model, temporary, Path(folder), record, repo_id)
    return Path(folder)


def write_card(model, folder: str | os.PathLike, record: dict | None = None, repo_id: str | None = None):
    """Write the card and the record of a folder of `export_model` anew; arguments as there."""
    with _exported_files(folder) as temporary:
        _add_card(model, temporary, Path(folder), record, repo_id)


def say_outdated(folder: str | os.PathLike):
    """Warn of what `a2mim export` made of a model that is another one now."""
    if found := [name for name in RUNTIME_FILES if Path(folder, name).is_file()]:
        logger.warning(
            "%s: what %s holds was made of the model before this; `a2mim export --overwrite` makes it anew",
            folder,
            ", ".join(found),
        )


def export_dense_model(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    task: DenseTask,
    processor: BaseImageProcessor,
    record: dict,
    repo_id: str | None = None,
    saved: PreTrainedModel | None = None,
):
    """Write a model for segmentation or detection to `folder`; other files in it are left alone.

    Args:
        model: that holds an A2MIMModel, for its card.
        folder, record, repo_id: as for `export_model`.
        task: what the model is for.
        processor: the image processor, which is written beside the model.
        saved: the model in the form that users load; `model`, if not given.
    """
    with _exported_files(folder) as temporary:
        (model if saved is None else saved).save_pretrained(temporary)
        processor.save_pretrained(temporary)
        _add_dense_card(model, temporary, Path(folder), task, record, repo_id)


def write_dense_card(
    model: PreTrainedModel, folder: str | os.PathLike, task: DenseTask, record: dict, repo_id: str | None = None
):
    """Write the card and the record of a folder of `export_dense_model` anew; arguments as there."""
    with _exported_files(folder) as temporary:
        _add_dense_card(model, temporary, Path(folder), task, record, repo_id)


@contextlib.contextmanager
def _exported_files(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder whose files become those of `folder`; what an earlier export left there and this one does not
    replace is removed."""
    folder = Path(folder)
    with atomic_files(folder) as temporary:
        yield temporary
        for weights in temporary.rglob("*.safetensors"):  # which safetensors makes readable for the owner only
            weights.chmod((temporary / "README.md").stat().st_mode)
        new = files_in(temporary)
    old = [folder / RECORD_FILE, folder / CURVE, *(folder / EVAL_RESULTS_FOLDER).glob("*.yaml")]
    if PRETRAINING_CONFIG in new:  # weights in more or fewer files than before
        old += (folder / PRETRAINING_FOLDER).iterdir()
    for path in old:
        if path.relative_to(folder).as_posix() not in new and path.is_file():
            path.unlink()


def _add_card(model, temporary: Path, folder: Path, record: dict | None, repo_id: str | None):
    files = _add_record(temporary, folder, record)
    place = _holding(PRETRAINING_CONFIG, temporary, folder)
    pretraining = None if place is None else A2MIMConfig.from_pretrained(place / PRETRAINING_FOLDER)
    model_card(model, record, repo_id, files, pretraining).save(temporary / "README.md")


def _add_dense_card(
    model: PreTrainedModel, temporary: Path, folder: Path, task: DenseTask, record: dict, repo_id: str | None
):
    files = _add_record(temporary, folder, record)
    plain = OURS not in (_holding("config.json", temporary, folder) / "config.json").read_text()
    dense_card(model, task, record, repo_id, files, plain).save(temporary / "README.md")


def _add_record(temporary: Path, folder: Path, record: dict | None) -> set[str]:
    """Write the record and what is drawn and published of it; returns the files that a card may show."""
    if record is not None:
        write_json(temporary / RECORD_FILE, record)
        if record.get("log"):
            loss_curve(record["log"], temporary / CURVE, (record.get("monitor") or {}).get("log", ()))
    for name, text in eval_results(record).items():
        (temporary / EVAL_RESULTS_FOLDER).mkdir(exist_ok=True)
        (temporary / EVAL_RESULTS_FOLDER / name).write_text(text)
    kept = (PICTURE, EXAMPLE, CONFUSION, ROC, PRECISION_RECALL, PREDICTIONS, PRETRAINING_CONFIG)
    return {*files_in(temporary), *(name for name in kept if (folder / name).is_file())}


def _holding(name: str, *folders: Path) -> Path | None:
    """The first of the folders that has a file of this name."""
    return next((folder for folder in folders if (folder / name).is_file()), None)
