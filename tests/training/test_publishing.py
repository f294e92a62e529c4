"""Pushes while training goes on; `tests/export/test_hub.py` makes real ones."""

import logging
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy

from modeling_a2mim import A2MIMForPreTraining, A2MIMTrainer, A2MIMTrainingArguments
from modeling_a2mim.export.loading import load_pretraining_model
from modeling_a2mim.training.publishing import PushCallback

from ..families import family_config


class Pushes:
    """Begins pushes that end when they are told to."""

    def __init__(self):
        self.messages, self.futures = [], []

    def __call__(self, message):
        self.messages.append(message)
        self.futures.append(Future())
        return self.futures[-1]


def save(callback, step, first=True, **kwargs):
    args = {"push_to_hub": True, "hub_strategy": HubStrategy.EVERY_SAVE, "hub_always_push": False, **kwargs}
    callback.on_save(SimpleNamespace(**args), SimpleNamespace(global_step=step, is_world_process_zero=first), None)


def test_a_checkpoint_is_pushed_when_the_push_before_has_ended():
    pushes = Pushes()
    callback = PushCallback(pushes)
    save(callback, 1)
    save(callback, 2)  # left out
    pushes.futures[0].set_result(None)
    save(callback, 3)
    save(callback, 4, hub_always_push=True)
    assert pushes.messages == [f"Training in progress, step {step}" for step in (1, 3, 4)]


@pytest.mark.parametrize(
    "given", [{"push_to_hub": False}, {"hub_strategy": HubStrategy.END}, {"hub_strategy": "end"}, {"first": False}]
)
def test_when_nothing_is_pushed(given):
    pushes = Pushes()
    save(PushCallback(pushes), 1, **given)
    assert pushes.messages == []


def test_the_end_of_training_waits_and_tells_of_an_error(caplog):
    pushes = Pushes()
    callback = PushCallback(pushes)
    callback.on_train_end(None, None, None)  # nothing to wait for
    save(callback, 1)
    pushes.futures[0].set_exception(OSError("no network"))
    with caplog.at_level(logging.WARNING, "a2mim"):
        callback.on_train_end(None, None, None)
        callback.on_train_end(None, None, None)
    assert caplog.messages == ["a push while training failed: no network"]


def test_an_evaluation_in_half_precision_leaves_the_weights(tmp_path, one_thread):
    model = A2MIMForPreTraining(family_config("resnet"))
    rows = [{"pixel_values": torch.rand(3, 64, 64)} for _ in range(4)]
    args = A2MIMTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, bf16_full_eval=True, use_cpu=True,
        disable_tqdm=True, report_to="none", save_strategy="no", warmup_steps=0,
    )  # fmt: skip
    metrics = A2MIMTrainer(model, args, train_dataset=rows, eval_dataset=rows).run()
    assert metrics["eval_masked_psnr"] > 0
    saved = load_pretraining_model(str(tmp_path)).state_dict()
    assert [name for name, value in model.state_dict().items() if not torch.equal(saved[name], value)] == []


def small_trainer(folder, model=None, **kwargs):
    model = A2MIMForPreTraining(family_config("resnet")) if model is None else model
    rows = [{"pixel_values": torch.rand(3, 64, 64)} for _ in range(4)]
    args = A2MIMTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True, report_to="none",
        **{"max_steps": 1, "save_strategy": "no", "eval_strategy": "no", "warmup_steps": 0, **kwargs},
    )  # fmt: skip
    return A2MIMTrainer(model, args, train_dataset=rows, eval_dataset=rows)


def test_the_record_has_the_images_that_were_evaluated(tmp_path, one_thread):
    trainer = small_trainer(tmp_path)
    rows = trainer.eval_dataset
    trainer.train()
    for given, images, others in ((None, 4, None), (rows, 4, None), (rows[:3], 3, True)):
        trainer.evaluate(given)
        found = trainer.record()["evaluation"]
        assert (found["images"], found.get("other_images")) == (images, others)
    trainer.evaluate(rows[:1], metric_key_prefix="train")  # no entry of an evaluation in the log
    trainer.save_model()
    assert "Measured on 3 images of other data than" in (tmp_path / "README.md").read_text()


def test_the_record_tells_evaluations_apart(tmp_path, one_thread):
    """That of the trainer's own images and of others, each with its figures."""
    trainer = small_trainer(tmp_path, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    others = trainer.eval_dataset[:3]

    def found():
        evaluation = trainer.record()["evaluation"]
        return evaluation["images"], evaluation.get("other_images")

    trainer.train()
    trainer.evaluate(others)
    assert found() == (3, True)
    trainer.train(resume_from_checkpoint=True)  # makes no step, and leaves what the checkpoint says
    assert found() == (4, None)

    class Probe(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            if not any(name.startswith("eval_probe") for name in metrics):
                trainer.evaluate(others, metric_key_prefix="eval_probe")

    probe = Probe()
    trainer.add_callback(probe)
    trainer.evaluate()
    assert found() == (3, True)  # the last one
    trainer.remove_callback(probe)
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": others}
    trainer.evaluate(others, metric_key_prefix="eval_b")
    assert found() == (3, None)
    trainer.eval_dataset = None
    trainer.evaluate(others[:2])
    assert found() == (2, None)


def test_the_record_of_a_best_model_is_of_its_weights(tmp_path, one_thread):
    scores = iter((2.0, 1.0, 7.0))
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    trainer = small_trainer(tmp_path, max_steps=2, **every, **best)
    trainer.compute_metrics = lambda prediction: {"score": next(scores)}
    trainer.train()
    for score in (2, 7):
        found = trainer.record()
        assert (found["best"]["step"], found["evaluation"]["step"]) == (1, 1)
        assert (found["evaluation"]["score"], found["steps"]) == (score, 2)
        if score == 2:
            trainer.evaluate()


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield {"pixel_values": torch.zeros(3, 64, 64)}


def test_the_record_of_a_second_call_and_of_a_stream(tmp_path, one_thread):
    trainer = small_trainer(tmp_path)
    trainer.train()
    assert "earlier" not in trainer.record()
    trainer.train_dataset = Endless()
    trainer.train()
    record = trainer.record()
    assert [(run["steps"], run["epochs"]) for run in record["earlier"]] == [(1, 0.5)]
    assert (record["steps"], record["images"], record["epochs"]) == (1, None, None)  # no passes of it are known
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "| steps | 1 |" in card
    assert "| trained, in all | 2 steps |" in card
