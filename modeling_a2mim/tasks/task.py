"""The steps of each task that `run_finetune.py --task` knows."""

import argparse
import functools
from collections.abc import Callable
from typing import NamedTuple

from ..arguments.model import TASK_NAMES
from ..recipes import load_recipe


class Task(NamedTuple):
    """The steps of a task. Where they take `model_args, data_args, args`, these are the parsed arguments.

    Args:
        load: `(model_args, data_args, args)` to the images to train on and to evaluate on.
        adapt: `(args, images)` to the training arguments for these images: whether to evaluate, and what is better.
        build: `(model_args, images, token)` to the model.
        make_trainer: `(model, images, model_args, data_args, args)` to a trainer that is ready to `run()`.
        evaluate: `(model_args, data_args, args)` to the metrics of the model in `--model_name_or_path`.
        compare: `(model_args, data_args, args, images)` to the metrics of `--knn` or `--seeds`, if a task has them.
        log_result: `(trainer, metrics)`, what the log says at the end.
    """

    load: Callable
    adapt: Callable
    build: Callable
    make_trainer: Callable
    evaluate: Callable[..., dict]
    compare: Callable[..., dict] | None = None
    log_result: Callable = lambda trainer, metrics: None


def arguments_of(name: str) -> tuple[type, type, type]:
    """The dataclasses of a task's arguments, without what it runs, of which some takes seconds to import."""
    if name == "image-classification":
        from ..arguments import data, model, training

        return model.ClassifierArguments, data.ClassificationArguments, training.FineTuningArguments
    if name == "semantic-segmentation":
        from ..arguments import segmentation as a

        return a.SegmentationModelArguments, a.SegmentationArguments, a.SegmentationTrainingArguments
    from ..arguments import detection as b

    return b.DetectionModelArguments, b.DetectionArguments, b.DetectionTrainingArguments


def load_task(name: str) -> Task:
    """A task by its name; only its own modules are imported."""
    if name == "image-classification":
        from .classification import task as c

        return Task(c.load, c.adapt, c.build, c.make_trainer, c.evaluate, c.compare)
    if name == "semantic-segmentation":
        from .segmentation import task as s

        return Task(s.load, s.adapt, s.build, s.make_trainer, s.evaluate, log_result=s.log_result)
    from .detection import task as d

    masks = name == "instance-segmentation"
    load, evaluate = functools.partial(d.load, masks=masks), functools.partial(d.evaluate, masks=masks)
    return Task(load, d.adapt, d.build, d.make_trainer, evaluate, log_result=d.log_result)


def find_task(given: argparse.Namespace, script: str) -> str:
    """The task that `--task` names, else the recipe's, else image classification.

    Raises:
        ValueError: naming `task`, if there is no such task.
    """
    task = given.task
    if task is None and given.recipe is not None:
        task = load_recipe(given.recipe, script).get("task")
    task = task or "image-classification"
    if task not in TASK_NAMES:
        raise ValueError(f"task: expected one of {', '.join(TASK_NAMES)}, got {task!r}")
    return task
