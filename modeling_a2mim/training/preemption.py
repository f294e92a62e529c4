"""`--enable_jit_checkpoint`: at SIGTERM, a run finishes its step, saves a checkpoint as any other, and stops.

transformers' own callback saves in the middle of a step, when a batch was read that the weights have not learned from,
and into a folder that may stay incomplete.
"""

import contextlib
import logging
import signal

import torch
from transformers import TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import seed_worker


logger = logging.getLogger("a2mim")

STOPPED = 128 + signal.SIGTERM  # how a process ends that stopped at SIGTERM, as a shell tells


@contextlib.contextmanager
def without_jit_callback(trainer):
    """Remove the callback, and the signal handler, that Trainer's constructor adds meanwhile."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if trainer.pop_callback(JITCheckpointCallback):
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def ignore_sigterm(worker: int):
    """For a worker that loads data: a signal to all processes of a job must not end it before the step ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def start_worker(worker: int, num_workers: int, rank: int, ignores_sigterm: bool = False):
    """Begin a worker that loads data as Trainer's, which seeds it.

    Args:
        worker: its number, of `num_workers` of the process `rank`.
        ignores_sigterm: see `ignore_sigterm`.
    """
    seed_worker(worker, num_workers, rank)
    if ignores_sigterm:
        ignore_sigterm(worker)


class SigtermCallback(TrainerCallback):
    """Stops a run at SIGTERM, after the step and with a checkpoint; must come after Trainer's own callbacks.

    Args:
        accelerator: of the trainer; when one process gets the signal, all stop.

    Attributes:
        stopped: whether the run was stopped before its end.
    """

    def __init__(self, accelerator):
        self.accelerator, self.requested, self.stopped, self._before = accelerator, False, False, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.requested = self.stopped = False
        self._before = signal.signal(signal.SIGTERM, self._request) or signal.SIG_DFL

    def _request(self, number, frame):
        self.requested = True

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps or not self._any_requested():
            return
        self.stopped = control.should_training_stop = True
        if not float(state.epoch).is_integer():  # else after what the end of the epoch brings
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if not self.stopped:
            return
        ended = float(state.epoch).is_integer()
        control.should_save = ended
        if not ended:  # nothing of what Trainer does at the end of an epoch
            control.should_evaluate = control.should_log = False

    def on_train_end(self, args, state, control, **kwargs):
        signal.signal(signal.SIGTERM, self._before)
        if self.stopped and args.should_log:
            logger.warning(
                "SIGTERM: stopped after step %d of %d, and checkpoint-%d is saved; go on with "
                "--resume_from_checkpoint last",
                state.global_step,
                state.max_steps,
                state.global_step,
            )

    def _any_requested(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.requested
        requested = torch.tensor([int(self.requested)], device=self.accelerator.device)
        return bool(self.accelerator.gather(requested).any())
