"""Which checkpoint is the best one, and when to stop looking for a better one: checked before training."""

import difflib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from ..arguments.training import A2MIMTrainingArguments, with_values
from .checkpoints import read_manifest, verify
from .resuming import Resumption, best_metric_name, listed


logger = logging.getLogger("a2mim")

Arguments = TypeVar("Arguments", bound=A2MIMTrainingArguments)

# Of pre-training; whether more is better.
RECONSTRUCTION_METRICS = {
    "loss": False,
    "spatial_loss": False,
    "frequency_loss": False,
    "masked_l1": False,
    "masked_psnr": True,
}
MOST_NAMED = 30  # metrics in a message
FOLLOWED = ("best", "num_bad_epochs", "num_good_epochs")  # what a schedule that follows a metric keeps of it


def without_evaluation(args: Arguments) -> Arguments:
    """The arguments of a run that has no images to evaluate on, which is said in the log.

    Args:
        args: of training.

    Raises:
        ValueError: if the best checkpoint was asked for, which only an evaluation finds.
    """
    if args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end: there are no images to evaluate on; give --validation_dir or --validation_split"
        )
    logger.warning("no images to evaluate on: give --validation_dir or --validation_split")
    return with_values(args, eval_strategy="no")


def with_best_model(args: Arguments, metrics: Mapping[str, bool]) -> Arguments:
    """The arguments with `greater_is_better` as it is of `metric_for_best_model` (with or without `eval_` before it).

    Args:
        args: of training.
        metrics: what an evaluation gives, without `eval_`, and whether more of it is better.

    Raises:
        ValueError: naming the argument, if there is no such metric, or `greater_is_better` was given as it is not.
    """
    name = args.metric_for_best_model
    if name is None:
        return args
    bare = name.removeprefix("eval_")
    if bare not in metrics:
        close = difflib.get_close_matches(bare, metrics)
        hint = f" did you mean {' or '.join(close)}?" if close else ""
        names = list(metrics)
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        raise ValueError(
            f"metric_for_best_model: no evaluation gives {name!r};{hint} there are "
            f"{', '.join(names[:MOST_NAMED])}{more}"
        )
    if args.greater_is_better_given not in (None, metrics[bare]):
        which = "more" if metrics[bare] else "less"
        raise ValueError(f"greater_is_better: of {bare}, {which} is better; leave --greater_is_better out")
    return with_values(args, greater_is_better=metrics[bare])


def why_not_best(
    state: TrainerState, args: TrainingArguments, resumption: Resumption, checkpoint: str | Path
) -> str | None:
    """Why the best of a run that resumes is no longer the best, in words, or `None`: figures from here on cannot be
    compared with it, or its weights are not there to be exported. In a folder that was moved, they are found again.

    Args:
        state: of the checkpoint; its `best_model_checkpoint` is `None` where there is no such folder.
        args: of the run that resumes.
        checkpoint: that it resumes from.
    """
    if state.best_metric is None:
        return None
    if changed := resumption.other_figures(best_metric_name(args)):
        return listed(changed)
    if not args.load_best_model_at_end or not state.best_global_step:
        return None
    recorded = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).best_model_checkpoint
    if recorded is None:  # it was found where no checkpoint is saved
        return None
    name = Path(recorded).name
    if state.best_model_checkpoint is None and Path(args.output_dir, name).is_dir():
        state.best_model_checkpoint = str(Path(args.output_dir, name))
    best = state.best_model_checkpoint
    if best is None:
        return f"{name} is not there any more"
    if not verify(best, checksums=False) and read_manifest(best)["saved"] > read_manifest(checkpoint)["saved"]:
        return f"{name} was written anew by a run that went back to an earlier step"
    return None


def forget_best(state: TrainerState, callbacks: Iterable[TrainerCallback], why: str):
    """Look for the best from here on, and count the patience for it from 0.

    Args:
        why: see `why_not_best`.
    """
    if state.is_world_process_zero:
        logger.warning(
            "what was best so far (%g, step %s) counts no longer: %s; the best is looked for from step %d on",
            *(state.best_metric, state.best_global_step, why, state.global_step),
        )
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = 0


class EarlyStopping(EarlyStoppingCallback):
    """transformers' callback with the patience of `args`. A run that resumes keeps the patience that was left."""

    said = False  # that it has stopped: the end of the run is evaluated once more

    def state(self) -> dict:
        return {**super().state(), "args": {}}  # those of the run that resumes count

    def has_stopped(self, args) -> bool:
        """Whether the run has lost its patience."""
        return self.early_stopping_patience_counter >= args.early_stopping_patience

    def on_train_begin(self, args, state, control, **kwargs):
        self.early_stopping_patience = args.early_stopping_patience
        self.early_stopping_threshold = args.early_stopping_threshold
        steps = args.eval_strategy == IntervalStrategy.STEPS
        evaluations = state.max_steps // state.eval_steps if steps else state.num_train_epochs
        if evaluations <= self.early_stopping_patience:
            logger.warning(
                "early_stopping_patience %d: the run has only %d evaluations, and cannot stop early",
                self.early_stopping_patience,
                evaluations,
            )
        super().on_train_begin(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if self.has_stopped(args) and not self.said:
            self.said = True
            logger.info(
                "early_stopping_patience: stopped at step %d, as %s was best at step %d",
                state.global_step,
                args.metric_for_best_model,
                state.best_global_step,
            )
