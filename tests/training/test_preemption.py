"""SIGTERM with `--enable_jit_checkpoint`: at any moment of a step, on one process and with workers."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from modeling_a2mim.training.checkpoints import verify
from modeling_a2mim.training.preemption import STOPPED, SigtermCallback

from .test_trainer import losses, make_trainer, weights


pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"max_steps": 4, "save_strategy": "no", "shown": 0, "enable_jit_checkpoint": True, "count": 16}


class Terminate(TrainerCallback):
    """The signal comes at this event of the step that follows `step`."""

    def __init__(self, event, step):
        self.step = step
        setattr(self, event, self._signal)

    def _signal(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("whole"), **OPTIONS)
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return trainer


# 16 images in batches of 8 are 2 steps an epoch; the signal inside a step is that of the forward or backward.
@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("event", "step", "saved", "accumulated"),
    [
        ("on_step_begin", 0, 1, 1),
        ("on_pre_optimizer_step", 1, 2, 1),  # where transformers would save in the middle of the step; ends an epoch
        ("on_step_end", 3, 3, 1),
        ("on_substep_end", 1, 2, 2),
    ],
)
def test_the_checkpoint_is_exact(whole, tmp_path, event, step, saved, accumulated):
    options = OPTIONS | {"gradient_accumulation_steps": accumulated, "per_device_train_batch_size": 8 // accumulated}
    expected = whole
    if accumulated > 1:
        expected = make_trainer(tmp_path / "whole", **options)
        expected.train()
    trainer = make_trainer(tmp_path / "run", callbacks=[Terminate(event, step)], **options)
    with pytest.raises(SystemExit) as stop:
        trainer.run()
    assert stop.value.code == STOPPED == 143
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{saved}"]
    assert verify(tmp_path / "run" / f"checkpoint-{saved}") == []
    assert not (tmp_path / "run" / "model.safetensors").exists()  # of a run that is not finished
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed = make_trainer(tmp_path / "run", **options)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint="last")
    assert resumed.state.global_step == 4
    assert losses(resumed) == losses(expected)
    assert all(torch.equal(value, weights(expected)[name]) for name, value in weights(resumed).items())


def test_workers_survive_a_signal_to_all_processes(tmp_path, monkeypatch):
    """As a job's scheduler sends it: torch would end the run as a worker is gone."""
    from torch.multiprocessing import active_children

    class All(Terminate):
        def _signal(self, args, state, control, **kwargs):
            if state.global_step == self.step:
                workers = active_children()
                assert len(workers) == 2
                for worker in workers:
                    os.kill(worker.pid, signal.SIGTERM)
                super()._signal(args, state, control, **kwargs)

    options = OPTIONS | {"dataloader_num_workers": 2, "max_steps": 6, "count": 32, "per_device_train_batch_size": 4}
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, callbacks=[All("on_step_begin", 1)], **options).run()
    assert verify(tmp_path / "checkpoint-2") == []


def test_what_the_end_of_an_epoch_brings():
    """Stopped inside an epoch, nothing that is for its end is done; stopped at its end, all, and then it is saved."""
    accelerator = SimpleNamespace(num_processes=1)
    for epoch, at_step_end, at_epoch_end in ((0.5, True, (False, False, False)), (1.0, False, (True, True, True))):
        callback, control = SigtermCallback(accelerator), TrainerControl()
        callback.requested = True
        state = TrainerState(global_step=2, max_steps=4, epoch=epoch)
        callback.on_step_end(None, state, control)
        assert (control.should_training_stop, control.should_save) == (True, at_step_end)
        control.should_evaluate = control.should_log = control.should_save = True  # as by strategy epoch
        callback.on_epoch_end(None, state, control)
        assert (control.should_save, control.should_evaluate, control.should_log) == at_epoch_end
    callback, control = SigtermCallback(accelerator), TrainerControl()
    callback.requested = True
    callback.on_step_end(None, TrainerState(global_step=4, max_steps=4, epoch=2.0), control)
    assert (control.should_training_stop, callback.stopped) == (False, False)  # it has finished


def test_one_process_that_is_told_stops_all():
    gathered = []

    def gather(value):
        gathered.append(value)
        return torch.cat([value, torch.ones_like(value)])

    callback = SigtermCallback(SimpleNamespace(num_processes=2, device="cpu", gather=gather))
    control = TrainerControl()
    callback.on_step_end(None, TrainerState(global_step=1, max_steps=4, epoch=0.5), control)
    assert (control.should_save, callback.stopped, len(gathered)) == (True, True, 1)


def test_what_cannot_go_on_later_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^enable_jit_checkpoint: is for runs that go on later"):
        make_trainer(tmp_path, save_only_model=True, **OPTIONS)
    with pytest.raises(ValueError, match="^auto_find_batch_size: is not supported, as the learning rate is for one"):
        make_trainer(tmp_path, auto_find_batch_size=True)
    assert not list(Path(tmp_path).iterdir())
