"""`A2MIMTrainer`: transformers' Trainer with both loss terms in its logs, the paper's parameter groups, pictures of
reconstructions, checkpoints without pickled arguments, and a plain timm / transformers folder at the end."""

import functools
import logging
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments, default_data_collator
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalPrediction, HubStrategy
from transformers.utils import PushInProgress

from ..arguments.trainer_fields import check_loading
from ..arguments.training import A2MIMTrainingArguments, with_values
from ..data.dataset import REPORT, ImageSamples, collate
from ..data.progress import TrainingData
from ..data.transforms import PreTrainTransform
from ..evaluation.baselines import masked_errors, summarise_errors
from ..export.folder import export_model, write_card
from ..export.hub import push_folder
from ..export.record import dataset_length, describe_run, mean_loss
from ..modeling_a2mim import A2MIMForPreTraining
from ..utils.files import finite, save_json
from .advice import what_to_change
from .batch_norm import check_batch_norms
from .best_model import EarlyStopping
from .callbacks import (
    ExampleCallback,
    MetricsCallback,
    OverwriteCallback,
    PaceCallback,
    PassCallback,
    ReadablePrinter,
    ReadableProgress,
    ReconstructionCallback,
)
from .checkpoints import (
    ASIDE,
    check_settings,
    complete,
    find_checkpoint,
    newest_first,
    prepare_aside,
    read_record,
    remove_leftovers,
    rotate,
    verify,
)
from .divergence import Diverged, check_weights, likely_causes, persists
from .endings import writing
from .length import logging_steps, with_length
from .optimization import check_schedule, milestone_schedule, parameter_groups, timm_optimizer
from .preemption import STOPPED, SigtermCallback, ignore_sigterm, without_jit_callback
from .raw_data import LABELS, as_samples, collate_samples
from .resuming import Resumption, compare, keep, run_settings


logger = logging.getLogger("a2mim")

LOSS_TERMS = ("spatial_loss", "frequency_loss")


def _reconstruction_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return summarise_errors(torch.as_tensor(prediction.predictions))


def _count(dataset) -> str:
    images = dataset_length(dataset)
    return "some" if images is None else f"{images:,}"


class A2MIMTrainer(Trainer):
    """transformers' `Trainer` for `A2MIMForPreTraining` and `A2MIMForImageClassification`: both loss terms in the log,
    exact resume, and a plain timm / transformers folder at the end. Arguments are those of `Trainer`, and

    Args:
        picture_samples: samples (dicts with pixel_values and bool_masked_pos) whose reconstructions are shown in
            `output_dir/reconstructions/step-N.png` every `args.reconstruction_steps`, and at the end in
            `output_dir/reconstruction.png`. For a classifier: one sample, shown in `output_dir/example.png`.
        picture_names: what to call them there.
        pretraining_model: for a classifier, the model it was made from, exported beside it.
        provenance: what the model card says of data and origin (`records.describe_run`).
        flags: the command line's arguments of model and data (`resuming.flags`), to be compared when the run resumes.

    `args` may be transformers' own TrainingArguments, which keep their values. Images to train and evaluate on may be
    rows of `datasets` with a column of images (and of labels, for a classifier), or samples with `pixel_values`.

    Raises:
        ValueError: naming the argument that cannot be used, and what to give instead.
    """

    arguments_class = A2MIMTrainingArguments

    def __init__(
        self,
        model=None,
        args: TrainingArguments | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        *further,
        picture_samples=None,
        picture_names: list[str] | None = None,
        pretraining_model: A2MIMForPreTraining | None = None,
        provenance: dict | None = None,
        flags: dict[str, dict] | None = None,
        **kwargs,
    ):
        args = with_values(self.arguments_class.from_plain(args))  # its own, of which the length is chosen here
        data_collator = collate_samples if data_collator is None else data_collator
        with without_jit_callback(self):
            super().__init__(model, args, data_collator, train_dataset, eval_dataset, *further, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"n_gpu: this process sees {self.args.n_gpu} GPUs; start one process for each, "
                f"torchrun --nproc_per_node {self.args.n_gpu} ..., or hide all but one with CUDA_VISIBLE_DEVICES=0"
            )
        self.pretraining_model = pretraining_model
        self.provenance = dict(provenance or {})
        if self.args.hub_license is not None:
            self.provenance["license"] = self.args.hub_license
        self.train_dataset = self._samples(self.train_dataset, "train_dataset")
        self.eval_dataset = self._samples(self.eval_dataset, "eval_dataset")
        self.flags = flags
        self.resumption = Resumption()
        self._terms: dict[str, list] = {}
        self._pace = PaceCallback()
        for callback in (OverwriteCallback, MetricsCallback, self._pace):
            self.add_callback(callback)
        for usual, readable in ((ProgressCallback, ReadableProgress), (PrinterCallback, ReadablePrinter)):
            if self.pop_callback(usual):
                self.add_callback(readable)
        self._sigterm = None
        if self.args.enable_jit_checkpoint:
            self._sigterm = SigtermCallback(self.accelerator)
            self.add_callback(self._sigterm)
        self.reconstructs = isinstance(self._unwrapped(), A2MIMForPreTraining)
        if self.reconstructs:
            self.can_return_loss = True  # from pixels alone
            self.compute_metrics = self.compute_metrics or _reconstruction_metrics
        if picture_samples:
            batch = default_data_collator(picture_samples)
            self.add_callback(
                ReconstructionCallback(batch, picture_names) if self.reconstructs else ExampleCallback(batch)
            )
        if (images := dataset_length(self.train_dataset)) is not None:
            self.args = with_length(self.args, images)
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping)

    push_in_progress: PushInProgress | None = None

    # Data

    _data: TrainingData | None = None
    _pixels: torch.Tensor | None = None
    _record: dict | None = None  # of the data, in the checkpoint that the run goes on from

    def _samples(self, dataset, name: str):
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return as_samples(dataset, self._unwrapped(), seed, name)

    def get_train_dataloader(self):
        """Batches of this process, in an order that follows from seed and position (see `order`); for other datasets
        than `ImageSamples`, Trainer's."""
        samples, args = self.train_dataset, self.args
        if not isinstance(samples, ImageSamples):
            return super().get_train_dataloader()
        check_loading(args)
        self._data = TrainingData(
            samples,
            self._train_batch_size,
            args.process_index,
            args.world_size,
            args.gradient_accumulation_steps,
            args.dataloader_drop_last,
            args.dataloader_num_workers,
            self._record,
        )
        self.remove_callback(PassCallback)
        self.add_callback(PassCallback(self._data))
        self._check_batch_norms()
        loader = DataLoader(
            samples,
            batch_sampler=self._data.batches,
            collate_fn=collate
            if self.data_collator is collate_samples
            else functools.partial(collate, collator=self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            worker_init_fn=ignore_sigterm if args.enable_jit_checkpoint else None,
        )
        # The batches are those of this process already.
        accelerator = self.accelerator
        return prepare_data_loader(
            loader, accelerator.device, 1, 0, put_on_device=True, non_blocking=accelerator.non_blocking
        )

    def _check_batch_norms(self):
        if self._data.batches.fewest > 1:
            return
        samples = self.train_dataset.__getitems__([(0, 0)])
        batch = collate(samples, self.data_collator)
        inputs = {k: v for k, v in batch.items() if k not in (REPORT, "labels")}
        if isinstance(self.train_dataset.transform, PreTrainTransform):
            inputs["pixel_values"] = self.train_dataset.transform.normalize(inputs["pixel_values"])
        sizes = len(self.train_dataset), self._train_batch_size, self.args.world_size
        check_batch_norms(self._unwrapped(), inputs, *sizes)

    def get_eval_dataloader(self, eval_dataset=None):
        # Trainer would leave images out of the evaluation as well.
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            loader = super().get_eval_dataloader(self._samples(eval_dataset, "eval_dataset"))
        finally:
            self.args.dataloader_drop_last = dropped
        if self.args.enable_jit_checkpoint:
            loader.worker_init_fn = ignore_sigterm
        return loader

    def get_test_dataloader(self, test_dataset):
        return super().get_test_dataloader(self._samples(test_dataset, "test_dataset"))

    def set_initial_training_values(self, args, dataloader):
        values = list(super().set_initial_training_values(args, dataloader))
        if self._data is None or self._record is None:
            return tuple(values)
        # Steps left count from where the data is: a step may hold more or fewer images than before.
        _, updates, _, _, _, _, max_steps = values
        number, given = self._data.batches.resumed[0], self._data.batches.skipped // args.gradient_accumulation_steps
        done = self._record["global_step"]
        if args.max_steps < 0:
            max_steps = done + max(0, max_steps - number * updates - given)
        values[0] = number + math.ceil((given + max(0, max_steps - done)) / updates)
        values[-1] = max_steps
        return tuple(values)

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial):
        self.args.logging_steps = logging_steps(self.args, max_steps)
        passes, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial
        )
        if checkpoint is not None:
            self.state.compute_steps(self.args, max_steps)  # to log, save and evaluate at, not those of the checkpoint
            self.resumption.check_steps_left(max_steps)
        if self._data is not None and checkpoint is not None:
            passes, batches = self._data.batches.resumed[0], self._data.batches.skipped
        elif checkpoint is not None and dataset_length(self.train_dataset) is None:
            passes, batches = self._place_in_stream(checkpoint)
        if checkpoint is not None and self.state.global_step >= max_steps:
            logger.info("all of the %d steps have been made (%d): no further one", max_steps, self.state.global_step)
            return num_train_epochs, 0
        patience = next((c for c in self.callback_handler.callbacks if isinstance(c, EarlyStopping)), None)
        if checkpoint is not None and patience is not None and patience.has_stopped(self.args):
            logger.info(
                "early_stopping_patience: the run had stopped at step %d: no further one", self.state.global_step
            )
            return num_train_epochs, 0
        return passes, batches

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
        fraction, passes = math.modf(state.epoch)
        return int(passes), round(fraction * state.max_steps * self.args.gradient_accumulation_steps)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        with self._pace.waiting():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._pace.images += len(inputs["pixel_values"])
        report = inputs.pop(REPORT, None)
        if report is not None and isinstance(self.train_dataset.transform, PreTrainTransform):
            # Into the same memory every step: on a CPU, new memory costs as much as the arithmetic.
            self._pixels = self.train_dataset.transform.normalize(inputs["pixel_values"], out=self._pixels)
            inputs["pixel_values"] = self._pixels
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = self._step_loss + loss
        if report is not None:
            self._data.trained(report)
        return loss

    _step_loss: torch.Tensor | float = 0.0  # of the batches of a step so far

    def _get_grad_norm(self, model, grad_norm=None):
        """The last look at a step before it changes the weights."""
        norm = super()._get_grad_norm(model, grad_norm)
        loss, self._step_loss = self._step_loss, 0.0
        if norm is not None:
            self._stop_if_diverged(loss, norm)
        return norm

    def _stop_if_diverged(self, loss, norm):
        device = self.accelerator.device
        pair = torch.stack([torch.as_tensor(value, device=device, dtype=torch.float32) for value in (loss, norm)])
        pair = self.accelerator.gather(pair[None])  # of all processes, which stop together
        if torch.isfinite(pair).all() or (self.is_deepspeed_enabled and self.args.fp16):  # which looks after its scale
            return
        # A process without infinity adds nothing to those that have it.
        (loss, norm), scaler = pair.sum(0).tolist(), self.accelerator.scaler
        if persists(loss, norm, None if scaler is None else scaler.get_scale()):
            found = newest_first(self.args.output_dir)
            kept = f"the last checkpoint is {found[0]}" if found else "no checkpoint was written"
            raise Diverged(
                f"learning_rate: training has diverged in step {self.state.global_step + 1} (loss {loss:g}, gradient "
                f"norm {norm:g}), which was not made, and nothing was exported; {self._causes()}; {kept}"
            )

    def _causes(self) -> str:
        return likely_causes(self.args, self.state.log_history)

    def data_state(self) -> dict | None:
        """Where the run is in its data, for a checkpoint; called by all processes."""
        if self._data is None:
            return None
        states = gather_object([self._data.state()])
        totals = {name: dict(sum((Counter(s[name]) for s in states), Counter())) for name in ("seen", "skipped")}
        return {**states[0], **totals, "global_step": self.state.global_step}

    # Loss and optimiser

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Of a pre-training model, as predictions, the errors of each image (`baselines.masked_errors`) beside the
        loss; reconstructions of a whole data set would be too much to keep."""
        if not self.reconstructs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        images, mask = inputs["pixel_values"], outputs["bool_masked_pos"]
        errors = masked_errors(outputs["reconstruction"], images, mask, self._unwrapped().config)
        return loss.mean().detach(), errors, errors  # Trainer computes metrics only where there are labels

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.reconstructs:
            inputs = {name: value for name, value in inputs.items() if name not in LABELS}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        weight = self.share(len(inputs["pixel_values"])) if model.training else 1.0
        for name in LOSS_TERMS:
            value = outputs.get(name) if isinstance(outputs, dict) else None
            if value is not None:
                kept = self._terms.setdefault(name if model.training else f"eval_{name}", [0.0, 0])
                kept[0] = kept[0] + value.detach().mean() * weight
                kept[1] += 1
        loss = loss * weight
        return (loss, outputs) if return_outputs else loss

    def share(self, images: int) -> torch.Tensor | float:
        """What the mean loss of so many images of this process counts in the mean over processes, so that each image
        of a step counts the same: above 1 for a process with more images than the others, which have broken ones or
        the smaller part of a step that cannot be divided evenly."""
        if self._data is None or self.args.world_size == 1:
            return 1.0
        count = torch.tensor(float(images), device=self.accelerator.device)
        return count * self.args.world_size / self.accelerator.reduce(count, "sum")

    def log(self, logs, start_time=None):
        if self._data is not None and "loss" in logs:
            skipped = torch.tensor([self._data.skipped.skipped.total()], device=self.accelerator.device)
            logs[REPORT] = int(self.accelerator.gather(skipped).sum())
        for prefix in ("", "eval_"):
            if f"{prefix}loss" not in logs:
                continue
            for name in LOSS_TERMS:
                total, count = self._terms.pop(f"{prefix}{name}", (None, 0))
                if count:
                    logs[f"{prefix}{name}"] = self.accelerator.gather((total / count).view(1)).mean().item()
        if "loss" in logs:
            logs |= self._pace.figures(self.state, self.accelerator)
        if "train_loss" in logs and self.state.global_step == self._initial_global_step:
            # No step was made, of which Trainer takes 0.0 for the mean.
            logs["train_loss"] = mean_loss(self.state.log_history)
        super().log(logs, start_time)

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            module = self.model if model is None else model
            groups = self.parameter_groups(module)
            if self.args.timm_optim is not None:
                self.optimizer = timm_optimizer(groups, self.args)
            else:
                optimizer_cls, options = self.get_optimizer_cls_and_kwargs(self.args, module)
                self.optimizer = optimizer_cls(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        steps = self._scheduled(num_training_steps)
        if self.lr_scheduler is None and self.args.lr_milestones:
            self.lr_scheduler = milestone_schedule(optimizer or self.optimizer, self.args, steps)
            self._created_lr_scheduler = True
        scheduler = super().create_scheduler(steps, optimizer)
        found = check_schedule(scheduler, self.args, steps)
        for line in found if self.args.should_log else ():
            logger.warning("%s", line)
        return scheduler

    def _scheduled(self, steps: int) -> int:
        """How many of the steps of a run its schedule is over."""
        return max(1, steps - self.resumption.schedule_start) if self.resumption.schedule_start else steps

    def _load_optimizer_and_scheduler(self, checkpoint):
        """With what the run that goes on sets anew (see `resuming`)."""
        resumption = self.resumption
        groups = [dict(group) for group in self.optimizer.param_groups]
        schedule = self.lr_scheduler.state_dict()
        super()._load_optimizer_and_scheduler(checkpoint)
        names = resumption.grouped | ({"lr", "initial_lr"} if resumption.restarts_schedule else set())
        for loaded, fresh in zip(self.optimizer.param_groups, groups, strict=True):
            loaded.update({name: fresh[name] for name in names & loaded.keys() & fresh.keys()})
        if resumption.restarts_schedule:
            self.lr_scheduler.load_state_dict(schedule)

    def _load_scaler(self, checkpoint):
        if self.accelerator.scaler is not None:  # else the run was in float16 until then
            super()._load_scaler(checkpoint)

    def parameter_groups(self, model) -> list[dict]:
        """The groups that the optimiser is made with (`optimization.parameter_groups`)."""
        args, scale = self.args, self.args.token_lr_scale
        if scale is None:
            scale = 1.0 if getattr(model.config, "mask_gamma_init", None) is None else 0.1
        layers = args.layer_decay, args.layer_decay_layers
        return parameter_groups(model, args.learning_rate, args.weight_decay, scale, *layers)

    # Checkpoints and results

    _aside: str | None = None  # while a checkpoint is written: the folder that stands in for the output folder

    def run(self) -> dict[str, float]:
        """Train (or go on, as `args.resume_from_checkpoint` says), save, evaluate if there is anything to evaluate on,
        and push if `args.push_to_hub`. Returns the metrics.

        Raises:
            SystemExit: if SIGTERM stopped the run (`args.enable_jit_checkpoint`).
        """
        metrics = self.train(resume_from_checkpoint=self.args.resume_from_checkpoint).metrics
        if self._sigterm is not None and self._sigterm.stopped:
            raise SystemExit(STOPPED)  # the model is not finished
        self.save_model()
        self.save_metrics("train", metrics)
        self.save_state()
        if self.eval_dataset is not None:
            evaluation = self.evaluate()
            self.save_metrics("eval", evaluation)
            metrics |= evaluation
            self._compare(evaluation)
            metrics |= self.conclude()
        if self.args.push_to_hub:
            self.push_to_hub()
        elif self.args.should_save:
            self.describe(self.args.output_dir)  # with the evaluation
        return metrics

    def _compare(self, metrics: dict[str, float]):
        """Say how far from trivial the reconstructions are."""
        if "eval_mean_fill_psnr" not in metrics:
            return
        found, mean, blur = (metrics[f"eval_{name}_psnr"] for name in ("masked", "mean_fill", "blur"))
        logger.info(
            "masked pixels of %s images of %s: PSNR %.1f dB; of their images' mean colour %.1f dB, of a blur of the "
            "visible pixels %.1f dB",
            _count(self.eval_dataset),
            self.provenance.get("evaluation_data") or "the evaluation data",
            found,
            mean,
            blur,
        )
        if not found > mean and self.args.should_log:  # also of a model that gives no numbers any more
            logger.warning(
                "the model reconstructs masked pixels no better (%.1f dB) than the mean colour of each image does "
                "(%.1f dB): it has not learned to. It had %d steps at a learning rate of up to %g; %s",
                found,
                mean,
                self.state.global_step,
                self.args.learning_rate,
                what_to_change(
                    self._unwrapped(), self.args, dataset_length(self.train_dataset), self.state.global_step
                ),
            )

    def conclude(self) -> dict[str, float]:
        """What else is measured and drawn after the last evaluation, before the card is written; further metrics."""
        return {}

    def train(self, resume_from_checkpoint=None, **kwargs):
        checkpoint = self._find_checkpoint(resume_from_checkpoint)
        if self.args.should_save:
            remove_leftovers(self.args.output_dir)
        self._record = None if checkpoint is None else read_record(checkpoint)["data"]
        if self._record is not None:
            self.args.ignore_data_skip = False  # nothing is read to be skipped
        elif checkpoint is not None and isinstance(self.train_dataset, ImageSamples):
            raise ValueError(f"resume_from_checkpoint: {checkpoint} does not say how far it was in these images")
        self.resumption = self._resumption(checkpoint)
        output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        return output._replace(training_loss=output.metrics["train_loss"])

    def run_settings(self) -> dict[str, dict]:
        """What the run is set to, for a checkpoint (`resuming.run_settings`)."""
        return run_settings(self.args, self.flags, self.train_dataset, self.eval_dataset)

    def _resumption(self, checkpoint: str | None) -> Resumption:
        self._settings = self.run_settings()
        if checkpoint is None:
            return Resumption()
        step = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step
        resumption = compare(Path(checkpoint).name, read_record(checkpoint).get("run"), self._settings, step)
        if self.is_deepspeed_enabled and (resumption.restarts_schedule or resumption.grouped):
            names = ", ".join(resumption.changed)
            raise ValueError(f"resume_from_checkpoint: with DeepSpeed, {names} cannot change in the middle of a run")
        return resumption

    def _find_checkpoint(self, value):
        """Found by one process for each disk; all go on from the same checkpoint, or raise the same error."""
        answer = []
        if self.args.should_save:
            try:
                checkpoint = find_checkpoint(value, self.args.output_dir, thorough=True)
                if checkpoint is not None:
                    check_settings(checkpoint, self._unwrapped())
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

    def _unwrapped(self):
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _get_output_dir(self, trial):
        return self._aside or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial):
        check_weights(self._unwrapped(), self.state.global_step, self._causes())
        run_dir = Path(self._get_output_dir(trial))
        target = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            prepare_aside(run_dir)
        self.accelerator.wait_for_everyone()
        self._aside = str(run_dir / ASIDE)
        try:
            with writing(run_dir):
                super()._save_checkpoint(model, trial)
        finally:
            self._aside = None
        best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if self.state.best_global_step and (best == target or best.is_dir()):
            self.state.best_model_checkpoint = str(best)  # where it will be, not where it is written
        data = self.data_state()
        self.accelerator.wait_for_everyone()  # each process has files of its own
        if self.args.should_save:
            folder = run_dir / ASIDE / target.name
            run = keep(self._settings, self.resumption)
            with writing(run_dir):
                save_json(asdict(self.state), folder / TRAINER_STATE_NAME)
                complete(folder, target, self._unwrapped(), data, self.args.save_only_model, run)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run_dir, self.args.save_total_limit, keep=[target, *([best] if best else [])])

    def _load_best_model(self):
        if problems := verify(self.state.best_model_checkpoint):
            raise ValueError(f"load_best_model_at_end: {self.state.best_model_checkpoint}: {'; '.join(problems)}")
        super()._load_best_model()

    def save_state(self):
        if self.is_world_process_zero():
            save_json(asdict(self.state), Path(self.args.output_dir, TRAINER_STATE_NAME))

    def save_metrics(self, split, metrics, combined=True):
        super().save_metrics(split, finite(metrics), combined)

    def save_model(self, output_dir=None, _internal_call=False):
        """Write the folder that users load and the Hub gets (see `export`); Trainer itself saves checkpoints."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        check_weights(self._unwrapped(), self.state.global_step, self._causes())
        self._finish_current_push()  # which reads these files
        if self.args.should_save:
            with writing(output_dir or self.args.output_dir):
                self.export(output_dir or self.args.output_dir)

    def export(self, folder: str):
        """Write what users load to `folder`; called by the process that saves."""
        export_model(self._published(), folder, self.pretraining_model, self.record(), self.hub_model_id)

    def describe(self, folder: str):
        """Write the card and the record of an exported folder anew; called by the process that saves."""
        write_card(self._published(), folder, self.record(), self.hub_model_id)

    def _published(self):
        """The model that is exported."""
        return self._unwrapped()

    def _save(self, output_dir=None, state_dict=None):
        # Trainer would pickle its arguments here, the Hub token among them.
        if self.args.should_save:
            self._unwrapped().save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    # The Hub

    def record(self) -> dict:
        """How the model was made, so far."""
        record = describe_run(self, self.provenance)
        return record if self.hub_model_id is None else {**record, "repo_id": self.hub_model_id}

    def create_model_card(self, license=None, tags=None, finetuned_from=None, dataset=None):
        """Write the model card of `output_dir`, where `save_model` has been called.

        Args:
            license: of the weights.
            tags: one or more, beside those that every card has.
            finetuned_from: what a classifier was made from, an id on the Hub.
            dataset: one or more ids on the Hub.
        """
        self._add_provenance(license, tags, finetuned_from, dataset)
        if self.args.should_save:
            self.describe(self.args.output_dir)

    def _add_provenance(self, license=None, tags=None, finetuned_from=None, dataset=None):
        tags, datasets = ([value] if isinstance(value, str) else value for value in (tags, dataset))
        given = {"license": license, "tags": tags, "base_model": finetuned_from, "datasets": datasets}
        self.provenance |= {name: value for name, value in given.items() if value is not None}

    def push_to_hub(
        self,
        commit_message=None,
        blocking=True,
        token=None,
        revision=None,
        private=None,
        create_pr=False,
        dry_run=False,
        **card,
    ):
        """Export to `output_dir`, and upload what belongs on the Hub and nothing else (`hub.push_folder`). `card`:
        arguments of `create_model_card`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if private is not None:
            self.args.hub_private_repo = private
        if self.hub_model_id is None and not dry_run:
            self.init_hf_repo(token=token)
        self._add_provenance(**card)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        return push_folder(
            self.args.output_dir,
            self.hub_model_id,
            private=self.args.hub_private_repo,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message or self.args.hub_commit_message,
            token=token,
            create_pr=create_pr,
            pictures_of_data=self.args.hub_pictures,
            dry_run=dry_run,
            blocking=blocking,
        )

    def _push_from_checkpoint(self, checkpoint_folder):
        # Trainer asks for this before the checkpoint is complete, `_save_checkpoint` after.
        if self._aside is not None or self.args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        message = f"Training in progress, step {self.state.global_step}"
        self.push_in_progress = PushInProgress([self.push_to_hub(message, blocking=False)])

    def _finish_current_push(self):
        super()._finish_current_push()
        jobs, self.push_in_progress = getattr(self.push_in_progress, "jobs", ()), None
        for job in jobs:
            if error := job.exception():  # the last push, which training waits for, raises
                logger.warning("a push while training failed: %s", error)
