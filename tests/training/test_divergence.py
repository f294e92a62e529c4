"""A run that diverges stops at once, and leaves no weights, checkpoints or numbers that are not finite."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

import run_finetune
import run_pretraining
from modeling_a2mim.training.divergence import Diverged, check_weights, non_finite_weights, persists
from modeling_a2mim.utils.files import finite

from ..integration.test_scripts import FAST, SMALL


pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")
WILD = ["--optim", "sgd", "--learning_rate", "1e30", "--max_grad_norm", "0", "--warmup_steps", "0"]


def strict(path):
    def no_constant(name):
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=no_constant)


@pytest.mark.parametrize("script", ["run_pretraining", "run_finetune"])
def test_a_run_stops_at_the_step_that_diverges(tmp_path, script):
    small, main = (SMALL, run_pretraining.main) if script == "run_pretraining" else (SMALL[:4], run_finetune.main)
    argv = [*small, *FAST, *WILD, "--max_train_samples", "32", "--max_eval_samples", "8", "--max_steps", "8"]
    with pytest.raises(Diverged) as stopped:
        main([*argv, "--save_steps", "1", "--logging_steps", "1", "--output_dir", str(tmp_path)])
    message = str(stopped.value)
    step = int(message.split("diverged in step ")[1].split(maxsplit=1)[0]) if "diverged in step" in message else 1
    assert message.startswith("learning_rate: ")
    assert "a learning rate of 1e+30 (usual with AdamW: " in message
    assert "gradients that are not clipped (--max_grad_norm 0)" in message
    kept = sorted(tmp_path.glob("checkpoint-*"))
    assert len(kept) == step - 1
    for checkpoint in kept:
        weights = load_file(checkpoint / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())
        strict(checkpoint / "trainer_state.json")
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "training.json").exists()


def test_gradients_that_are_infinite_once_stop_unless_their_scale_may_be_the_cause():
    assert persists(math.nan, 1.0, None)
    assert persists(1.0, math.inf, None)
    assert not persists(1.0, 1.0, None)
    assert not persists(math.nan, math.inf, 65536.0)  # the scaler leaves the step out
    assert persists(math.nan, math.inf, 0.5)


@pytest.mark.parametrize("harm", ["loss", "gradient", "weight"])
def test_what_is_not_finite_is_found_wherever_it_is(tmp_path, harm, monkeypatch):
    """And what was good before is kept."""
    steps = []

    def broken_step(self, model, inputs, num_items_in_batch=None):
        loss = step(self, model, inputs, num_items_in_batch)
        steps.append(loss)
        parameter = next(p for p in model.parameters() if p.grad is not None)
        if len(steps) == 2 and harm == "gradient":
            parameter.grad[..., 0] = math.inf
        if len(steps) == 2 and harm == "weight":  # after the look at the step
            with torch.no_grad():
                parameter.view(-1)[0] = math.nan
        return loss * math.inf if len(steps) == 2 and harm == "loss" else loss

    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", broken_step)
    argv = [*SMALL, *FAST, "--max_train_samples", "32", "--max_steps", "4", "--save_total_limit", "1"]
    where = "after step 2, " if harm == "weight" else r"training has diverged in step 2 \("
    with pytest.raises(Diverged, match=f"^learning_rate: {where}"):
        run_pretraining.main([*argv, "--save_steps", "1", "--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (tmp_path / "model.safetensors").exists()


def test_weights_and_statistics_are_looked_at():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    assert non_finite_weights(model) == []
    model[1].running_var[0] = math.inf
    assert non_finite_weights(model) == ["1.running_var"]
    model[0].bias.data[1] = math.nan
    with pytest.raises(Diverged, match="^learning_rate: after step 7, 0.bias and 1 more hold values that are not"):
        check_weights(model, 7, "likely causes: none")


def test_json_has_no_nan():
    value = {"a": [1.0, math.nan, (math.inf, "x")], "b": {"c": -math.inf, "d": 2}}
    assert finite(value) == {"a": [1.0, None, [None, "x"]], "b": {"c": None, "d": 2}}
