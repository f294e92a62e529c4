"""Runs that go on with other settings, that had finished, or that have not begun: through the command line."""

import json
import logging
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import run_finetune
import run_pretraining
from modeling_a2mim import A2MIMTrainer
from modeling_a2mim.arguments.training import FineTuningArguments
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.training import resuming
from modeling_a2mim.training.checkpoints import MANIFEST, read_manifest
from modeling_a2mim.training.resuming import FIXED, LENGTH, NOT_COMPARED, NOT_COMPARED_PREFIXES, RATE, compare

from .test_trainer import make_trainer


pytestmark = pytest.mark.usefixtures("one_thread")
ENCODER = ["--architecture", "test_convnext", "--image_size", "32", "--num_channels", "1", "--mask_patch_size", "8"]
ENCODER += ["--mask_site", "-3", "--max_train_samples", "16", "--max_eval_samples", "4", "--use_cpu"]
ENCODER += ["--per_device_train_batch_size", "4", "--logging_steps", "1", "--disable_tqdm", "True"]
OPTIM = "adamw_torch_fused"
START = {"learning_rate": 1e-3, "num_train_epochs": 2, "save_steps": 5}  # 8 steps, saved at 5, in the second epoch


def pretrain(folder, **options):
    argv = [*ENCODER, "--output_dir", str(folder)]
    for name, value in options.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return run_pretraining.main(argv)


def history(folder):
    log = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry]


def record(folder):
    return json.loads((Path(folder) / "training.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps, with its checkpoints at 5 and at the end."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    metrics = pretrain(folder, **START)
    return folder, metrics


@pytest.fixture
def run(finished, tmp_path):
    """Its copy, killed after the checkpoint at 5."""
    folder = tmp_path / "run"
    for path in finished[0].glob("checkpoint-5/*"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    return folder


def test_what_a_checkpoint_says_of_its_run(run):
    kept = read_manifest(run / "checkpoint-5")["run"]
    assert (kept["schedule_start"], kept["history"]) == (0, [])
    training, data = kept["settings"]["training"], kept["settings"]["data"]
    assert (training["learning_rate"], training["num_train_epochs"], training["optim"]) == (
        1e-3,
        2,
        "adamw_torch_fused",
    )
    assert (data["hflip"], data["crop_scale"], data["image_column_name"]) == (0.5, [0.8, 1.0], "image")
    assert str(run.parent.parent) not in (run / "checkpoint-5" / MANIFEST).read_text()


def test_rate_decay_and_length_take_effect_from_there_on(run, finished, caplog):
    """And are said, and recorded; killed once more, the run goes on as it would have."""
    other = {**START, "learning_rate": 1e-5, "num_train_epochs": 4, "weight_decay": 0.3, "save_steps": 4, "hflip": 0}
    other |= {"adam_beta2": 0.9, "resume_from_checkpoint": "last"}
    pretrain(run, **other)
    said = next(r.message for r in caplog.records if r.message.startswith("from step 5 of checkpoint-5 on with "))
    for change in (
        "learning_rate 1e-05 instead of 0.001",
        "num_train_epochs 4.0 instead of 2.0",
        "weight_decay 0.3 instead of 0.05",
        "adam_beta2 0.9 instead of 0.999",
        "hflip 0.0 instead of 0.5",
    ):
        assert change in said
    assert said.endswith("the schedule of the learning rate starts anew over the steps that are left")
    log, before = history(run), history(finished[0])
    assert [entry["loss"] for entry in log[:5]] == [entry["loss"] for entry in before[:5]]
    rates = [entry["learning_rate"] for entry in log]
    # 11 steps are left: one of warm-up, then a cosine over 10.
    cosine = [5e-6 * (1 + torch.tensor(torch.pi * i / 10).cos().item()) for i in range(10)]
    assert rates[5:] == pytest.approx([0.0, *cosine], abs=1e-10)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (12, 16, 5, 8)]
    state = torch.load(run / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.0, 0.3}
    assert {tuple(group["betas"]) for group in state["param_groups"]} == {(0.9, 0.9)}
    found = record(run)
    assert (found["learning_rate"], found["weight_decay"], found["steps"], found["warmup_steps"]) == (1e-5, 0.3, 16, 1)
    assert found["resumed"] == read_manifest(run / "checkpoint-16")["run"]["history"]
    assert found["resumed"][0]["changed"]["learning_rate"] == [1e-3, 1e-5]
    assert (
        "| resumed with other settings | step 5: num_train_epochs 4.0 instead of 2.0, learning_rate 1e-05 instead of"
        in (run / "README.md").read_text()
    )
    # Killed again, with the same settings as before: nothing differs, the schedule goes on where it was.
    expected = load_file(run / "model.safetensors")
    caplog.clear()
    pretrain(run, **{**other, "resume_from_checkpoint": run / "checkpoint-8"})
    assert not [r for r in caplog.records if "instead of" in r.message]
    assert [entry["learning_rate"] for entry in history(run)] == rates
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in expected.items())
    # The run as it began would have gone another way.
    first = load_file(finished[0] / "model.safetensors")
    assert not all(torch.equal(value, first[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"optim": "sgd"},
            f"optim: the checkpoint was made with {OPTIM}, this run has sgd; its state is not",
        ),
        ({"optim": "lamb"}, f"optim: the checkpoint was made with {OPTIM}, this run has lamb; "),
        ({"seed": 1}, "seed: the checkpoint was made with 42, this run has 1; random numbers go on where they were"),
        ({"layer_decay": 0.5}, "layer_decay: the checkpoint was made with None, this run has 0.5; "),
        ({"shuffle_buffer_size": 8}, "shuffle_buffer_size: the checkpoint was made with 16384, this run has 8; "),
        ({"mask_ratio": 0.7}, "resume_from_checkpoint: checkpoint-5 was made with mask_ratio 0.6, this run has 0.7"),
    ],
)
def test_what_cannot_take_effect_is_refused(run, monkeypatch, changed, message):
    monkeypatch.setattr(A2MIMTrainer, "training_step", lambda *args: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=f"^{message}"):
        pretrain(run, **{**START, "resume_from_checkpoint": "last", **changed})
    assert [path.name for path in run.iterdir()] == ["checkpoint-5"]


def test_other_images_of_the_same_number_are_refused(run, tmp_path):
    load_images(split="test").select(range(16)).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="^resume_from_checkpoint: the training data has changed .* other images"):
        pretrain(run, **START, resume_from_checkpoint="last", dataset_name=tmp_path / "other.parquet")


def test_a_finished_run_makes_no_further_step(finished, caplog):
    """Killed after its last checkpoint, or started again: the same export, byte for byte, and the same numbers."""
    folder, metrics = finished
    names = ["model.safetensors", "pretraining/model.safetensors", "reconstruction.png", "trainer_state.json"]
    before = {name: (folder / name).read_bytes() for name in names[:3]}
    for name in before:
        (folder / name).unlink()
    again = pretrain(folder, **START, resume_from_checkpoint="last")
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert json.loads((folder / names[3]).read_text())["global_step"] == 8
    assert again["train_loss"] == pytest.approx(metrics["train_loss"])
    assert again["eval_loss"] == metrics["eval_loss"]
    assert json.loads((folder / "train_results.json").read_text())["train_loss"] == again["train_loss"]
    assert "all of the 8 steps have been made" in caplog.text
    assert "resumed" not in record(folder)


@pytest.mark.ci
def test_a_finished_run_stops_inside_an_epoch_and_goes_on_if_told(tmp_path, caplog):
    options = {"learning_rate": 1e-3, "max_steps": 3, "save_steps": 3, "lr_scheduler_type": "constant"}
    pretrain(tmp_path / "run", **options)
    first = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"^weight_decay: weight_decay 0\.5 instead of 0\.05 has no effect: "):
        pretrain(tmp_path / "run", **options, weight_decay=0.5, resume_from_checkpoint="last")
    pretrain(tmp_path / "run", **options, resume_from_checkpoint=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == first
    caplog.clear()
    pretrain(tmp_path / "run", **{**options, "max_steps": 5}, resume_from_checkpoint="last")
    assert "with max_steps 5 instead of 3; the schedule of the learning rate goes on as that of" in caplog.text
    assert [entry["step"] for entry in history(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert record(tmp_path / "run")["steps"] == 5


class Rates(TrainerCallback):
    """The rates of all groups, by step; after each, times `factor`, as a schedule does that follows a metric."""

    def __init__(self, factor=1.0):
        self.found, self.factor = {}, factor

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.found[state.global_step + 1] = [group["lr"] for group in optimizer.param_groups]

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] *= self.factor


def rates(folder, resume=None, factor=1.0, **kwargs):
    """Those of a run of 40 images in batches of 8, and the weights after it."""
    callback = Rates(factor)
    trainer = make_trainer(folder, callbacks=[callback], shown=0, **kwargs)
    trainer.train(resume_from_checkpoint=resume)
    logged = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry}
    assert all(logged[step] == max(found) for step, found in callback.found.items())
    return callback.found, trainer.model.state_dict()


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_scheduler_type": "cosine", "layer_decay": 0.5},
        {"lr_scheduler_type": "linear", "warmup_steps": 0.8},
        {"lr_milestones": [0.2, 0.6], "warmup_steps": 0},
    ],
)
@pytest.mark.parametrize("length", [{"max_steps": 6}, {"num_train_epochs": 2}])
def test_another_length_counts_from_the_next_step_on(tmp_path, schedule, length):
    """For all groups, as in a run of that length from its beginning."""
    whole, _ = rates(tmp_path / "whole", save_strategy="no", **length, **schedule)
    rates(tmp_path / "cut", max_steps=4, **schedule)
    before = load_file(tmp_path / "cut" / "checkpoint-4" / "model.safetensors")
    found, after = rates(tmp_path / "cut", "last", **length, **schedule)
    assert found == {step: values for step, values in whole.items() if step > 4}
    assert not torch.equal(before["decoder.weight"], after["decoder.weight"])


def test_a_schedule_has_another_length_with_another_batch_size(tmp_path):
    rates(tmp_path / "cut", num_train_epochs=1)
    found, _ = rates(
        tmp_path / "cut", tmp_path / "cut" / "checkpoint-2", num_train_epochs=1, per_device_train_batch_size=4
    )
    whole, _ = rates(tmp_path / "whole", max_steps=max(found), save_strategy="no")
    assert max(found) == 2 + 24 // 4
    assert found == {step: values for step, values in whole.items() if step > 2}


def test_a_schedule_that_follows_a_metric_goes_on_where_it_was(tmp_path, caplog):
    """Until another one takes its place, and the other way round."""
    plateau, rate = {"lr_scheduler_type": "reduce_lr_on_plateau", "layer_decay": 0.5}, 1e-3
    plateau |= {"eval_strategy": "steps", "eval_steps": 100}  # which no run here comes to
    first, _ = rates(tmp_path, factor=0.5, max_steps=1, **plateau)
    second, _ = rates(tmp_path, "last", max_steps=2, **plateau)
    assert second[2] == [value / 2 for value in first[1]]
    assert next(m for m in caplog.messages if "on with max_steps" in m).endswith("max_steps 2 instead of 1")
    cosine = {**plateau, "lr_scheduler_type": "cosine", "warmup_steps": 0}
    third, _ = rates(tmp_path, "last", max_steps=4, **cosine)
    assert [max(third[step]) for step in (3, 4)] == [rate, rate / 2]
    fourth, _ = rates(tmp_path, "last", max_steps=5, **plateau)
    assert fourth[5] == first[1]


def test_the_first_start_with_last(tmp_path, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    options = {"learning_rate": 1e-3, "max_steps": 1, "save_strategy": "no", "resume_from_checkpoint": "last"}
    pretrain(tmp_path / "new", **options)
    assert "new holds no checkpoint yet: a new run begins" in caplog.text
    assert record(tmp_path / "new")["steps"] == 1
    with pytest.raises(ValueError, match=r"^output_dir: .* holds results .* of another run; name another folder"):
        pretrain(tmp_path / "new", **options)  # which has no checkpoint to go on from, but is not empty
    with pytest.raises(ValueError, match="^resume_from_checkpoint: there is no folder .*/checkpoint-7"):
        pretrain(tmp_path / "named", **{**options, "resume_from_checkpoint": tmp_path / "named" / "checkpoint-7"})


def test_classifiers_too(tmp_path, caplog, no_pictures):
    """Whose other flags are compared as well: mixing, and what part of the model is trained."""
    argv = ["--architecture", "test_convnext", "--image_size", "32", "--num_channels", "1", "--use_cpu"]
    argv += ["--max_train_samples", "40", "--max_eval_samples", "8", "--per_device_train_batch_size", "8"]
    argv += ["--validation_split", "test", "--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "no"]
    argv += ["--learning_rate", "1e-3", "--logging_steps", "1", "--output_dir", str(tmp_path)]
    run_finetune.main([*argv, "--max_steps", "1"])
    resume = [*argv, "--max_steps", "2", "--resume_from_checkpoint", "last"]
    with pytest.raises(ValueError, match="^linear_probe: the checkpoint was made with False, this run has True;"):
        run_finetune.main([*resume, "--linear_probe"])
    with pytest.raises(ValueError, match="^aug_repeats: the checkpoint was made with 1, this run has 2; the order"):
        run_finetune.main([*resume, "--aug_repeats", "2"])
    with pytest.raises(ValueError, match="^model_ema_decay: the checkpoint was made with None, .* averages begin"):
        run_finetune.main([*resume, "--model_ema_decay", "0.9"])
    run_finetune.main([*resume, "--mixup", "0.2", "--reprob", "0.5"])
    assert "max_steps 2 instead of 1, mixup 0.2 instead of 0.0, reprob 0.5 instead of 0.0" in caplog.text
    assert record(tmp_path)["regularisation"] == {"mixup": 0.2}
    assert record(tmp_path)["resumed"][0]["step"] == 1
    # A cosine after a step of warm-up, which of 2 steps ends with a rate of 0.
    run_finetune.main([*resume, "--mixup", "0.2", "--reprob", "0.5", "--max_steps", "3"])
    assert [entry["learning_rate"] for entry in history(tmp_path)] == pytest.approx([0.0, 1e-3, 5e-4])


def test_old_checkpoints_cannot_be_compared(caplog):
    with pytest.raises(ValueError, match="num_train_epochs: checkpoint-5 is of an older version, .* give --num_train"):
        compare("checkpoint-5", None, {"training": {"num_train_epochs": "auto"}, "model": {}, "data": {}}, 5)
    found = compare("checkpoint-5", None, {"training": {"learning_rate": 1.0}, "model": {}, "data": {}}, 5)
    assert (found.changed, found.schedule_start, found.history) == ({}, 0, [])
    assert "checkpoint-5 is of an older version, which kept no settings of training: they cannot be" in caplog.text


def test_every_field_is_compared_or_not_for_a_reason():
    names = {f.name for f in fields(FineTuningArguments)}
    compared = {n for n in names - NOT_COMPARED if not n.startswith(NOT_COMPARED_PREFIXES)}
    assert RATE | LENGTH | set(resuming.GROUPED) <= compared
    assert {"max_grad_norm", "bf16", "fp16", "mixup", "label_smoothing_factor", "dataloader_drop_last"} <= compared
    assert not {n for n in compared if "dir" in n.split("_") or "token" in n.split("_")[1:]}
    assert {name for name in FIXED if name in names} <= compared


def test_settings_that_only_one_version_knows():
    known = {"settings": {"training": {"gone": 1, "bf16": False}, "data": {}}, "schedule_start": 3, "history": []}
    found = compare("checkpoint-9", known, {"training": {"new": 2, "bf16": False}, "model": {"x": 1}, "data": {}}, 9)
    assert (found.changed, found.schedule_start, found.step) == ({}, 3, 9)


def test_a_float16_run_that_goes_on_without(monkeypatch):
    """A checkpoint has the state of a gradient scaler that there is none of now."""
    trainer = object.__new__(A2MIMTrainer)
    trainer.accelerator = SimpleNamespace(scaler=None)
    assert trainer._load_scaler("checkpoint-1") is None
