"""The trainer of classifiers: mixed batches, their losses, and averages of the weights, all of them timm's."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback

from ...arguments.training import FineTuningArguments
from ...data.transforms import seeded
from ...models.classifier import A2MIMForImageClassification
from ...models.linear_probe import LinearProbe
from ...training.callbacks import BeginCallback
from ...training.encoder_trainer import EncoderTrainer
from .decision import without_decision


# In a checkpoint with averages, which are its model, so that whoever loads it has what was evaluated.
TRAINED = "trained.safetensors"
AVERAGES = "ema.safetensors"  # of earlier versions, whose model had the trained weights


class FineTuningTrainer(EncoderTrainer):
    """`Trainer` for classifiers, with mixed images and smoothed labels as `FineTuningArguments` say. If weights are
    averaged, the averages are evaluated, exported and the model of checkpoints, which hold the trained weights beside
    it.

    Args:
        class_weights: the weight of each class in the training loss (`make_class_weights`).

    Raises:
        ValueError: naming `model_ema_decay`, if the weights are sharded over processes, or `compute_loss_func`, if the
            arguments name another loss.
    """

    args: FineTuningArguments
    model: A2MIMForImageClassification | LinearProbe
    arguments_class = FineTuningArguments

    def __init__(self, *args, class_weights: Sequence[float] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.label_smoother = None  # Trainer's takes no soft labels
        options, classes = self.args, self.model.config.num_labels
        self.mixup = make_mixup(options, classes)
        self.criterion = make_criterion(options, self.mixup is not None, class_weights)
        if self.criterion is not None:
            self._check_loss(class_weights)
            self.criterion.to(options.device)
        self.averages = None
        if options.model_ema_decay is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("model_ema_decay: weights that are sharded over processes cannot be averaged")
            self.averages = self.make_averages()
        self.add_callback(AverageCallback(self))
        if self.model_init is not None:  # of whose model `train` knows only when training begins
            self.add_callback(BeginCallback(lambda: without_decision(self.model.config)))
        self._mixed = (0, 0)  # step, and batches of it that were mixed

    def _check_loss(self, class_weights: Sequence[float] | None):
        if self.compute_loss_func is None:
            return
        names = ("mixup", "cutmix", "label_smoothing_factor", "bce_loss")
        given = [name for name in names if getattr(self.args, name)] + ["class_weights"] * (class_weights is not None)
        raise ValueError(f"compute_loss_func: {', '.join(given)} would be another loss beside it; leave one out")

    def train(self, *args, **kwargs):
        without_decision(self.model.config)
        return super().train(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.mixup is not None:
            inputs["pixel_values"], inputs["labels"] = self._mix(inputs["pixel_values"], inputs["labels"])
        return super().training_step(model, inputs, num_items_in_batch)

    def _mix(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed images, and soft labels (batch, classes). The mixing depends on seed, step and process alone, so that
        a run that resumes does the same."""
        step, count = self._mixed
        step, count = (step, count + 1) if step == self.state.global_step else (self.state.global_step, 0)
        self._mixed = step, count
        with seeded(self.args.seed, step, count, self.args.process_index):
            even = len(labels) // 2 * 2  # timm mixes images in pairs; the odd one stays as it is
            mixed, soft = self.mixup(pixel_values[:even].contiguous(), labels[:even]) if even else ([], [])
            if even == len(labels):
                return mixed, soft
            rest = soft_labels(labels[even:], self.mixup.num_classes, self.mixup.label_smoothing)
            if not even:
                return pixel_values, rest
            return torch.cat([mixed, pixel_values[even:]]), torch.cat([soft, rest])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.criterion is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.criterion(outputs.logits.float(), labels) * self.share(len(labels))
        return (loss, outputs) if return_outputs else loss

    # Averages

    def make_averages(self) -> ModelEmaV3:
        """Averages that begin with the weights of the model."""
        decay, warmup = self.args.model_ema_decay, self.args.model_ema_warmup
        return ModelEmaV3(self.model, decay, use_warmup=warmup, device=self.args.device)

    @contextlib.contextmanager
    def averaged(self):
        """Give the model the averaged weights meanwhile, if there are any."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        if self.averages is None:
            return
        ours, theirs = self.unwrapped(), self.averages.module
        for one, two in ((ours.parameters(), theirs.parameters()), (ours.buffers(), theirs.buffers())):
            for a, b in zip(one, two, strict=True):
                kept = a.clone()
                a.copy_(b)
                b.copy_(kept)

    def evaluation_loop(self, *args, **kwargs):
        with self.averaged():
            return super().evaluation_loop(*args, **kwargs)

    def export(self, folder):
        with self.averaged():
            super().export(folder)

    def save_model(self, output_dir=None, _internal_call=False):
        if not _internal_call or self.averages is None:
            return super().save_model(output_dir, _internal_call)
        with self.averaged():
            super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            save_model(self.unwrapped(), str(Path(output_dir, TRAINED)))

    def take_averages(self, checkpoint: str):
        """Sort what the model has of a checkpoint that was loaded into it: averages, if there are any, and trained
        weights.

        Raises:
            ValueError: naming `model_ema_decay`, if it has no averages, and this run has.
        """
        averages, trained, device = Path(checkpoint, AVERAGES), Path(checkpoint, TRAINED), str(self.args.device)
        if self.averages is not None and averages.is_file():
            load_model(self.averages.module, str(averages), device=device)
        elif self.averages is not None and trained.is_file():
            self.averages.module.load_state_dict(self.unwrapped().state_dict())
        elif self.averages is not None:
            raise ValueError(f"model_ema_decay: {Path(checkpoint).name} was made without averaged weights")
        if trained.is_file() and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("model_ema_decay: the checkpoint has averages, which a sharded run cannot leave out")
        if trained.is_file():
            load_model(self.unwrapped(), str(trained), device=device)


class AverageCallback(TrainerCallback):
    """Averages the weights after each step, and tells averages and trained weights of a checkpoint apart."""

    def __init__(self, trainer: FineTuningTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        averages = self.trainer.averages is not None
        if averages and self.trainer.model_init is not None:  # whose model is another one than when it was made
            self.trainer.averages = self.trainer.make_averages()
        if self.trainer.resumed_from is not None:
            self.trainer.take_averages(self.trainer.resumed_from)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.trainer.averages is not None:
            self.trainer.averages.update(model, step=state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        best = args.load_best_model_at_end and state.best_model_checkpoint
        if best and self.trainer.averages is not None:
            self.trainer.take_averages(best)


def make_mixup(args: FineTuningArguments, classes: int) -> Mixup | None:
    """timm's mixup and CutMix as the arguments say, `None` for neither."""
    if not args.mixup and not args.cutmix:
        return None
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.label_smoothing_factor,
        num_classes=classes,
    )


def make_criterion(
    args: FineTuningArguments, mixed: bool, class_weights: Sequence[float] | None = None
) -> nn.Module | None:
    """timm's loss of logits (batch, classes) and labels, soft ones if `mixed`, or torch's where classes have weights;
    `None` for the model's own."""
    smoothing = 0.0 if mixed else args.label_smoothing_factor  # mixed labels are smoothed already
    if class_weights is not None:
        return WeightedCrossEntropy(torch.tensor(class_weights, dtype=torch.float32), label_smoothing=smoothing)
    if args.bce_loss:
        return BinaryCrossEntropy(smoothing=smoothing, target_threshold=args.bce_target_thresh)
    if mixed:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else None


class WeightedCrossEntropy(nn.CrossEntropyLoss):
    """A mean over images weighted by their classes, of soft labels as of hard ones: torch divides that of soft ones by
    the number of images, so that it would depend on the scale of the weights."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = super().forward(input, target)
        if not target.is_floating_point():
            return loss
        share = (target.to(self.weight.dtype) @ self.weight).mean()
        return loss / share.clamp_min(torch.finfo(share.dtype).tiny)  # of a batch without weight, 0


def make_class_weights(given: Sequence[str], counts: Sequence[int] | None, names: Sequence[str]) -> list[float]:
    """The weight of each class: the numbers in `given`, or for "balanced" images / (classes * images of the class), as
    scikit-learn has it, and 1 for classes without images.

    Args:
        given: `FineTuningArguments.class_weights`.
        counts: images to train on of each class, `None` if that is not known.
        names: of the classes.

    Raises:
        ValueError: naming `class_weights`, if there are not as many numbers as classes, or nothing to count.
    """
    if list(given) != ["balanced"]:
        if len(given) != len(names):
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise ValueError(
                f"class_weights: expected balanced, or {len(names)} numbers, of {shown}, in this order; got "
                f"{len(given)}"
            )
        return [float(weight) for weight in given]
    if counts is None:
        raise ValueError("class_weights: the labels of this stream are not known before they are read; give numbers")
    images = np.asarray(counts)
    there = images > 0
    return np.where(there, images.sum() / (there.sum() * np.maximum(images, 1)), 1.0).tolist()


def soft_labels(labels: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """(batch,) indices to (batch, classes) smoothed ones, as timm's mixup makes them."""
    low = smoothing / classes
    soft = torch.full((len(labels), classes), low, device=labels.device)
    return soft.scatter_(1, labels[:, None], 1 - smoothing + low)
