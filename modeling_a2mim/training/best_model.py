"""Which checkpoint is the best one, and when to stop looking for a better one: checked before training."""

import difflib
import logging
from collections.abc import Mapping
from typing import TypeVar

from transformers import EarlyStoppingCallback
from transformers.trainer_utils import IntervalStrategy

from ..arguments.training import A2MIMTrainingArguments, with_values


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
