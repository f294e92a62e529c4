"""Pushes while training goes on; `tests/export/test_hub.py` makes real ones."""

import logging
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from transformers.trainer_utils import HubStrategy

from modeling_a2mim.training.publishing import PushCallback


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
