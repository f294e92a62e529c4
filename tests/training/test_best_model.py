"""The metric that checkpoints are compared by is checked before training; early stopping, also of runs that resume."""

import json
from types import SimpleNamespace

import pytest
import torch

from modeling_a2mim.arguments.training import A2MIMTrainingArguments, FineTuningArguments
from modeling_a2mim.training.best_model import with_best_model, without_evaluation

from ..integration.test_scripts import SMALL, finetune, pretrain
from ..tasks.classification.test_trainer import make_trainer
from .test_trainer import Crash, weights


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]
METRICS = {"loss": False, "accuracy": True, "mae": False, "recall_hair loss": True}


def checked(name, greater=None):
    args = SimpleNamespace(metric_for_best_model=name, greater_is_better_given=greater, greater_is_better=None)
    return with_best_model(args, METRICS).greater_is_better


def test_which_way_is_better():
    assert [checked(prefix + name) for name in METRICS for prefix in ("", "eval_")] == [
        *(False, False, True, True, False, False, True, True)
    ]
    assert checked(None) is None
    assert checked("mae", False) is False
    with pytest.raises(ValueError, match="^greater_is_better: of mae, less is better; leave --greater_is_better out"):
        checked("mae", True)
    with pytest.raises(
        ValueError, match=r"gives 'acuracy'; did you mean accuracy\? there are loss, accuracy, mae, rec"
    ):
        checked("acuracy")


@pytest.mark.parametrize("name", ["f1", "eval_f1", "recall_Horse", "runtime"])
def test_metrics_that_there_are_not(tmp_path, name):
    with pytest.raises(ValueError, match=f"^metric_for_best_model: no evaluation gives '{name}'.*macro_f1, auroc"):
        finetune(tmp_path / "out", *SCRATCH, "--labels_per_class", 1, "--metric_for_best_model", name)
    with pytest.raises(ValueError, match=f"^metric_for_best_model: no evaluation gives '{name}'.*masked_psnr"):
        pretrain(tmp_path / "out", "--max_train_samples", 32, "--metric_for_best_model", name)
    assert not (tmp_path / "out").exists()


EVERY_STEP = ["--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1]
BEST = [*EVERY_STEP, "--load_best_model_at_end", "True", "--metric_for_best_model"]


def test_the_best_in_a_metric_of_one_class(tmp_path):
    finetune(tmp_path, *SCRATCH, "--max_train_samples", 40, *BEST, "eval_average_precision_Sneaker")
    record = json.loads((tmp_path / "training.json").read_text())
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    name = "eval_average_precision_Sneaker"
    found = {entry["step"]: entry[name] for entry in state["log_history"] if name in entry}
    best = max(found, key=lambda step: (found[step], -step))
    assert record["best"] == {"step": best, "metric": "average_precision_Sneaker", "value": found[best]}
    card = (tmp_path / "README.md").read_text()
    assert f"| exported weights | those of step {best}, the best in average_precision_Sneaker" in card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--early_stopping_patience", 2], "^early_stopping_patience: needs --load_best_model_at_end True"),
        (["--early_stopping_patience", 0], "^early_stopping_patience: must be at least 1"),
        (["--early_stopping_threshold", 0.1], "^early_stopping_threshold: is for --early_stopping_patience"),
        (
            ["--early_stopping_patience", 2, "--load_best_model_at_end", "True", "--eval_strategy", "no"],
            "^early_stopping_patience: .*they are no and steps",
        ),
        (["--class_weights", "even"], "^class_weights: expected balanced, or a number of at least 0"),
        (["--class_weights", 0, 0], "^class_weights: expected balanced, or a number"),
        (["--class_weights", 1, 2], "^class_weights: expected balanced, or 10 numbers, of T-shirt/top, .*; got 2"),
        (
            ["--class_weights", "balanced", "--bce_loss"],
            "^class_weights: weigh the softmax loss; leave --bce_loss out",
        ),
        (["--eval_only", "--class_weights", "balanced"], "^(model_name_or_path|class_weights): "),
    ],
)
def test_mistakes(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        finetune(tmp_path / "out", *SCRATCH, *flags)
    assert not (tmp_path / "out").exists()


def test_nothing_to_evaluate_on(tmp_path):
    args = FineTuningArguments(str(tmp_path), use_cpu=True, load_best_model_at_end=True, save_strategy="epoch")
    with pytest.raises(ValueError, match="^load_best_model_at_end: there are no images to evaluate on"):
        without_evaluation(args)
    given = A2MIMTrainingArguments(str(tmp_path), use_cpu=True, eval_strategy="epoch")
    assert without_evaluation(given).eval_strategy == "no"
    assert given.eval_strategy == "epoch"


def stopping(folder, callbacks=None, patience=2, **options):
    """Nothing is learned: the first evaluation is the best."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.0, **options}
    options = {"max_steps": 6, **options, "load_best_model_at_end": True, "early_stopping_patience": patience}
    return make_trainer(folder, callbacks, count=14, **options)


@pytest.mark.ci
def test_early_stopping_and_resuming(tmp_path, caplog):
    trainer = stopping(tmp_path / "whole")
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.state.best_global_step == 1
    expected = weights(trainer)

    # Killed at step 2, a run has lost half of its patience.
    with pytest.raises(KeyboardInterrupt):
        stopping(tmp_path / "cut", [Crash(2)]).train()
    resumed = stopping(tmp_path / "cut")
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 3
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())

    # Started again, a run that had stopped makes no further step, unless it is given more patience.
    again = stopping(tmp_path / "cut")
    again.train(resume_from_checkpoint="last")
    assert again.state.global_step == 3
    patient = stopping(tmp_path / "cut", patience=3)
    patient.train(resume_from_checkpoint="last")
    assert patient.state.global_step == 4
    assert "cannot stop early" not in caplog.text
    with caplog.at_level("WARNING", "a2mim"):
        stopping(tmp_path / "short", patience=1, max_steps=1).train()
    assert "early_stopping_patience 1: the run has only 1 evaluations, and cannot stop early" in caplog.text
