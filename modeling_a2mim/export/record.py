"""What is known about how a model came to be: `training.json` beside it, from which its model card is written.

A record is a plain dict. A run of `A2MIMTrainer` fills in all that `describe_run` lists; a converted checkpoint knows
`published` numbers instead. Nothing in it names a path, a user or a machine of the network.
"""

import functools
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..arguments.training import data_seed
from ..evaluation.gauge import MORE_IS_BETTER
from ..pretrained import MASKED
from ..utils.files import finite
from .filenames import RECORD_FILE
from .methods import method_of


PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm")


PACE = ("images_per_second", "data_wait", "time_left")  # which differ from run to run
NOT_LOGGED = ("epoch", "total_flos", *PACE)

# What is kept of an earlier run; `origin` is what is said of a converted model instead.
KEPT: dict[str, type | tuple[type, ...]] = dict.fromkeys(("task", "method", "origin", "data", "recipe"), str)
KEPT |= dict.fromkeys(("steps", "epochs", "images", "total_batch_size", "learning_rate"), (int, float))


def hardware(device: torch.device, processes: int) -> str:
    """`4 x NVIDIA H100 80GB HBM3`, or `CPU (x86_64, 2 cores)`."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    return f"{processes} x {device.type}"


@functools.cache
def version(package: str) -> str:
    """The release of a package that is installed, whose metadata are read once and not for each checkpoint."""
    return metadata.version(package)


def versions() -> dict[str, str]:
    """The releases of Python and of the packages that results depend on."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def evaluation_of(log: list[dict], images: int | None) -> dict | None:
    """The last evaluation in a log, with its step and how many images it was made on; `None` if there was none.
    Without the figures of the gauge, which are of other images (`export.monitor`)."""
    for entry in reversed(log):
        if any(name.startswith("eval_") for name in entry):
            metrics = {k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}
            kept = {k: v for k, v in metrics.items() if not k.endswith(("runtime", "_per_second"))}
            kept = {k: v for k, v in kept.items() if k not in MORE_IS_BETTER}
            return {"step": entry["step"], "images": images, **kept}
    return None


class LastEvaluation(NamedTuple):
    """Of the evaluation that a trainer made last.

    Attributes:
        images: how many, `None` if that is not known.
        own: whether they are those of the trainer's `eval_dataset`, or it has none.
        after_training: whether training had ended, so that the weights are those that are exported.
    """

    images: int | None
    own: bool
    after_training: bool


def _evaluation(trainer, best: dict | None) -> dict | None:
    """The last evaluation of the weights that are exported: those of the best step, if there is one."""
    last, log = trainer.last_evaluation, trainer.state.log_history
    if best is not None and (last is None or not last.after_training):
        log = [entry for entry in log if entry["step"] <= best["step"]]
    found = evaluation_of(log, dataset_length(trainer.eval_dataset) if last is None else last.images)
    if found is None:
        return None
    step = {} if best is None else {"step": best["step"]}
    return {**found, **step, **({} if last is None or last.own else {"other_images": True})}


def regularisation(args) -> dict:
    """What was given of layer-wise decay, mixing, smoothing and averaging of weights."""
    names = ("layer_decay", "mixup", "cutmix", "label_smoothing_factor", "bce_loss", "model_ema_decay")
    values = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in values.items() if value}


def best_of(state, args) -> dict:
    """Of which step the weights are that a run with `load_best_model_at_end` ends with, and why."""
    name = args.metric_for_best_model.removeprefix("eval_")
    return {"step": state.best_global_step, "metric": name, "value": state.best_metric}


def earlier_runs(record: dict) -> list[dict]:
    """The `earlier` of a run that starts from a model with this record: in short, the runs that the model has behind
    it, the oldest first, its own last; `{}` for one that is not known."""
    known = record.get("earlier")
    # Of a file that others may have written.
    runs = [*(run for run in (known if isinstance(known, list) else ()) if isinstance(run, dict)), record]
    return [{k: run[k] for k, kind in KEPT.items() if isinstance(run.get(k), kind)} for run in runs]


def mean_loss(log: list[dict]) -> float | None:
    """Of the steps in a log, each of whose losses is the mean since the one before; `None` if it has none."""
    losses = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    before = [0, *(step for step, _ in losses)]
    total = sum(loss * (step - last) for (step, loss), last in zip(losses, before, strict=False))
    return total / losses[-1][0] if losses else None


def pretraining_runs(runs: list[dict]) -> list[dict]:
    """Of the runs behind the root of a folder (`earlier_runs`) those behind the pre-training model that lies beside
    it: up to the last one that pre-trained."""
    count = len(runs)
    while count and runs[count - 1].get("task", MASKED) != MASKED:
        count -= 1
    return runs[:count]


def dataset_length(dataset) -> int | None:
    """How many samples a dataset has; `None` for a stream, and for several datasets (a dict)."""
    counted = hasattr(dataset, "__len__") and not isinstance(dataset, dict)  # of several data sets
    return len(dataset) if counted else None


def _momenta(optimizer) -> dict:
    """The betas and the momentum that an optimiser has; its betas are `None` where it has none, or was never made."""
    group: dict = next(iter(getattr(optimizer, "param_groups", None) or ()), {})
    betas, momentum = group.get("betas"), group.get("momentum")
    return {
        "adam_betas": None if betas is None else [float(beta) for beta in betas],
        **({} if momentum is None else {"momentum": float(momentum)}),
    }


def _schedule(args) -> str:
    """What the learning rate follows, in words."""
    if args.lr_milestones:
        return f"times {args.lr_gamma:g} at {args.lr_milestones}"
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


def describe_run(trainer, provenance: dict) -> dict:
    """The record of a trainer's run so far.

    Args:
        trainer: an `A2MIMTrainer`.
        provenance: what the trainer cannot know: `task`, `datasets` and `base_model` (ids on the Hub), `data` (in
            words), `evaluated_on` (an id on the Hub), `evaluation_note`, `license`, `tags`, `example` (what
            example.png shows), and `earlier` (see `earlier_runs`).
    """
    args, state, resumption, dtype = trainer.args, trainer.state, trainer.resumption, trainer.model.dtype
    training = [entry for entry in state.log_history if finite(entry.get("loss")) is not None]
    scheduled = state.max_steps - resumption.schedule_start
    scale = getattr(getattr(trainer.train_dataset, "transform", None), "crop_scale", None)
    ended = args.load_best_model_at_end and state.best_global_step and not trainer.is_in_train
    best = best_of(state, args) if ended else None
    images = dataset_length(trainer.train_dataset)
    unknown = images is None or state.epoch is None  # of a stream, Trainer counts shares of `max_steps`
    record = {
        **provenance,
        **({"method": method_of(trainer.model.config)} if trainer.reconstructs else {}),
        "images": images,
        "steps": state.global_step,
        "epochs": None if unknown else round(state.epoch, 2),
        "recipe": None if args.recipe is None else Path(args.recipe).stem,
        "total_batch_size": args.step_batch_size,
        "processes": args.world_size,
        "optimizer": args.optimizer_name,
        "learning_rate": args.learning_rate,
        **_momenta(trainer.optimizer),
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "lr_scheduler_type": _schedule(args),
        "warmup_steps": None if trainer.own_schedule else args.get_warmup_steps(scheduled),
        "crop_scale": None if scale is None else list(scale),
        "regularisation": regularisation(args),
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else str(dtype).removeprefix("torch."),
        "seed": args.seed,
        "data_seed": data_seed(args),
        "hardware": hardware(args.device, args.world_size),
        "versions": versions(),
        **({} if best is None else {"best": best}),
        "evaluation": _evaluation(trainer, best),
        "log": [{k: v for k, v in entry.items() if k not in NOT_LOGGED} for entry in training],
        **({"resumed": resumption.history} if resumption.history else {}),
    }
    return finite(record)


def read_record(folder: str) -> dict:
    """`training.json` of an exported folder, empty if it has none."""
    path = Path(folder, RECORD_FILE)
    return json.loads(path.read_text()) if path.is_file() else {}


def hub_id(name: str | None) -> str | None:
    """`name`, if it is the id of a repository on the Hub and no path, pattern or URL."""
    if name is None or Path(name).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
