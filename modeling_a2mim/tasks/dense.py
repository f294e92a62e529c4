"""What semantic segmentation and detection share: arguments, the encoder under their heads, and a trainer whose result
is a folder of transformers (config.json, model.safetensors, preprocessor_config.json) with its card and picture."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedModel, TrainerCallback

from ..arguments.data import DataArguments, helped
from ..arguments.model import ClassifierArguments, EncoderArguments
from ..arguments.training import A2MIMTrainingArguments
from ..configuration_a2mim import A2MIMConfig
from ..data.loading import find_validation_split
from ..encoders.meta import NoValues
from ..export.filenames import PREDICTIONS
from ..export.folder import export_dense_model, write_dense_card
from ..export.loading import folder_or_id, load_into_encoder
from ..export.model_card import DenseTask
from ..modeling_a2mim import A2MIMModel
from ..models.backbone import A2MIMBackbone, four_stages
from ..models.heads import kept_as_it_is, load_head
from ..models.resizing import resized_weights
from ..pretrained import Pretrained, open_pretrained
from ..training.trainer import A2MIMTrainer


@dataclass
class DenseModelArguments(EncoderArguments):
    """The encoder under a head: a pre-trained one, or a new one (`architecture`)."""

    architecture: str | None = helped(None, "Train this timm model from scratch: any name of timm.list_models().")
    model_name_or_path: str | None = helped(
        None,
        "An exported folder (of an encoder, a classifier, or a model of this task), its name on the Hub, or any timm "
        "model there.",
    )
    model_revision: str | None = helped(None, "Branch, tag or commit of --model_name_or_path on the Hub.")
    out_indices: list[int] | None = helped(
        None, "Which of timm's feature maps the head sees; default: the last four, or evenly spread ones.", nargs="+"
    )
    drop_path: float | None = helped(None, "Rate of stochastic depth in the encoder.")
    freeze_encoder: bool = helped(False, "Train what is on the encoder, not the encoder.")
    eval_only: bool = helped(False, "Train nothing: evaluate the model of this task in --model_name_or_path.")

    base_model, origin = ClassifierArguments.base_model, ClassifierArguments.origin

    @property
    def task(self) -> str:
        return "fine-tuning" if self.architecture is None else "training from scratch"

    def start(self, token: str | None = None) -> Pretrained | None:
        """What `model_name_or_path` holds; `None` to train from scratch.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        if (self.architecture is None) == (self.model_name_or_path is None):
            raise ValueError("model_name_or_path: give either it or, to train from scratch, --architecture")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: must be in [0, 1), got {self.drop_path}")
        if self.model_name_or_path is None:
            return None
        return open_pretrained(folder_or_id(self.model_name_or_path), revision=self.model_revision, token=token)

    def backbone(self, start: Pretrained | None = None, whole: bool = False) -> A2MIMBackbone:
        """The encoder with its pre-trained weights, if it has any, at the size that is asked for. An isotropic one
        gets a `FeaturePyramid`.

        Args:
            start: where the weights come from; `start()`, if not given.
            whole: whether that is a model of this task, whose feature maps and pyramid are kept.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        known, start = {}, self.start() if start is None else start
        if start is not None:
            known = {f.name: getattr(start.config, f.name) for f in fields(EncoderArguments)}
            if whole and self.out_indices not in (None, start.config.out_indices):
                raise kept_as_it_is("out_indices", start, start.config.out_indices, self.out_indices)
        own = {f.name for f in fields(EncoderArguments)}
        given = {name: value for name, value in self.given().items() if name in own}
        model_args = {**(known.get("model_args") or {}), **given.pop("model_args", {})}
        if self.drop_path is not None:
            model_args["drop_path_rate"] = self.drop_path
        config = A2MIMConfig.for_encoder(**{**known, **given, "model_args": model_args})
        with torch.device("meta"), NoValues():
            probe = A2MIMModel(config)
        config.feature_pyramid = probe.plan.isotropic
        config.out_indices = start.config.out_indices if whole else self.out_indices or four_stages(probe)
        backbone = A2MIMBackbone(config)
        if start is not None:
            weights = resized_weights(start.encoder_weights(), start.config, backbone.a2mim)
            load_into_encoder(backbone, weights, partly=whole and start.is_plain_backbone)
        if whole and backbone.pyramid is not None:
            load_head(backbone.pyramid, start, "backbone.pyramid.")
        return backbone.freeze_encoder() if self.freeze_encoder else backbone


@dataclass
class DenseArguments(DataArguments):
    """Where annotated images come from: one source, with a split for evaluation if it has any."""

    def __post_init__(self):
        super().__post_init__()
        self._given_split = self.validation_split
        if self.train_dir is None and self.dataset_name is None:
            raise ValueError("dataset_name: annotated images are needed; give --dataset_name or --train_dir")
        if len(self.sources) > 1:
            raise ValueError("dataset_name: annotated images come from one source")
        if list(self.crop_scale) != [0.8, 1.0]:
            raise ValueError("crop_scale: is for pre-training and classification; here see --resize_scale")

    @property
    def names_evaluation(self) -> bool:
        """Whether the user named what to evaluate on."""
        return self.validation_dir is not None or self._given_split is not None

    def load(self, train: bool, token: str | None = None):
        if not train and self.validation_dir is None and self.validation_split is None and self.train_dir is None:
            self.validation_split = find_validation_split(self.sources[0], self.dataset_config_name)
        return super().load(train, token)


def start_to_evaluate(
    model_args: DenseModelArguments, data_args: DenseArguments, kinds: Collection[str], token: str | None = None
):
    """What `--eval_only` evaluates, a `Pretrained` of one of these kinds, and the images to evaluate on.

    Raises:
        ValueError: naming the argument, if there is no such model, or no images.
    """
    start = model_args.start(token)
    if start is None or start.kind not in kinds:
        found = "" if start is None else f"; {start.place} holds {start.what}"
        raise ValueError(f"model_name_or_path: --eval_only needs a model of this task ({' or '.join(kinds)}){found}")
    validation = data_args.load(train=False, token=token)
    if validation is None:
        raise ValueError("validation_dir: there are no images to evaluate on; give it or --validation_split")
    return start, validation


@dataclass
class DenseTrainingArguments(A2MIMTrainingArguments):
    """transformers' TrainingArguments for tasks with one answer for each place: evaluation in small pieces after every
    epoch."""

    per_device_train_batch_size: int = field(default=16, metadata={"help": "Images per device and step."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Images per device for evaluation."})
    num_train_epochs: str = field(default="3", metadata={"help": "Passes over the data."})
    base_learning_rate: float | None = field(
        default=1.6e-3, metadata={"help": "Learning rate for a total batch of 256 images."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    batch_eval_metrics: bool = field(
        default=True, metadata={"help": "Add metrics up batch by batch, so that memory stays as it is."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Keep what the metrics need beside what the model does."}
    )


class DenseTrainer(A2MIMTrainer):
    """Train a model of transformers that holds an `A2MIMBackbone`; checkpoints, resuming and pushing are
    `A2MIMTrainer`'s. `output_dir` ends up as a folder of transformers, with a card, a record and a picture.

    Args:
        task: what the card says of it.
        processing_class: the image processor that is written beside the model.
        draw: makes `predictions.png` from the trained model, which is in evaluation mode.
        shown: the names of the images in it, from the top.
    """

    arguments_class = DenseTrainingArguments

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

    def exported(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model in the form that users load; `model` itself if there is no better one."""
        return model

    def export(self, folder: str):
        model = self._unwrapped()
        parts = (self.task, self.processing_class, self.record(), self.hub_model_id)
        export_dense_model(model, folder, *parts, saved=self.exported(model))

    def describe(self, folder: str):
        write_dense_card(self._unwrapped(), folder, self.task, self.record(), self.hub_model_id)


class PredictionsCallback(TrainerCallback):
    """Writes a picture of predictions when training ends, and the names of the images in it to a file of their own,
    as the picture may be published."""

    def __init__(self, draw: Callable[[PreTrainedModel], Image.Image], shown: Sequence[str] = ()):
        self.draw, self.shown = draw, shown

    def on_train_end(self, args, state, control, model=None, **kwargs):
        training = model.training
        with torch.no_grad():  # on every process, for sharded models
            picture = self.draw(model.eval())
        model.train(training)
        if state.is_world_process_zero:
            path = Path(args.output_dir) / PREDICTIONS
            picture.save(path)
            path.with_suffix(".txt").write_text("".join(f"{name}\n" for name in self.shown), encoding="utf-8")
