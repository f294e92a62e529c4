"""What is written beside training: its log, its speed, its progress."""

import json

import pytest
from transformers import TrainerCallback

from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.export.record import PACE
from modeling_a2mim.training import callbacks
from modeling_a2mim.training.outputs import METRICS

from .test_trainer import make_trainer


class Clock(TrainerCallback):
    """Time that passes only when an image is read, for a quarter of a second, and when a step is made, for six."""

    now = 100.0

    def __call__(self):
        return self.now

    def on_step_end(self, args, state, control, **kwargs):
        self.now += 6


def test_pace(tmp_path, monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(callbacks, "perf_counter", clock)
    sample = ImageSamples._sample

    def slow(self, *args):
        clock.now += 0.25
        return sample(self, *args)

    trainer = make_trainer(tmp_path, callbacks=[clock], max_steps=5, save_strategy="no")
    monkeypatch.setattr(ImageSamples, "_sample", slow)
    trainer.train()
    found = [[log[name] for name in PACE] for log in trainer.state.log_history if "loss" in log]
    # Eight images are two seconds; accelerate is one batch ahead, so that the first step waits for two, the last of a
    # pass for none.
    assert found == [
        [0.8, 0.4, 4 * 10.0],
        [1.0, 0.25, 3 * 9.0],
        [1.0, 0.25, pytest.approx(2 * 26 / 3, abs=0.1)],
        [1.0, 0.25, 1 * 8.5],
        [pytest.approx(8 / 6, abs=0.01), 0.0, 0.0],
    ]
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines == trainer.state.log_history
    assert not {name for entry in trainer.record()["log"] for name in entry} & set(PACE)
    assert "'time_left': '0:00:40'" in capsys.readouterr().out


def test_the_speed_at_the_end_counts_images(tmp_path):
    """Those that were trained on, by this run: not steps of as many batches as a pass may not have."""
    options = {"gradient_accumulation_steps": 64, "logging_steps": 2}  # a pass is one step of 40 images

    def speed(resume=None, **kwargs):
        trainer = make_trainer(tmp_path, **options, **kwargs)
        found = trainer.train(resume_from_checkpoint=resume).metrics
        assert trainer.state.log_history[-1]["train_samples_per_second"] == found["train_samples_per_second"]
        return found["train_samples_per_second"] * found["train_runtime"]

    assert speed(max_steps=3) == pytest.approx(3 * 40, abs=0.1)
    assert speed("last", max_steps=5) == pytest.approx(2 * 40, abs=0.1)
    assert speed("last", max_steps=5) == 0


def test_evaluations_are_lines_too(tmp_path):
    trainer = make_trainer(tmp_path / "run", max_steps=2, save_strategy="no")
    samples = trainer.train_dataset
    trainer.evaluate(samples)
    assert not (tmp_path / "run" / METRICS).exists()  # before training, there is no log to write to
    trainer.train()
    trainer.log({"eval_loss": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 2]
    assert "train_runtime" in lines[2]
    assert lines[3]["eval_loss"] is None


@pytest.mark.parametrize("disabled", [False, True])
def test_the_bar_can_be_turned_off(tmp_path, capsys, disabled):
    make_trainer(tmp_path, max_steps=2, save_strategy="no", disable_tqdm=disabled).train()
    out, err = capsys.readouterr()
    assert out.count("'time_left': '0:00:00'") == 2
    assert ("2/2" in err) != disabled
