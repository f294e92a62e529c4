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
        arguments: dataclasses of model, data and training arguments.
        load: `(model_args, data_args, args)` to the images to train on and to evaluate on.
        adapt: `(args, images)` to the training arguments for these images: whether to evaluate, and what is better.
        build: `(model_args, images, token)` to the model.
        make_trainer: `(model, images, model_args, data_args, args)` to a trainer that is ready to `run()`.
        evaluate: `(model_args, data_args, args)` to the metrics of the model in `--model_name_or_path`.
        compare: `(model_args, data_args, args, images)` to the metrics of `--knn` or `--seeds`, if a task has them.
        log_result: `(trainer, metrics)`, what the log says at the end.
    """

    arguments: tuple[type, type, type]
    load: Callable
    adapt: Callable
    build: Callable
    make_trainer: Callable
    evaluate: Callable[..., dict]
    compare: Callable[..., dict] | None = None
    log_result: Callable = lambda trainer, metrics: None


def load_task(name: str) -> Task:
    """A task by its name; only its own modules are imported, of which some take seconds."""
    if name == "image-classification":
        from ..arguments import data, model, training
        from .classification import task as c

        arguments: tuple[type, type, type]
        arguments = (model.ClassifierArguments, data.ClassificationArguments, training.FineTuningArguments)
        return Task(arguments, c.load, c.adapt, c.build, c.make_trainer, c.evaluate, c.compare)
    if name == "semantic-segmentation":
        from ..arguments import segmentation as a
        from .segmentation import task as s

        arguments = (a.SegmentationModelArguments, a.SegmentationArguments, a.SegmentationTrainingArguments)
        return Task(arguments, s.load, s.adapt, s.build, s.make_trainer, s.evaluate, log_result=s.log_result)
    from ..arguments import detection as b
    from .detection import task as d

    arguments = (b.DetectionModelArguments, b.DetectionArguments, b.DetectionTrainingArguments)
    masks = name == "instance-segmentation"
    load, evaluate = functools.partial(d.load, masks=masks), functools.partial(d.evaluate, masks=masks)
    return Task(arguments, load, d.adapt, d.build, d.make_trainer, evaluate, log_result=d.log_result)


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
