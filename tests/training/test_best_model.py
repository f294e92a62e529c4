"""The metric that checkpoints are compared by is checked before training; early stopping, also of runs that resume."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from modeling_a2mim.arguments.training import A2MIMTrainingArguments, FineTuningArguments
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.training import resumable, resuming
from modeling_a2mim.training.best_model import with_best_model, without_evaluation
from modeling_a2mim.training.resuming import Resumption, keep

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
    assert record["evaluation"]["step"] == best
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


# A run that resumes, where the figures before are no match for those to come


def going_on(folder, figures, rows=range(14), resume=None, **options):
    """A run whose evaluations give these figures, one after the other."""
    options = {"metric_for_best_model": "loss", **options}
    trainer = stopping(folder, **{"patience": 9, **options})
    trainer.eval_dataset = ImageSamples(load_images().select(rows), trainer.train_dataset.transform, "image", "label")
    found = iter(figures)

    def evaluate(**kwargs):
        metrics = {"eval_loss": (value := next(found)), "eval_figure": value, "eval_rankme": value}
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    trainer.evaluate = evaluate
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"metric_for_best_model": "figure"}, "metric_for_best_model figure instead of loss"),
        pytest.param({"greater_is_better": True}, "greater_is_better True instead of False", marks=pytest.mark.ci),
        ({"rows": range(12)}, "evaluation data 12 instead of 14"),
        pytest.param({"rows": range(20, 34)}, "evaluation_images .* instead of", marks=pytest.mark.ci),
        pytest.param({"metric_for_best_model": "eval_loss"}, None, marks=pytest.mark.ci),
        pytest.param({"metric_for_best_model": "loss", "per_device_train_batch_size": 4}, None, marks=pytest.mark.ci),
    ],
)
def test_the_best_of_other_figures_is_forgotten(tmp_path, caplog, now, said):
    first = going_on(tmp_path, [1.0, 0.1], max_steps=2)
    assert (first.state.best_metric, first.state.best_global_step) == (0.1, 2)
    more = now.get("greater_is_better", now.get("metric_for_best_model") == "figure")
    trainer = going_on(tmp_path, [0.5, 0.3, 0.7], resume="last", **{"greater_is_better": more, **now, "max_steps": 5})
    state, found = trainer.state, re.search(r"what was best so far \(0\.1, step 2\) counts no longer: .*", caplog.text)
    if said is None:
        assert found is None
        assert (state.best_metric, state.best_global_step) == (0.1, 2)
    else:
        assert re.search(said, found[0])
        assert (state.best_metric, state.best_global_step) == ((0.7, 5) if more else (0.3, 4))
    assert state.best_model_checkpoint == str(tmp_path / f"checkpoint-{state.best_global_step}")
    expected = load_file(tmp_path / f"checkpoint-{state.best_global_step}" / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items() if name in expected)


def test_the_best_of_a_step_without_a_checkpoint_is_kept(tmp_path, caplog):
    """As `--eval_steps 1 --save_steps 2` have it: it has no weights to lose."""
    first = going_on(tmp_path, [1.0, 0.1, 0.5, 0.6], max_steps=4, save_steps=4)
    assert (first.state.best_metric, first.state.best_model_checkpoint) == (0.1, None)
    trainer = going_on(tmp_path, [0.4], resume="last", max_steps=5, save_steps=4)
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.1, 2)
    assert "counts no longer" not in caplog.text


@pytest.mark.ci
def test_the_best_whose_weights_are_gone_is_forgotten(tmp_path, caplog):
    """Deleted, or replaced by a run that went back; a folder that was moved as a whole is none of it."""
    going_on(tmp_path / "run", [0.1, 1.0], max_steps=2)
    (tmp_path / "run").rename(tmp_path / "moved")
    going_on(tmp_path / "moved", [1.0], resume="last", max_steps=3)
    assert "counts no longer" not in caplog.text
    shutil.rmtree(tmp_path / "moved" / "checkpoint-1")
    trainer = going_on(tmp_path / "moved", [0.5, 0.7], resume="last", max_steps=5)
    assert "(0.1, step 1) counts no longer: checkpoint-1 is not there any more; the best" in caplog.text
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.5, 4)
    caplog.clear()
    going_on(tmp_path / "moved", [0.6], resume=tmp_path / "moved" / "checkpoint-3", max_steps=4)
    trainer = going_on(tmp_path / "moved", [0.8], resume=tmp_path / "moved" / "checkpoint-5", max_steps=6)
    assert "(0.5, step 4) counts no longer: checkpoint-4 was written anew by a run that went back" in caplog.text
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.8, 6)


@pytest.mark.ci
def test_patience_and_schedules_begin_anew_with_other_figures(tmp_path):
    """And one of images of the gauge, whatever else is evaluated on."""
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}
    first = going_on(tmp_path, [0.1, 0.2, 0.3], patience=2, **plateau)
    assert first.state.global_step == 3
    again = going_on(tmp_path, [5.0, 4.0], resume="last", rows=range(8), patience=2, max_steps=5, **plateau)
    assert (again.state.global_step, again.state.best_global_step) == (5, 5)
    assert (again.lr_scheduler.best, again.lr_scheduler.num_bad_epochs) == (4.0, 0)
    names = {name: [0, 1] for name in ("evaluation_data", "monitor_files", "probe_layers", "hflip")}
    changed = Resumption(changed=names)
    assert set(changed.other_figures("loss")) == {"evaluation_data"}
    assert set(changed.other_figures("knn_accuracy")) == {"monitor_files", "probe_layers"}


def test_checkpoints_that_do_not_say_what_is_best_go_on_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "keep", lambda settings, resumption: keep(without_best(settings), resumption))
    going_on(tmp_path, [1.0, 0.1], max_steps=2)
    other = {"metric_for_best_model": "figure", "greater_is_better": True}
    state = going_on(tmp_path, [0.05], resume="last", max_steps=3, **other).state
    assert (state.best_metric, state.best_global_step) == (0.1, 2)


def without_best(settings):
    training = {name: value for name, value in settings["training"].items() if name not in resuming.BEST}
    return {**settings, "training": training}
