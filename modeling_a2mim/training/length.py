"""How long a run is and how often it logs, where the arguments leave it open."""

import logging

from transformers.trainer_utils import IntervalStrategy

from ..arguments.training import LOGGING_STEPS, A2MIMTrainingArguments, FineTuningArguments, with_values


logger = logging.getLogger("a2mim")

LEAST_LOGS = 20


def with_length(args: A2MIMTrainingArguments, images: int) -> A2MIMTrainingArguments:
    """The arguments with `num_train_epochs` for so many images, which is said in the log, and for a length of many
    epochs with fewer evaluations; themselves, if the length was given."""
    if args.length_given or args.max_steps > 0:
        return args
    epochs = float(args.usual_epochs(images))
    logger.info(
        "num_train_epochs auto: %d passes over %s images in steps of %d, %s steps (it takes some %s to learn; at "
        "least %d and at most %d passes)",
        epochs,
        f"{images:,}",
        args.step_batch_size,
        f"{round(epochs) * args.steps_per_epoch(images):,}",
        f"{args.USUAL_STEPS:,}",
        *args.USUAL_EPOCHS,
    )
    most = args.MOST_EVALUATIONS
    if most is None or epochs <= most or args.eval_strategy != IntervalStrategy.EPOCH:
        return with_values(args, num_train_epochs=epochs)
    assert isinstance(args, FineTuningArguments)  # which alone have MOST_EVALUATIONS
    if args.evaluations_given or args.eval_steps is not None or args.load_best_model_at_end:
        return with_values(args, num_train_epochs=epochs)
    return with_values(args, num_train_epochs=epochs, eval_strategy=IntervalStrategy.STEPS, eval_steps=1 / most)


def logging_steps(args: A2MIMTrainingArguments, max_steps: int) -> float:
    """After how many steps a run of so many logs: as given, else 50, or fewer for 20 logs."""
    if args.logging_steps_given:
        return args.logging_steps
    return min(LOGGING_STEPS, max(1, max_steps // LEAST_LOGS))
