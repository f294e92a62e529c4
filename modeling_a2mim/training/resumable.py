"""`ResumableTrainer`: transformers' Trainer, whose runs go on exactly where their last checkpoint left them.

It is the only class of the package that overrides methods of Trainer whose names begin with an underscore, or uses
such names: another release of transformers may change them. `tests/training/test_resumable.py` pins what is relied on.
"""

import functools
import logging
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, default_data_collator
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..arguments.trainer_fields import check_loading
from ..data.dataset import REPORT, ImageSamples, collate
from ..data.fingerprints import changed_after
from ..data.progress import TrainingData
from ..utils.files import finite, save_json
from .best_model import FOLLOWED, EarlyStopping, forget_best, why_not_best
from .checkpoints import (
    TEMPORARY,
    check_settings,
    clear_temporary,
    complete,
    find_checkpoint,
    read_manifest,
    remove_leftovers,
    rotate,
    verify,
)
from .endings import writing
from .preemption import SigtermCallback, ignore_sigterm, start_worker, without_jit_callback
from .resuming import Resumption, best_metric_name, compare, follow_schedule, keep
from .seeded_reads import SeededReadsCallback, seeded


logger = logging.getLogger("a2mim")


class EpochCallback(TrainerCallback):
    """Tells the data which epoch begins, and that it ends."""

    def __init__(self, data: TrainingData):
        self.data, self.next = data, data.batches.resumed[0]

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.data.begin(self.next)
        self.next += 1

    def on_epoch_end(self, args, state, control, **kwargs):
        self.data.end(gather_object)


class ResumableTrainer(Trainer):
    """transformers' Trainer, with these differences:

    - Batches of `ImageSamples` come in an order that follows from seed, epoch and position (`data.samplers`).
    - A checkpoint is complete or not used (`checkpoints`), holds no pickled arguments, and keeps the position in the
      data and the settings of the run.
    - A run that goes on with other settings takes them over or refuses them (`resuming`).
    - With `enable_jit_checkpoint`, SIGTERM ends a run after its step, with a checkpoint (`preemption`).

    Subclasses may override `run_settings`, `own_scheduler`, `before_update` and `before_saving`.

    Attributes:
        training_data: where the run is in its `ImageSamples`; `None` before training, and for other data.
        resumed_from: the checkpoint that the run goes on from, `None` for a new run.
        resumption: what changed with it.
    """

    default_collator: Callable = staticmethod(default_data_collator)  # torch's own replaces it for `ImageSamples`
    training_data: TrainingData | None = None
    resumed_from: str | None = None
    _resumed_data: dict | None = None  # `data_state` of that checkpoint

    def __init__(self, *args, **kwargs):
        with without_jit_callback(self):
            super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"n_gpu: this process sees {self.args.n_gpu} GPUs; start one process for each, "
                f"torchrun --nproc_per_node {self.args.n_gpu} ..., or hide all but one with CUDA_VISIBLE_DEVICES=0"
            )
        self.resumption, self._sigterm = Resumption(), None
        self.add_callback(SeededReadsCallback())
        if self.args.enable_jit_checkpoint:
            self._sigterm = SigtermCallback(self.accelerator)
            self.add_callback(self._sigterm)

    @property
    def stopped_by_sigterm(self) -> bool:
        """Whether the last run was stopped before its end."""
        return self._sigterm is not None and self._sigterm.stopped

    def unwrapped(self):
        """The model, without what distributes or compiles it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def on_device(self, inputs: dict) -> dict:
        """A batch with its tensors on the device of this process."""
        return self._prepare_inputs(inputs)

    # For subclasses

    def run_settings(self) -> dict[str, dict]:
        """What the run is set to, for its checkpoints (`resuming.run_settings`)."""
        return {}

    def own_scheduler(self, optimizer, steps: int):
        """A schedule of so many steps in place of transformers', or `None`."""
        return None

    def before_update(self, loss: torch.Tensor, grad_norm: torch.Tensor | float):
        """Called after the backward passes of a step, before it changes the weights; may raise.

        Args:
            loss: the sum over the batches of the step.
            grad_norm: before clipping.
        """

    def before_saving(self):
        """Called before weights are written; may raise."""

    # Data

    def get_train_dataloader(self):
        """Batches of this process, in an order that follows from seed and position; for other datasets than
        `ImageSamples`, Trainer's, of which each batch has random numbers of its own (`seeded_reads`)."""
        samples, args = self.train_dataset, self.args
        if not isinstance(samples, ImageSamples):
            self.train_dataset = seeded(samples, args)
            try:
                return super().get_train_dataloader()
            finally:
                self.train_dataset = samples
        check_loading(args)
        self.training_data = TrainingData(
            samples,
            args.train_batch_size,
            args.process_index,
            args.world_size,
            args.gradient_accumulation_steps,
            args.dataloader_drop_last,
            args.dataloader_num_workers,
            self._resumed_data,
        )
        self.remove_callback(EpochCallback)
        self.add_callback(EpochCallback(self.training_data))
        usual = self.data_collator is self.default_collator
        loader = DataLoader(
            samples,
            batch_sampler=self.training_data.batches,
            collate_fn=collate if usual else functools.partial(collate, collator=self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
            worker_init_fn=functools.partial(
                start_worker,
                num_workers=args.dataloader_num_workers,
                rank=args.process_index,
                ignores_sigterm=args.enable_jit_checkpoint,
            ),
        )
        # One process of one: `batches` has this process's share only.
        accelerator = self.accelerator
        return prepare_data_loader(
            loader, accelerator.device, 1, 0, put_on_device=True, non_blocking=accelerator.non_blocking
        )

    def get_eval_dataloader(self, eval_dataset=None):
        # With `dataloader_drop_last`, Trainer would leave images out of the evaluation as well.
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            loader = super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = dropped
        if self.args.enable_jit_checkpoint:
            loader.worker_init_fn = ignore_sigterm
        return loader

    def forget_eval_dataloaders(self):
        """Evaluations have new ones, where `dataloader_persistent_workers` would keep those of other images."""
        self._eval_dataloaders: dict = {}

    def data_state(self) -> dict | None:
        """Where the run is in its data, for a checkpoint; called by all processes."""
        if self.training_data is None:
            return None
        states = gather_object([self.training_data.state()])
        totals = {name: dict(sum((Counter(s[name]) for s in states), Counter())) for name in ("seen", "skipped")}
        return {**states[0], **totals, "global_step": self.state.global_step}

    # Going on from a checkpoint

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As Trainer's.

        Raises:
            ValueError: naming the argument, if there is no checkpoint that this run can go on from.
        """
        self.resumed_from = self._find_checkpoint(resume_from_checkpoint)
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        self._resumed_data = None if self.resumed_from is None else read_manifest(self.resumed_from)["data"]
        if self._resumed_data is not None:
            self.args.ignore_data_skip = False  # nothing is read to be skipped
        elif self.resumed_from is not None and isinstance(self.train_dataset, ImageSamples):
            raise ValueError(
                f"resume_from_checkpoint: {self.resumed_from} does not say how far it was in these images"
            )
        self._settings = self.run_settings()
        self.resumption = self._resumption(self.resumed_from)
        return super().train(resume_from_checkpoint=self.resumed_from, **kwargs)

    def _find_checkpoint(self, value) -> str | None:
        """Found by one process for each disk; all go on from the same checkpoint, or raise the same error."""
        answer: list[tuple[str | None, str | None]] = []
        if self.args.should_save:
            try:
                checkpoint = find_checkpoint(value, self.args.output_dir, thorough=True)
                if checkpoint is not None:
                    check_settings(checkpoint, self.unwrapped())
                answer = [(checkpoint, None)]
            except ValueError as problem:
                answer = [(None, str(problem))]
        answers = gather_object(answer)
        if error := next((error for _, error in answers if error), None):
            raise ValueError(error)
        found = {checkpoint for checkpoint, _ in answers}
        if len(found) > 1:
            names = ", ".join(sorted(map(str, found)))
            raise ValueError(f"resume_from_checkpoint: the machines have different checkpoints, {names}; name one")
        return found.pop()

    def _resumption(self, checkpoint: str | None) -> Resumption:
        if checkpoint is None:
            return Resumption()
        step = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step
        resumption = compare(Path(checkpoint).name, read_manifest(checkpoint).get("run"), self._settings, step)
        if isinstance(self.train_dataset, ImageSamples) and self.args.should_log:
            written = os.stat(Path(checkpoint, TRAINER_STATE_NAME)).st_mtime
            if changed := changed_after(self.train_dataset.source, written):
                logger.warning(
                    "%d files of the training data, such as %s, were changed after %s was written; if they are other "
                    "images, the run goes on with these",
                    *(len(changed), Path(changed[0]).name, Path(checkpoint).name),
                )
        if self.is_deepspeed_enabled and (resumption.restarts_schedule or resumption.grouped):
            names = ", ".join(resumption.changed)
            raise ValueError(f"resume_from_checkpoint: with DeepSpeed, {names} cannot change in the middle of a run")
        return resumption

    def set_initial_training_values(self, args, dataloader):
        values = list(super().set_initial_training_values(args, dataloader))
        if self.training_data is None or self._resumed_data is None:
            return tuple(values)
        # Steps left count from where the data is: a step may hold more or fewer images than before.
        _, updates, _, _, _, _, max_steps = values
        batches = self.training_data.batches
        epoch, given = batches.resumed[0], batches.skipped // args.gradient_accumulation_steps
        done = self._resumed_data["global_step"]
        if args.max_steps < 0:
            max_steps = done + max(0, max_steps - epoch * updates - given)
        values[0] = epoch + math.ceil((given + max(0, max_steps - done)) / updates)
        values[-1] = max_steps
        return tuple(values)

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        """Returns the epoch to begin with, and how many batches of it are left out."""
        start = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        if checkpoint is None:
            return start
        self.state.compute_steps(self.args, max_steps)  # to log, save and evaluate at, not those of the checkpoint
        self.resumption.check_steps_left(max_steps)
        reasons = gather_object([why_not_best(self.state, self.args, self.resumption, checkpoint)])
        if reasons[0] is not None:  # where disks differ, as the first process finds
            forget_best(self.state, self.callback_handler.callbacks, reasons[0])
        if self.training_data is not None:
            start = self.training_data.batches.resumed[0], self.training_data.batches.skipped
        elif not hasattr(self.train_dataset, "__len__"):
            start = self._place_in_stream(checkpoint)
        if self.state.global_step >= max_steps:
            logger.info("all of the %d steps have been made (%d): no further one", max_steps, self.state.global_step)
            return num_train_epochs, 0
        patience = next((c for c in self.callback_handler.callbacks if isinstance(c, EarlyStopping)), None)
        if patience is not None and patience.has_stopped(self.args):
            logger.info(
                "early_stopping_patience: the run had stopped at step %d: no further one", self.state.global_step
            )
            return num_train_epochs, 0
        return start

    def _place_in_stream(self, checkpoint: str) -> tuple[int, int]:
        """Epoch and batches of it, which Trainer does not know of data without a length: it takes `max_steps` for an
        epoch, so that the fraction of `epoch` counts the batches."""
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            if name in self.resumption.changed:
                then, now = self.resumption.changed[name]
                raise ValueError(
                    f"{name}: the checkpoint was made with {then}, this run has {now}; the place in a train_dataset "
                    "without a length is a number of batches"
                )
        state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
        fraction, epoch = math.modf(state.epoch)
        return int(epoch), round(fraction * state.max_steps * self.args.gradient_accumulation_steps)

    def scheduled_steps(self, steps: int) -> int:
        """How many of the steps of a run its schedule is over: it starts anew where a changed rate takes effect."""
        return max(1, steps - self.resumption.schedule_start) if self.resumption.schedule_start else steps

    def create_scheduler(self, num_training_steps, optimizer=None):
        steps = self.scheduled_steps(num_training_steps)
        if self.lr_scheduler is None:
            self.lr_scheduler = self.own_scheduler(optimizer or self.optimizer, steps)
            self._created_lr_scheduler = self.lr_scheduler is not None  # and to be made anew by the next `train`
        return super().create_scheduler(steps, optimizer)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """With what the run that goes on sets anew (see `resuming`)."""
        resumption, schedule = self.resumption, self.lr_scheduler
        groups = [dict(group) for group in self.optimizer.param_groups]
        followed = {name: vars(schedule)[name] for name in FOLLOWED if name in vars(schedule)}
        if resumption.restarts_schedule:  # the state of the one before is not loaded, which may be of another kind
            self.lr_scheduler = SimpleNamespace(load_state_dict=lambda state: None)
        super()._load_optimizer_and_scheduler(checkpoint)
        self.lr_scheduler = schedule
        if resumption.other_figures(best_metric_name(self.args)):
            vars(schedule).update(followed)
        names = resumption.grouped | ({"lr", "initial_lr"} if resumption.restarts_schedule else set())
        for loaded, fresh in zip(self.optimizer.param_groups, groups, strict=True):
            loaded.update({name: fresh[name] for name in names & fresh.keys()})
        follow_schedule(self.lr_scheduler, self.optimizer)

    def _load_scaler(self, checkpoint):
        if self.accelerator.scaler is not None:  # else the run was in float16 until then
            super()._load_scaler(checkpoint)

    # Steps

    def _get_learning_rate(self):
        """The rate, at this step, of the groups that are to learn at `learning_rate`; Trainer gives that of the first
        group, which with layer-wise decay is the slowest."""
        groups = self.optimizer.param_groups
        given = [group for group in groups if group.get("initial_lr") == self.args.learning_rate]
        return float(max(group["lr"] for group in given or groups))

    _step_loss: torch.Tensor | float = 0.0  # of the batches of a step so far

    def training_step(self, model, inputs, num_items_in_batch=None):
        report = inputs.pop(REPORT, None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = self._step_loss + loss
        if report is not None:
            self.training_data.trained(report)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The last call before a step changes the weights that knows the gradient norm."""
        norm = super()._get_grad_norm(model, grad_norm)
        loss, self._step_loss = self._step_loss, 0.0
        if norm is not None:
            self.before_update(loss, norm)
        return norm

    # Checkpoints

    _temporary: str | None = None  # while a checkpoint is written: the folder in place of the output folder

    def _get_output_dir(self, trial):
        return self._temporary or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        self.before_saving()
        run_dir = Path(self._get_output_dir(trial))
        target = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            clear_temporary(run_dir)
        self.accelerator.wait_for_everyone()
        self._temporary = str(run_dir / TEMPORARY)
        try:
            with writing(run_dir):
                super()._save_checkpoint(model, trial)
        finally:
            self._temporary = None
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best == target or best.is_dir()):
            self.state.best_model_checkpoint = str(best)  # where it will be, not where it is written
        data = self.data_state()
        self.accelerator.wait_for_everyone()  # each process has files of its own
        if self.args.should_save:
            folder = run_dir / TEMPORARY / target.name
            run = keep(self._settings, self.resumption)
            with writing(run_dir):
                save_json(asdict(self.state), folder / TRAINER_STATE_NAME)
                complete(folder, target, self.unwrapped(), data, self.args.save_only_model, run)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run_dir, self.args.save_total_limit, keep=[target, *([best] if best else [])])

    def _push_from_checkpoint(self, checkpoint_folder):
        """Trainer would push the checkpoint here, before it is complete; what is published is for a callback's
        `on_save`."""

    def _load_best_model(self):
        if problems := verify(self.state.best_model_checkpoint):
            raise ValueError(f"load_best_model_at_end: {self.state.best_model_checkpoint}: {'; '.join(problems)}")
        super()._load_best_model()

    def _save(self, output_dir=None, state_dict=None):
        # Trainer would pickle its arguments here, the Hub token among them.
        if self.args.should_save:
            self.unwrapped().save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def save_state(self):
        if self.is_world_process_zero():
            save_json(asdict(self.state), Path(self.args.output_dir, TRAINER_STATE_NAME))

    def save_metrics(self, split, metrics, combined=True):
        super().save_metrics(split, finite(metrics), combined)
