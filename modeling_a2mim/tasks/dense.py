"""What semantic segmentation and detection share: a trainer whose result is a folder of transformers (config.json,
model.safetensors, preprocessor_config.json) with its card and figure."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel, TrainerCallback

from ..arguments.dense import DenseTrainingArguments
from ..data.dataset import ImageSamples
from ..export.filenames import PREDICTIONS
from ..export.folder import export_dense_model, write_dense_card
from ..export.model_card import DenseTask
from ..training.encoder_trainer import EncoderTrainer


class DenseTrainer(EncoderTrainer):
    """Train a model of transformers that holds an `A2MIMBackbone`; checkpoints, resuming and pushing are
    `EncoderTrainer`'s. `output_dir` ends up as a folder of transformers, with a card, a record and a figure.

    Args:
        task: what the card says of it.
        processing_class: the image processor that is written beside the model.
        draw: makes `predictions.png` from the trained model, which is in evaluation mode.
        shown: the names of the images in it, from the top.
    """

    eval_dataset: ImageSamples | None
    processing_class: BaseImageProcessor
    arguments_class = DenseTrainingArguments
    classifies = False

    def __init__(
        self,
        *args,
        task: DenseTask,
        processing_class: BaseImageProcessor,
        draw: Callable[[PreTrainedModel], Image.Image] | None = None,
        shown: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(*args, processing_class=processing_class, **kwargs)
        # transformers takes any forward with **kwargs for one that divides its loss by the accumulated batch.
        self.model_accepts_loss_kwargs = False
        self.task = task
        if draw is not None:
            self.add_callback(PredictionsCallback(draw, shown))

    def export(self, folder: str):
        parts = (self.task, self.processing_class, self.record(), self.hub_model_id)
        export_dense_model(self.unwrapped(), folder, *parts, saved=self.model_to_export())

    def write_card(self, folder: str):
        write_dense_card(self.unwrapped(), folder, self.task, self.record(), self.hub_model_id)


class PredictionsCallback(TrainerCallback):
    """Writes a figure of predictions when training ends, and the names of its images to a file of their own, as the
    figure may be published."""

    def __init__(self, draw: Callable[[PreTrainedModel], Image.Image], shown: Sequence[str] = ()):
        self.draw, self.shown = draw, shown

    def on_train_end(self, args, state, control, model=None, **kwargs):
        training = model.training
        with torch.no_grad():  # on every process, for sharded models
            figure = self.draw(model.eval())
        model.train(training)
        if state.is_world_process_zero:
            path = Path(args.output_dir) / PREDICTIONS
            figure.save(path)
            path.with_suffix(".txt").write_text("".join(f"{name}\n" for name in self.shown), encoding="utf-8")
