"""`EncoderTrainer`: what pre-training and fine-tuning share, as all train a timm encoder with something on it."""

import logging

import torch
from accelerate.utils import gather_object, recursively_apply
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments, default_data_collator

from ..arguments.trainer_fields import check_for_images, check_without_labels
from ..arguments.training import A2MIMTrainingArguments, data_seed, with_values
from ..data.dataset import REPORT, ImageSamples, collate
from ..export.record import dataset_length, earlier_runs, mean_loss
from ..modeling_a2mim import find_core
from .batch_norm import check_batch_norms
from .best_model import EarlyStopping
from .callbacks import (
    ExampleCallback,
    MetricsCallback,
    OverwriteCallback,
    PaceCallback,
    ReadablePrinter,
    ReadableProgress,
)
from .checkpoints import newest_first
from .divergence import Diverged, check_weights, likely_causes, persists
from .frozen_start import FrozenStart
from .length import logging_steps, with_length
from .optimization import (
    check_schedule,
    largest_rates,
    milestone_schedule,
    parameter_groups,
    timm_optimizer,
    transformers_optimizer,
    with_optimizer,
)
from .publishing import PublishingTrainer
from .raw_data import as_samples, check_batch, collate_samples
from .resuming import run_settings


logger = logging.getLogger("a2mim")


def filled(values, own: int, size: int):
    """Tensors of `own` images as those of `size`, with the first one repeated: Trainer drops these when it gathers.
    Others stay as they are."""

    def of_images(one):
        return isinstance(one, torch.Tensor) and one.dim() > 0 and len(one) == own < size

    def fill(one):
        return torch.cat([one, one[:1].expand(size - own, *one.shape[1:])])

    return recursively_apply(fill, values, test_type=of_images)


class EncoderTrainer(PublishingTrainer):
    """Train a model that holds a timm encoder (an `A2MIMModel`); arguments as `Trainer`'s, and

    Args:
        picture_samples: one sample (a dict with pixel_values), shown in `output_dir/example.png`.
        picture_names: what to call it.
        flags: the command line's arguments of model and data (`resuming.flags`), to be compared when the run resumes.
        pretraining_model, provenance: see `PublishingTrainer`.

    An optimiser of `optimizer_cls_and_kwargs` gets the same groups of parameters as one of the arguments.
    `args` may be transformers' own TrainingArguments, which keep their values. Images to train and evaluate on may be
    rows of `datasets` with a column of images (and of labels, for a classifier), or samples with `pixel_values`.

    Attributes:
        own_schedule: whether a schedule was given, with `optimizers`, in place of that of `args`.

    Raises:
        ValueError: naming the argument that cannot be used, and what to give instead.
    """

    arguments_class = A2MIMTrainingArguments
    trained: dict | None = None  # the record of the last call of `train`, which another one goes on from
    default_collator = staticmethod(collate_samples)

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
        flags: dict[str, dict] | None = None,
        **kwargs,
    ):
        args = with_values(self.arguments_class.from_plain(args))  # its own, of which the length is chosen here
        check_for_images(args)
        data_collator = self.default_collator if data_collator is None else data_collator
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, *further, **kwargs)
        self._check_precision()
        if not self.classifies:
            check_without_labels(self.args)
        self._seen_first: set[str] = set()
        self.train_dataset = self._samples(self.train_dataset, "train_dataset")
        self.eval_dataset = self._samples(self.eval_dataset, "eval_dataset")
        self.flags = flags
        self.own_schedule = self.lr_scheduler is not None
        self._take_given()
        self.pace = PaceCallback()
        self.frozen_start = self._frozen_start()
        for callback in (OverwriteCallback, MetricsCallback, self.pace):
            self.add_callback(callback)
        for usual, readable in ((ProgressCallback, ReadableProgress), (PrinterCallback, ReadablePrinter)):
            if self.pop_callback(usual):
                self.add_callback(readable)
        if picture_samples:
            self.add_callback(self.figure_callback(default_data_collator(picture_samples), picture_names))
        if (images := dataset_length(self.train_dataset)) is not None:
            self.args = with_length(self.args, images)
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping)

    @property
    def reconstructs(self) -> bool:
        """Whether the model is one for pre-training."""
        return False

    @property
    def classifies(self) -> bool:
        """Whether each image has one label."""
        return not self.reconstructs

    def figure_callback(self, batch: dict[str, torch.Tensor], names: list[str] | None) -> TrainerCallback:
        """The callback that draws `picture_samples`, given as a batch."""
        return ExampleCallback(batch)

    def _check_precision(self):
        """The arguments say what accelerate computes in, also where its own configuration sets that."""
        mixed = self.accelerator.mixed_precision
        if mixed == "fp16" and self.accelerator.device.type == "cpu":
            raise ValueError("fp16: a CPU computes in float32 all the same; leave it out, or give --bf16")
        self.args.fp16, self.args.bf16 = mixed == "fp16", mixed == "bf16"

    def _frozen_start(self) -> FrozenStart | None:
        if not self.args.freeze_encoder_steps:
            return None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "freeze_encoder_steps: is not for FSDP and DeepSpeed, which keep gradients of encoder and decoder in "
                "one tensor; leave it out"
            )
        phase = FrozenStart(find_core(self.unwrapped()).encoder)
        self.add_callback(phase)
        return phase

    # Data

    def _samples(self, dataset, name: str):
        own = self._steps_are_own or self.data_collator is not self.default_collator
        return as_samples(dataset, self.unwrapped(), data_seed(self.args), name, own)

    @property
    def _steps_are_own(self) -> bool:
        """Whether a subclass of the user's makes the steps, and may normalise the images there."""
        steps = (type(self).compute_loss, type(self).training_step, type(self).prediction_step)
        return any(not step.__module__.startswith(("modeling_a2mim.", "transformers.")) for step in steps)

    def check_first(self, batch: dict, name: str):
        """Check the first batch of `train_dataset` and of `eval_dataset`, before anything is done to it; of
        `ImageSamples` to train on, `prepared` makes what the model takes.

        Raises:
            ValueError: naming `name`, if the model takes no such images.
        """
        if name not in self._seen_first:
            self._seen_first.add(name)
            if REPORT not in batch and not self._steps_are_own:
                check_batch(batch, self.unwrapped(), name)

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        if self.training_data is not None and self.training_data.batches.fewest <= 1:
            batch = self.prepared(collate(self.train_dataset.__getitems__([(0, 0)]), self.data_collator))
            inputs = {name: value for name, value in batch.items() if name not in (REPORT, "labels")}
            sizes = len(self.train_dataset), self.args.train_batch_size, self.args.world_size
            check_batch_norms(self.unwrapped(), inputs, *sizes)
        return loader

    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(self._samples(eval_dataset, "eval_dataset"))

    def get_test_dataloader(self, test_dataset):
        return super().get_test_dataloader(self._samples(test_dataset, "test_dataset"))

    def prepared(self, inputs: dict) -> dict:
        """A batch of `ImageSamples` to train on, with what is done to it on the device: nothing."""
        return inputs

    # Evaluation

    def before_evaluation(self):
        """Called before the images of an evaluation are read, and again where some are found to be broken."""

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        """As Trainer's, of the images that are not broken.

        Raises:
            ValueError: naming `max_skipped_ratio`, if more than that share is, unless a run would be lost;
                `test_dataset`, if one is, as predictions are one for each image.
        """
        while True:
            self.before_evaluation()
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
            samples = dataloader.dataset
            if not isinstance(samples, ImageSamples):
                return output
            rows = sorted(set(gather_object(samples.broken)))
            if not rows:
                break
            if description == "Prediction":
                raise ValueError(
                    f"test_dataset: {len(rows)} of {len(samples)} images cannot be used, the first: "
                    f"{samples.name(rows[0])}; leave them out"
                )
            dataloader = self.get_eval_dataloader(self._leave_out(samples, rows))
        if samples.left_out:
            output.metrics[f"{metric_key_prefix}_{REPORT}"] = samples.left_out
        return output

    def _leave_out(self, samples: ImageSamples, rows: list[int]) -> ImageSamples:
        others = samples.without(rows)
        if not self.is_in_train:  # else what was learned would be lost
            others.check_left_out()
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {name: others if one is samples else one for name, one in self.eval_dataset.items()}
        elif self.eval_dataset is samples:
            self.eval_dataset = others
        self.forget_eval_dataloaders()
        for callback in self.callback_handler.callbacks:
            if getattr(callback, "prediction_bar", None) is not None:  # the next one is of as many as are left
                callback.prediction_bar.close()
                callback.prediction_bar = None
        return others

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        self.check_first(inputs, "eval_dataset")
        inputs, own, size = self.without_repeated(inputs)
        loss, *found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, *filled(found, own, size)

    def without_repeated(self, inputs: dict) -> tuple[dict, int, int]:
        """A batch of an evaluation without the images that accelerate repeats so that all processes have full ones, as
        they would count twice in its loss; how many it has then, and had. One stays where all are repeated."""
        size, state = len(inputs["pixel_values"]), self.accelerator.gradient_state
        repeats = self.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0
        if not repeats or size != self.args.eval_batch_size:  # those of streams are shared out otherwise
            return inputs, size, size
        own = max(1, min(size, state.remainder - size * self.args.process_index))
        of_images = {
            k for k, v in inputs.items() if isinstance(v, list) or (isinstance(v, torch.Tensor) and v.dim() > 0)
        }
        of_images = {name for name in of_images if len(inputs[name]) == size}
        return {k: v[:own] if k in of_images else v for k, v in inputs.items()}, own, size

    # Steps

    def run_settings(self) -> dict[str, dict]:
        return run_settings(self.args, self.flags, self.train_dataset, self.eval_dataset)

    def set_initial_training_values(self, args, dataloader):
        values = super().set_initial_training_values(args, dataloader)
        self.args.logging_steps = logging_steps(self.args, values[-1])  # of `max_steps`
        return values

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        with self.pace.waiting():
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self.check_first(batches[0], "train_dataset")
        return batches, count

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.pace.images += len(inputs["pixel_values"])
        if REPORT in inputs:
            inputs = self.prepared(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.encoder_is_frozen:
            self.frozen_start.after_backward()
        return loss

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether the encoder stays as it is in the step that is made."""
        return self.frozen_start is not None and self.frozen_start.holds(self.state.global_step)

    def compute_loss_context_manager(self):
        # What comes last between `model.train()` and the forward pass, whatever loss a subclass computes.
        if self.model.training and self.encoder_is_frozen:
            self.frozen_start.before_forward()
        return super().compute_loss_context_manager()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            weight = self.share(len(inputs["pixel_values"]))
            self.after_forward(outputs, weight)
            loss = loss * weight
        return (loss, outputs) if return_outputs else loss

    def after_forward(self, outputs, weight: torch.Tensor | float):
        """Called in training with what the model gave for a batch, and what its mean counts (`share`)."""

    def share(self, images: int) -> torch.Tensor | float:
        """What the mean loss of so many images of this process counts in the mean over processes, so that each image
        of a step counts the same: above 1 for a process with more images than the others, which have broken ones or
        the smaller part of a step that cannot be divided evenly."""
        if self.training_data is None or self.args.world_size == 1:
            return 1.0
        count = torch.tensor(float(images), device=self.accelerator.device)
        return count * self.args.world_size / self.accelerator.reduce(count, "sum")

    def log(self, logs, start_time=None):
        if self.training_data is not None and "loss" in logs:
            skipped = torch.tensor([self.training_data.skipped.skipped.total()], device=self.accelerator.device)
            logs[REPORT] = int(self.accelerator.gather(skipped).sum())
        if "loss" in logs:
            logs |= self.pace.figures(self.state, self.accelerator)
        if "train_loss" in logs and self.state.global_step == self.resumption.step:
            # No step was made, of which Trainer takes 0.0 for the mean.
            logs["train_loss"] = mean_loss(self.state.log_history)
        if "train_samples_per_second" in logs:
            # Trainer takes every step of `max_steps` for a full one, and no image for broken.
            seconds = max(logs["train_runtime"], 1e-4)
            logs["train_samples_per_second"] = round(self.pace.trained(self.accelerator) / seconds, 3)
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint=None, **kwargs):
        self.last_evaluation = None  # the log begins anew, or is that of the checkpoint
        if self.trained is not None and not resume_from_checkpoint and self.model_init is None:
            self.provenance["earlier"] = earlier_runs(self.trained)
        output = super().train(resume_from_checkpoint, **kwargs)
        self.trained = self.record()
        return output._replace(training_loss=output.metrics["train_loss"])  # as it was logged

    # Divergence

    def before_update(self, loss, grad_norm):
        """
        Raises:
            Diverged: if the loss or the gradient is not finite, and will not be again (`divergence.persists`).
        """
        device = self.accelerator.device
        pair = [torch.as_tensor(value, device=device, dtype=torch.float32) for value in (loss, grad_norm)]
        pair = self.accelerator.gather(torch.stack(pair)[None])  # of all processes, which stop together
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

    def before_saving(self):
        """
        Raises:
            Diverged: if weights are not finite.
        """
        check_weights(self.unwrapped(), self.state.global_step, self._causes())

    def _causes(self) -> str:
        return likely_causes(self.args, self.state.log_history)

    # Optimiser

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            module = self.model if model is None else model
            groups = self.parameter_groups(module)
            if self.optimizer_cls_and_kwargs is not None:
                kind, options = self.optimizer_cls_and_kwargs
                self.optimizer = kind(groups, **{"lr": self.args.learning_rate, **options})
            elif self.args.timm_optim is not None:
                self.optimizer = timm_optimizer(groups, self.args)
            else:
                self.optimizer = transformers_optimizer(groups, self.args, self.get_optimizer_cls_and_kwargs)
        return self.optimizer

    def parameter_groups(self, model) -> list[dict]:
        """The groups that the optimiser is made with (`optimization.parameter_groups`)."""
        args, scale = self.args, self.args.token_lr_scale
        if scale is None:
            scale = 1.0 if getattr(model.config, "mask_gamma_init", None) is None else 0.1
        layers = args.layer_decay, args.layer_decay_layers
        return parameter_groups(model, args.learning_rate, args.weight_decay, scale, *layers)

    def _take_given(self):
        """Have the arguments say what was given in place of their optimiser and schedule, so that the record does."""
        if self.optimizer is not None:
            self.args = with_optimizer(self.args, type(self.optimizer), largest_rates(self.optimizer))
        elif self.optimizer_cls_and_kwargs is not None:
            self.args = with_optimizer(self.args, *self.optimizer_cls_and_kwargs)
        if self.own_schedule:
            self.args = with_values(self.args, lr_scheduler_type=type(self.lr_scheduler).__name__, lr_milestones=None)

    def own_scheduler(self, optimizer, steps):
        return milestone_schedule(optimizer, self.args, steps) if self.args.lr_milestones else None

    def create_scheduler(self, num_training_steps, optimizer=None):
        try:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
        except TypeError as error:  # of a function that is called with them
            given = self.args.lr_scheduler_kwargs
            name = getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)
            raise ValueError(
                f"lr_scheduler_kwargs: the schedule {name} cannot be made with {given}: {error}"
            ) from error
        if self.own_schedule:  # which knows no warm-up of the arguments
            return scheduler
        found = check_schedule(scheduler, self.args, self.scheduled_steps(num_training_steps))
        for line in found if self.args.should_log else ():
            logger.warning("%s", line)
        return scheduler
