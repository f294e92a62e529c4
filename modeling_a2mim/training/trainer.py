"""`A2MIMTrainer`: pre-training, with both loss terms in the logs, figures of reconstructions, and the errors of masked
pixels as metrics."""

import logging
from typing import Any

import datasets
import torch
from transformers import EvalPrediction

from ..arguments.data import steps_or_auto
from ..arguments.trainer_fields import refuse
from ..data.monitor import MonitorImages
from ..data.sources import RowSource
from ..data.transforms import PreTrainTransform
from ..evaluation.baselines import masked_errors, summarise_errors
from ..export.monitor import monitor_record
from ..export.record import dataset_length
from ..modeling_a2mim import A2MIMForPreTraining
from ..utils.files import finite
from .advice import what_to_change
from .callbacks import ReconstructionCallback
from .encoder_trainer import EncoderTrainer, filled
from .monitor import MonitorCallback, monitor_of
from .raw_data import LABELS


logger = logging.getLogger("a2mim")

LOSS_TERMS = ("spatial_loss", "frequency_loss")


def loss_terms(outputs) -> dict[str, torch.Tensor]:
    """The terms of the loss that a model gives, by their names; `{}` for one that is not for pre-training."""
    found = {name: outputs.get(name) for name in LOSS_TERMS} if isinstance(outputs, dict) else {}
    return {name: value for name, value in found.items() if value is not None}


def _reconstruction_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return summarise_errors(torch.as_tensor(prediction.predictions))


def _count(dataset) -> str:
    images = dataset_length(dataset)
    return "some" if images is None else f"{images:,}"


class A2MIMTrainer(EncoderTrainer):
    """transformers' `Trainer` for `A2MIMForPreTraining` and `A2MIMForImageClassification`: both loss terms in the log,
    exact resume, and a plain timm / transformers folder at the end. Arguments are those of `EncoderTrainer`, but

    Args:
        picture_samples: samples (dicts with pixel_values and bool_masked_pos) whose reconstructions are shown in
            `output_dir/reconstructions/step-N.png` every `args.reconstruction_steps`, and at the end in
            `output_dir/reconstruction.png`. For a classifier: one sample, shown in `output_dir/example.png`.
        picture_names: what to call them there.
        monitor: images that the encoder is measured on while it learns: rows of `datasets` with a column of images,
            and of classes (`ClassLabel`) if k-NN accuracy is wanted, or what `data.monitor.monitor_images` gives.
            The figures are in the log (`monitor_rankme`, ...) and in evaluations (`eval_rankme`, ...).
        monitor_steps: steps between two measurements; 0: no measurements; "auto": as often as costs less than 3% of
            the training, 20 times at most.
        probe_layers: what is measured: "last", the mean of the last feature map over its positions, or "all", mean and
            standard deviation of the maps of every stage (`models.pooled_features`).
    """

    monitor: MonitorCallback | None = None

    def __init__(
        self,
        *args: Any,
        monitor: MonitorImages | datasets.Dataset | RowSource | None = None,
        monitor_steps: int | str = "auto",
        probe_layers: str = "last",
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if steps_or_auto(monitor_steps, "monitor_steps") and monitor is not None:
            self.monitor = monitor_of(self, monitor, monitor_steps, probe_layers)
            self.add_callback(self.monitor)
        self._terms: dict[str, list] = {}  # of the loss: sum over the steps since the last log, and their number
        self._evaluated: dict[str, list[torch.Tensor]] = {}  # the same of an evaluation, for each of its images
        self._pixels: torch.Tensor | None = None
        if self.reconstructs:
            self.can_return_loss = True  # from pixels alone
            if self.compute_metrics is None:
                refuse(self.args, ("batch_eval_metrics", "eval_do_concat_batches"))
                if self.preprocess_logits_for_metrics is not None:
                    raise ValueError(
                        "preprocess_logits_for_metrics: predictions are the errors of each image, which the metrics "
                        "of this trainer read as they are; give compute_metrics beside it, or leave it out"
                    )
                self.compute_metrics = _reconstruction_metrics

    @property
    def reconstructs(self) -> bool:
        return isinstance(self.unwrapped(), A2MIMForPreTraining)

    def run_settings(self):
        settings = super().run_settings()
        if self.monitor is not None:
            settings["data"]["monitor_data"] = self.monitor.images.fingerprint
            settings["data"]["monitor_files"] = self.monitor.images.files
        return settings

    def record(self):
        record = super().record()
        data = record.pop("monitor_data", None)
        if self.monitor is not None:
            layers, log = self.monitor.layers, self.state.log_history
            record["monitor"] = finite(monitor_record(log, self.monitor.images, data, layers))
        return record

    def figure_callback(self, batch, names):
        return ReconstructionCallback(batch, names) if self.reconstructs else super().figure_callback(batch, names)

    def prepared(self, inputs):
        if isinstance(self.train_dataset.transform, PreTrainTransform):
            # Into the same memory every step: on a CPU, new memory costs as much as the arithmetic.
            self._pixels = self.train_dataset.transform.normalize(inputs["pixel_values"], out=self._pixels)
            inputs["pixel_values"] = self._pixels
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.reconstructs:
            inputs = {name: value for name, value in inputs.items() if name not in LABELS}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def train(self, *args, **kwargs):
        self._terms.clear()
        return super().train(*args, **kwargs)

    def after_forward(self, outputs, weight):
        share = 1 / self.current_gradient_accumulation_steps  # of its step; the last of an epoch may have fewer
        for name, value in loss_terms(outputs).items():
            kept = self._terms.setdefault(name, [0.0, 0.0])
            kept[0] = kept[0] + value.detach() * weight * share
            kept[1] += share

    def log(self, logs, start_time=None):
        for name in LOSS_TERMS if "loss" in logs else ():
            if name in self._terms:
                total, steps = self._terms.pop(name)
                logs[name] = self.accelerator.gather((total / steps).view(1)).mean().item()
        if self.monitor is not None and "eval_loss" in logs:
            logs |= {f"eval_{name}": value for name, value in self.monitor.figures().items()}
        super().log(logs, start_time)

    def before_evaluation(self):
        self._evaluated.clear()

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        for name, values in self._evaluated.items():
            output.metrics[f"{metric_key_prefix}_{name}"] = torch.cat(values).double().mean().item()
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Of a pre-training model, as predictions, the errors of each image (`baselines.masked_errors`) beside the
        loss; reconstructions of a whole data set would be too much to keep."""
        if not self.reconstructs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        self.check_first(inputs, "eval_dataset")
        inputs, own, size = self.without_repeated(self.on_device(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        images, mask = inputs["pixel_values"], outputs["bool_masked_pos"]
        for name, value in loss_terms(outputs).items():
            # As Trainer does with the loss: once for each image, without those that fill up the last batch.
            every = self.accelerator.gather_for_metrics(value.repeat(size))
            self._evaluated.setdefault(name, []).append(every.cpu())
        errors = masked_errors(outputs["reconstruction"], images, mask, self.unwrapped().config)
        errors = filled(errors, own, size)
        return loss.mean().detach(), errors, errors  # Trainer computes metrics only where there are labels

    def after_evaluation(self, metrics):
        """Say how far from trivial the reconstructions are."""
        if "eval_mean_fill_psnr" not in metrics:
            return {}
        found, mean, blur = (metrics[f"eval_{name}_psnr"] for name in ("masked", "mean_fill", "blur"))
        whole = "image" if self.unwrapped().config.target == "pixels" else "cell"
        logger.info(
            "masked pixels of %s images of %s: PSNR %.1f dB; of their %ss' mean colour %.1f dB, of a blur of the "
            "visible pixels %.1f dB",
            _count(self.eval_dataset),
            self.provenance.get("evaluation_data") or "the evaluation data",
            found,
            whole,
            mean,
            blur,
        )
        if not found > mean and self.args.should_log:  # also of a model that gives no numbers any more
            logger.warning(
                "the model reconstructs masked pixels no better (%.1f dB) than the mean colour of each %s does "
                "(%.1f dB): it has not learned to. It had %d steps at a learning rate of up to %g; %s",
                found,
                whole,
                mean,
                self.state.global_step,
                self.args.learning_rate,
                what_to_change(
                    self.unwrapped(), self.args, dataset_length(self.train_dataset), self.state.global_step
                ),
            )
        return {}
