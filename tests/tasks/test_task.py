"""Tasks by their names, those of flags and of recipes."""

import argparse
import dataclasses

import pytest

from modeling_a2mim.arguments.model import TASK_NAMES
from modeling_a2mim.tasks import arguments_of, find_task, load_task


def given(task=None, recipe=None):
    return argparse.Namespace(task=task, recipe=recipe)


def test_names(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("task: semantic-segmentation\narguments: {max_steps: 1}")
    assert find_task(given(), "run_finetune.py") == "image-classification"
    assert find_task(given(recipe=str(recipe)), "run_finetune.py") == "semantic-segmentation"
    assert find_task(given("object-detection", str(recipe)), "run_finetune.py") == "object-detection"
    with pytest.raises(ValueError, match="^task: expected one of image-classification, .*, got 'depth'"):
        find_task(given("depth"), "run_finetune.py")


@pytest.mark.parametrize("name", TASK_NAMES)
def test_steps(name):
    task = load_task(name)
    assert all(map(dataclasses.is_dataclass, arguments_of(name)))
    assert all(map(callable, (task.load, task.adapt, task.build, task.make_trainer, task.evaluate, task.log_result)))
    assert (task.compare is not None) == (name == "image-classification")
