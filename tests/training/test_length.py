"""How long a run is and how often it logs."""

import logging
import math
from dataclasses import replace

import pytest

from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.training.length import logging_steps, with_length


USUAL_STEPS, USUAL_EPOCHS = A2MIMTrainingArguments.USUAL_STEPS, A2MIMTrainingArguments.USUAL_EPOCHS


def arguments(tmp_path, **kwargs):
    return A2MIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **kwargs)


@pytest.mark.parametrize(
    ("images", "batch", "passes"),
    [(10_000, 64, 13), (1968, 64, 65), (1968, 16, 17), (50, 64, USUAL_EPOCHS[1]), (10**7, 256, USUAL_EPOCHS[0])],
)
def test_length(tmp_path, images, batch, passes, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    args = arguments(tmp_path, per_device_train_batch_size=batch)
    assert with_length(args, images).num_train_epochs == passes
    assert args.num_train_epochs == "auto"
    assert f"num_train_epochs auto: {passes} passes over {images:,} images in steps of {batch}" in caplog.text


def test_a_given_length_stays(tmp_path):
    for options in ({"num_train_epochs": 3}, {"num_train_epochs": "2.5"}, {"max_steps": 7}):
        args = arguments(tmp_path, **options)
        before = args.num_train_epochs, args.max_steps
        args = with_length(args, 100)
        assert (args.num_train_epochs, args.max_steps) == before
    for wrong in ("many", 0, -2, "nan", None):
        with pytest.raises(ValueError, match="^num_train_epochs: expected a number above 0 or auto, got"):
            arguments(tmp_path, num_train_epochs=wrong)


def test_auto_survives_a_copy(tmp_path):
    args = with_length(replace(arguments(tmp_path), seed=3), 1968)
    assert (args.num_train_epochs, args.seed) == (65, 3)


def test_passes_without_their_last_steps(tmp_path):
    args = arguments(tmp_path, dataloader_drop_last=True, gradient_accumulation_steps=3)
    assert args.steps_per_epoch(703) == 4  # 10 batches
    assert args.usual_epochs(10_000) == math.ceil(USUAL_STEPS / 52)


def test_logging_steps_by_length(tmp_path):
    args = A2MIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    found = [logging_steps(args, steps) for steps in (1, 5, 93, 999, 1000, 100_000)]
    assert found == [1, 1, 4, 49, 50, 50]
    given = A2MIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True, logging_steps=50)
    assert logging_steps(given, 5) == 50
