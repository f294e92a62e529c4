"""What a run was set to, as its checkpoints keep it, and what another command that resumes it changes.

`run_settings` is plain JSON without paths, tokens, and settings that do not change what is learned. `compare` sorts
the differences: some cannot take effect in the middle of a run and are refused, the others hold from the next step on.
"""

import dataclasses
import json
import logging
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..configuration_a2mim import A2MIMConfig
from ..data.dataset import ImageSamples
from ..data.fingerprints import fingerprint_of_files
from ..data.held_out import spread_rows
from ..evaluation.gauge import MORE_IS_BETTER


logger = logging.getLogger("a2mim")

ROWS_CHECKED = 8  # training images whose bytes tell one data set from another
# Fields of TrainingArguments that say where things are, what is logged, saved, evaluated or pushed, and how it is
# computed, not what; or what others follow from (the learning rate, from the batch that it is for).
NOT_COMPARED = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "recipe", "run_name", "project", "report_to"),
    *("do_train", "do_eval", "do_predict", "local_rank", "disable_tqdm", "debug", "skip_memory_metrics"),
    *("auto_find_batch_size", "enable_jit_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
    *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "per_device_eval_batch_size"),
    *("load_best_model_at_end", "reconstruction_steps"),
    *("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config", "liger_kernel_config"),
    *("use_cpu", "torch_empty_cache_steps", "dataloader_num_workers", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    *("include_num_input_tokens_seen", "push_to_hub", "log_level", "log_level_replica", "log_on_each_node"),
    *("base_learning_rate", "total_train_batch_size", "batch_scaling", "learning_rate_scaling"),
    *("bf16_full_eval", "fp16_full_eval", "save_on_each_node", "save_only_model", "save_total_limit"),
}
NOT_COMPARED_PREFIXES = ("hub_", "logging_", "eval_", "save_", "ddp_", "trackio_", "early_stopping_")
# Flags of models and data that say where things are, or whose effect is compared otherwise: fields of the model's
# configuration by `checkpoints.check_settings`, what is trained and evaluated on by the data itself.
FLAGS_NOT_COMPARED = {
    *("preset", "global_pool", "drop_path", "out_indices", "eval_only", "add_to_card", "probe_strength"),
    *("threshold", "positive_class"),
    *("knn", "knn_neighbours", "knn_neighbors", "knn_temperature", "task"),
    *("train_dir", "dataset_name", "dataset_config_name", "dataset_revision", "dataset_weights", "train_split"),
    *("validation_dir", "validation_split", "max_train_samples", "max_eval_samples", "holdout", "read_retries"),
    *("image_column_name", "label_column_name", "labels_per_class", "label_fraction", "label_subset", "labels_file"),
    *("id2label", "seeds", "corruptions", "objects_column_name"),
    *("monitor_dir", "monitor_dataset", "monitor_split", "monitor_samples", "monitor_steps"),
}
# What the learning rate and its schedule are made of; a change starts the schedule anew over the steps that are left.
RATE = {
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "lr_milestones", "lr_gamma"),
    *("layer_decay", "layer_decay_layers", "token_lr_scale"),
}
LENGTH = {"max_steps", "num_train_epochs"}
ENDLESS = ("reduce_lr_on_plateau", "greedy")  # schedules that know no length: they follow what is measured
# What an optimiser keeps with each of its groups of parameters, and what sets it.
GROUPED = {"weight_decay": "weight_decay", "adam_beta1": "betas", "adam_beta2": "betas", "adam_epsilon": "eps"}
# What the figures are of that the best checkpoint is found by; and those of the gauge. Others are no match for them.
BEST = {"metric_for_best_model", "greater_is_better"}
EVALUATED = {"evaluation_data", "evaluation_files", "evaluation_images"}
GAUGED = {"monitor_data", "monitor_files", "probe_layers"}
# What cannot change in the middle of a run, and why.
FIXED = {
    "optim": "its state is not another optimiser's",
    "optim_args": "the optimiser goes on with the state it has",
    "optim_target_modules": "the optimiser goes on with the state it has",
    "seed": "random numbers go on where they were",
    "data_seed": "the order of the images goes on where it was",
    "full_determinism": "random numbers go on where they were",
    "shuffle_buffer_size": "the order of the images goes on where it was",
    "aug_repeats": "the order of the images goes on where it was",
    "image_column_name": "its images are trained on",
    "label_column_name": "its labels are trained on",
}


def flags(*arguments) -> dict[str, dict]:
    """The values of command-line arguments that a run's settings hold.

    Args:
        arguments: dataclasses of the model's arguments, and of the data's.
    """
    result = {}
    for section, given in zip(("model", "data"), arguments, strict=True):
        names = [f.name for f in dataclasses.fields(given) if f.name not in FLAGS_NOT_COMPARED]
        names = [name for name in names if section == "data" or name not in A2MIMConfig.__annotations__]
        result[section] = {name: getattr(given, name) for name in names}
    start = result["model"].get("model_name_or_path")
    result["model"]["model_name_or_path"] = None if start is None else Path(start).name  # the rest is a path
    return result


def run_settings(args, given: dict[str, dict] | None, train_dataset, eval_dataset) -> dict[str, dict]:
    """What a run is set to, as JSON: `training`, `model` and `data`, each with values by the names of their flags.

    Args:
        args: A2MIMTrainingArguments.
        given: `flags`, where the run has a command line.
        train_dataset, eval_dataset: of the trainer.
    """
    names = [f.name for f in dataclasses.fields(args) if f.name not in NOT_COMPARED]
    training = {name: getattr(args, name) for name in names if not name.startswith(NOT_COMPARED_PREFIXES)}
    training |= {"optim": args.optimizer_name, "data_seed": args.seed if args.data_seed is None else args.data_seed}
    training["metric_for_best_model"] = best_metric_name(args)
    if args.max_steps > 0:  # of the two only this one counts
        training["num_train_epochs"] = None
    else:
        training |= {"max_steps": None, "num_train_epochs": args.num_train_epochs if args.length_given else "auto"}
    data = {"training_data": _checksum(train_dataset), "evaluation_data": _fingerprint(eval_dataset)}
    data["evaluation_images"] = _checksum(eval_dataset)
    for which, dataset in (("training", train_dataset), ("evaluation", eval_dataset)):
        if isinstance(dataset, ImageSamples):
            data[f"{which}_files"] = fingerprint_of_files(dataset.whole)
    if isinstance(train_dataset, ImageSamples) and train_dataset.source.columns is not None:
        data |= dict(zip(("image_column_name", "label_column_name"), train_dataset.source.columns, strict=True))
    given = given or {"model": {}, "data": {}}
    settings = {"training": training, "model": given["model"], "data": {**given["data"], **data}}
    return json.loads(json.dumps(settings, default=lambda value: str(getattr(value, "value", value))))


def best_metric_name(args) -> str | None:
    """`metric_for_best_model` without `eval_`, with which it is the same."""
    return args.metric_for_best_model and args.metric_for_best_model.removeprefix("eval_")


def _fingerprint(dataset) -> str | None:
    return dataset.whole.fingerprint if isinstance(dataset, ImageSamples) else None


def _checksum(dataset) -> str | None:
    """Of a few rows, where the fingerprint of a source is little more than its length and any row costs the same."""
    source = dataset.whole if isinstance(dataset, ImageSamples) else None
    if source is None or source.remote or len(source.chunks) != 1:
        return None
    value = 0
    for row in source.read(spread_rows(ROWS_CHECKED, source.chunks).tolist()):
        for part in row:
            content = part.get("bytes") if isinstance(part, dict) else None
            value = zlib.crc32(content if isinstance(content, bytes) else _text(part).encode(), value)
    return f"{value:08x}"


def _text(value) -> str:
    return "" if isinstance(value, (dict, Exception)) else repr(value)


@dataclass
class Resumption:
    """How a run goes on from a checkpoint.

    Attributes:
        step: of the checkpoint.
        changed: name to (value before, value from here on) of the settings that differ; `{}` of an old checkpoint.
        schedule_start: the step at which the schedule of the learning rate began.
        history: `{"step": ..., "changed": ...}` for each time that a run went on with other settings.
    """

    step: int = 0
    changed: dict[str, list] = field(default_factory=dict)
    schedule_start: int = 0
    history: list[dict] = field(default_factory=list)

    @property
    def restarts_schedule(self) -> bool:
        """Whether a setting of the learning rate differs, so that its schedule begins anew."""
        return bool(RATE & self.changed.keys())

    @property
    def grouped(self) -> set[str]:
        """The keys of an optimiser's groups that are set anew."""
        return {GROUPED[name] for name in self.changed if name in GROUPED}

    def other_figures(self, metric: str | None) -> dict[str, list]:
        """Those of `changed` after which the figures of a metric are no match for those before.

        Args:
            metric: `best_metric_name`.
        """
        of = BEST | (GAUGED if metric in MORE_IS_BETTER else EVALUATED)
        return {name: values for name, values in self.changed.items() if name in of}

    def check_steps_left(self, max_steps: int):
        """
        Raises:
            ValueError: if no step is left on which what differs could take effect.
        """
        names = [name for name in self.changed if name not in LENGTH and not name.endswith(("_images", "_files"))]
        if self.step >= max_steps and names:
            raise ValueError(
                f"{names[0]}: {listed({name: self.changed[name] for name in names})} has no effect: the checkpoint "
                f"has made all of the {max_steps:,} steps; leave it as it was, or raise --max_steps or "
                "--num_train_epochs"
            )


def compare(checkpoint: str, kept: dict | None, settings: dict[str, dict], step: int) -> Resumption:
    """How a run with these settings goes on from a checkpoint; what takes effect is logged.

    Args:
        checkpoint: its name.
        kept: what `keep` gave for its manifest, `None` of an older version of this package.
        settings: `run_settings` of the run that goes on.
        step: of the checkpoint.

    Raises:
        ValueError: naming the first setting that cannot change in the middle of a run, and both values; or the length,
            if it is to be chosen and an older version did not keep it.
    """
    if kept is None:
        if settings["training"].get("num_train_epochs") == "auto":
            raise ValueError(
                f"num_train_epochs: {checkpoint} is of an older version, which kept no settings of training and made "
                "3 epochs where no number was given; give --num_train_epochs (or --max_steps) as it was"
            )
        logger.warning(
            "%s is of an older version, which kept no settings of training: they cannot be compared. Optimiser "
            "and learning rate go on as they were then, whatever is given now; all else is as given, or a default of "
            "now (that of --crop_scale in fine-tuning was 0.35 1)",
            checkpoint,
        )
        return Resumption(step)
    before, changed = kept["settings"], {}
    for section, values in settings.items():
        for name, now in values.items():
            if name in before.get(section, {}) and (then := before[section][name]) != now:
                if name.endswith(("_files", "_images")) and None in (then, now):  # on this machine now, or not
                    continue
                if name in BEST and now is None:  # nothing is looked for
                    continue
                _check_may_change(section, name, then, now)
                changed[name] = [then, now]
    result = Resumption(step, changed, kept["schedule_start"], kept["history"])
    if not changed:
        return result
    if result.restarts_schedule:
        result.schedule_start = step
    result.history = [*kept["history"], {"step": step, "changed": changed}]
    schedule = ""
    if result.restarts_schedule:
        schedule = "; the schedule of the learning rate starts anew over the steps that are left"
    elif LENGTH & changed.keys() and settings["training"].get("lr_scheduler_type") not in ENDLESS:
        schedule = "; the schedule of the learning rate goes on as that of a run of the new length"
    logger.warning("from step %d of %s on with %s%s", step, checkpoint, listed(changed), schedule)
    return result


def follow_schedule(scheduler, optimizer: Optimizer):
    """Give each group the rate that the schedule has at this step: what was loaded is that of the run before, which
    may have had another length. Schedules that are no functions of the step go on with what was loaded."""
    schedule = getattr(scheduler, "scheduler", scheduler)  # without what DeepSpeed wraps it in
    if not isinstance(schedule, LambdaLR):
        return
    step = schedule.last_epoch
    rates = [rate * factor(step) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    schedule.load_state_dict({**schedule.state_dict(), "_last_lr": rates})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def keep(settings: dict[str, dict], resumption: Resumption) -> dict:
    """What the manifest of a checkpoint keeps for `compare`."""
    return {
        "settings": settings,
        "schedule_start": resumption.schedule_start,
        "history": resumption.history,
    }


def _check_may_change(section: str, name: str, then, now):
    if name == "training_data":
        raise ValueError("resume_from_checkpoint: the training data has changed since the checkpoint: other images")
    if name == "training_files":
        raise ValueError(
            "resume_from_checkpoint: the training data has changed since the checkpoint: files of other sizes"
        )
    why = FIXED.get(name)
    if section == "model":
        why = "it is part of the model that is trained"
    elif name == "layer_decay" and (then in (None, 1.0)) != (now in (None, 1.0)):
        why = "the optimiser's groups of parameters would be others"
    elif name == "model_ema_decay" and then is None:
        why = "averages begin with a run"
    if why is not None:
        raise ValueError(
            f"{name}: the checkpoint was made with {then}, this run has {now}; {why}: go on with {then}, or start "
            "another run in another --output_dir"
        )


def listed(changed: dict[str, list]) -> str:
    """Settings that changed, in words."""
    named = {name.replace("_data", " data"): values for name, values in changed.items()}
    return ", ".join(f"{name} {now} instead of {then}" for name, (then, now) in named.items())
