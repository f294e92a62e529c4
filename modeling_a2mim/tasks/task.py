"""What `run_finetune.py --task` knows: the arguments of each task, and what runs it."""

import argparse
import functools
from collections.abc import Callable
from typing import NamedTuple

from ..arguments.model import TASK_NAMES
from ..recipes import load_recipe


class Task(NamedTuple):
    """Dataclasses of model, data and training arguments, and the function that takes them and returns metrics."""

    arguments: tuple[type, type, type]
    run: Callable[..., dict]


def load_task(name: str) -> Task:
    """A task by its name; only its own modules are imported, of which some take seconds."""
    if name == "image-classification":
        from . import seeds as p

        return Task((p.ClassifierArguments, p.ClassificationArguments, p.FineTuningArguments), p.run)
    if name == "semantic-segmentation":
        from ..arguments import segmentation as a
        from . import segmentation as s

        arguments = (a.SegmentationModelArguments, a.SegmentationArguments, a.SegmentationTrainingArguments)
        return Task(arguments, s.run)
    from ..arguments import detection as a
    from . import detection as d

    arguments = (a.DetectionModelArguments, a.DetectionArguments, a.DetectionTrainingArguments)
    return Task(arguments, functools.partial(d.run, masks=name == "instance-segmentation"))


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
