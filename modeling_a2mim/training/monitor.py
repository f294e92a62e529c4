"""A gauge of the encoder while it learns: figures of its features of a few images (`evaluation.gauge`), in the log
every so many steps and in every evaluation. Training goes on as without it, bit for bit."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..data.monitor import MonitorImages, monitor_images
from ..data.sources import RowSource
from ..data.transforms import PreTrainTransform, generators_kept
from ..evaluation.gauge import MORE_IS_BETTER, gauge
from ..export.monitor import MONITOR, monitor_log, monitor_summary
from ..modeling_a2mim import A2MIMForPreTraining
from ..models.pooled_features import ALL, Layer, layer_features, layer_widths


logger = logging.getLogger("a2mim")

MOST = 20  # measurements in a run, those at its start and end among them
# Of a step's images so many are measured at no more than 3% of its time: a forward pass is a third of a step (forward
# and backward, which costs two of them), or 0.09 images a step; the rest is for what else there is.
SHARE = 0.06


def steps_between(images: int, step_images: int, max_steps: int) -> tuple[int, str]:
    """After how many steps to measure again, and why, in words.

    Args:
        images: that are measured on, by each process.
        step_images: that a process trains on in a step.
        max_steps: of the run.
    """
    cheap = math.ceil(images / (SHARE * step_images))
    few = math.ceil(max_steps / (MOST - 1))  # the start is one more, or the end, where it is no multiple
    if few >= cheap:
        return few, f"at most {MOST} times in {max_steps:,} steps"
    return cheap, f"less than 3% of the training of {step_images} images in a step"


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a `with` block, after which the mode of each module, and the states of all generators of
    random numbers, are as they were before."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    with generators_kept(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            # `train` comes first: some of timm (LeViT, EfficientFormer) keep what they have computed in evaluation
            # mode until it is called.
            model.train()
            model.eval()
            yield
        finally:
            model.train()
            for module, mode in modes.items():
                module.training = mode


def pooled_features(
    model: A2MIMForPreTraining,
    images: MonitorImages,
    batch_size: int,
    dtype: torch.dtype | None = None,
    layer: Layer = -1,
) -> np.ndarray:
    """Features (`pooled_features.layer_features`) of whole images (no mask), by the encoder in evaluation mode. The
    model, its buffers and the generators of random numbers stay as they are.

    Args:
        model: whose encoder is measured; sharded by `fully_shard` or not. Each process that has a part must call this.
        images: what to measure on.
        batch_size: images in a forward pass.
        dtype: run the encoder under autocast with this type.
        layer: whose features.

    Returns:
        (images, channels), float32.
    """
    core, found = model.a2mim, []
    device = core.device

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return layer_features(core, pixels, [layer])[0]

    # Not inference_mode: encoders keep tables (of positions, say) that training would not take from it.
    with torch.no_grad(), undisturbed(model), _gathering(model, features):
        for pixels in images.pixel_values.split(batch_size):
            pixels = images.transform.normalize(pixels.to(device)).to(core.dtype)
            # Without its cache, which may hold casted weights of a step.
            with torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=False):
                found.append(model(pixels) if isinstance(model, FSDPModule) else features(pixels))
    return torch.cat(found).cpu().numpy()


@contextlib.contextmanager
def _gathering(model: nn.Module, function: Callable) -> Iterator[None]:
    """For a sharded model, calls of it are calls of `function` meanwhile: the hooks that gather weights are around the
    call of the whole model, and nowhere else."""
    if not isinstance(model, FSDPModule):
        yield
        return
    own = model.__dict__.get("forward")  # accelerate wraps it
    model.forward = function
    try:
        yield
    finally:
        del model.forward
        if own is not None:
            model.forward = own


def figure_names(images: MonitorImages | None) -> dict[str, bool]:
    """The figures that there are of images, without `monitor_` or `eval_`, and whether more of each is better; `{}`
    without images."""
    if images is None:
        return {}
    return {name: more for name, more in MORE_IS_BETTER.items() if name != "knn_accuracy" or images.labels is not None}


def check_best_metric(metric: str | None, images: MonitorImages | None):
    """
    Args:
        metric: `metric_for_best_model`.
        images: of the gauge; `None` if it is off.

    Raises:
        ValueError: if the metric is a figure that these images do not give.
    """
    name = (metric or "").removeprefix("eval_")
    if name not in MORE_IS_BETTER or name in figure_names(images):
        return
    if images is None:
        raise ValueError(f"metric_for_best_model: {name} needs images to measure on, and no --monitor_steps 0")
    raise ValueError(
        f"metric_for_best_model: {name} needs labelled images: give --monitor_dir with a sub-folder for each class, "
        "or a --monitor_dataset with labels"
    )


class MonitorCallback(TrainerCallback):
    """Logs the figures of the encoder as `monitor_...`, in an entry of their own: before the first step, every so many
    steps, and after the last one. All processes measure, and log the figures of the first (DDP's BatchNorm buffers
    may differ).

    Args:
        trainer: of the encoder, an `A2MIMTrainer`.
        images: what to measure on.
        steps: between two measurements, or "auto" (`steps_between`).
        layers: what is measured, "last" or "all" (`models.pooled_features`).
    """

    def __init__(self, trainer, images: MonitorImages, steps: int | str, layers: str = "last"):
        self.trainer, self.images, self.given, self.steps, self.layers = trainer, images, steps, 0, layers
        self._kept: tuple[int, dict[str, float]] | None = None  # a step, and its figures

    def figures(self) -> dict[str, float]:
        """Those of the weights as they are; of one step of training they are computed once."""
        trainer = self.trainer
        step = trainer.state.global_step
        if self._kept is not None and self._kept[0] == step:
            return self._kept[1]
        args = trainer.args
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        layer, model = ALL if self.layers == ALL else -1, trainer.unwrapped()
        features = pooled_features(model, self.images, args.eval_batch_size, dtype, layer)
        widths = layer_widths(model.a2mim, ALL) if layer == ALL else None
        found = gauge(features, self.images.labels, widths)
        if args.world_size > 1:
            (found,) = broadcast_object_list([found])
        if trainer.is_in_train:  # else weights may change without a step
            self._kept = step, found
        return found

    def on_train_begin(self, args, state, control, **kwargs):
        self._kept = None
        reason = "as given"
        self.steps = self.given
        if self.given == "auto":
            at_once = args.train_batch_size * args.gradient_accumulation_steps
            self.steps, reason = steps_between(len(self.images), at_once, state.max_steps)
        logger.info(
            "monitor: %s of %s of %s images every %d steps (%s), at the start and at the end",
            ", ".join(figure_names(self.images)),
            f"{len(self.images):,}",
            f"{self.images.total:,}",
            self.steps,
            reason,
        )

    def on_epoch_begin(self, args, state, control, **kwargs):
        if not monitor_log(state.log_history):  # when all that listens has begun; a run that resumes has the start
            self._log(state, control)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or state.global_step >= state.max_steps:
            self._log(state, control)

    def on_evaluate(self, args, state, control, **kwargs):
        self._log_end(state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._log_end(state, control)

    def on_train_end(self, args, state, control, **kwargs):
        self._kept = None  # the best weights may be those of another step
        for name, (first, best, last) in monitor_summary(state.log_history).items():
            logger.info(
                "monitor: %s %.4g at step %d, %.4g at step %d; the best, %.4g, at step %d",
                *(name, first[1], first[0], last[1], last[0], best[1], best[0]),
            )

    def _log_end(self, state, control):
        """Of a run that ends before its last step; not of one that will go on."""
        if control.should_training_stop and self.trainer.is_in_train and not self.trainer.stopped_by_sigterm:
            self._log(state, control)

    def _log(self, state, control):
        if any(entry["step"] == state.global_step for entry in monitor_log(state.log_history)):
            return
        should_log = control.should_log  # of the step's own loss, which a log takes for done
        self.trainer.log({f"{MONITOR}{name}": value for name, value in self.figures().items()})
        control.should_log = should_log


def monitor_of(
    trainer, images: MonitorImages | datasets.Dataset | RowSource, steps: int | str, layers: str = "last"
) -> MonitorCallback | None:
    """The gauge of a trainer, with images that are read now if they were not; `None`, which is said, where weights are
    sharded so that a process cannot run the encoder.

    Raises:
        ValueError: naming `monitor`, if the images cannot be used, or the model is not for pre-training; naming
            `probe_layers`, if they are neither "last" nor "all".
    """
    if layers not in ("last", ALL):
        raise ValueError(f"probe_layers: expected last or all, got {layers!r}")
    model = trainer.unwrapped()
    if not isinstance(model, A2MIMForPreTraining):
        raise ValueError(f"monitor: is for pre-training, the model is a {type(model).__name__}; leave it out")
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if is_deepspeed_zero3_enabled() or (plugin is not None and plugin.fsdp_version == 1):
        logger.warning("monitor: the encoder is not measured, as its weights are sharded by ZeRO-3 or the first FSDP")
        return None
    if not isinstance(images, MonitorImages):
        images = monitor_images(images, PreTrainTransform(model.config, train=False))
    shape = tuple(images.pixel_values.shape[1:])
    if shape != (wanted := (model.config.num_channels, *model.config.input_size)):
        raise ValueError(f"monitor: the images are of shape {shape}, the model takes {wanted}")
    return MonitorCallback(trainer, images, steps, layers)
