"""Command-line arguments that semantic segmentation and detection share."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from .data import DataArguments, sources_of
from .model import EncoderArguments
from .training import A2MIMTrainingArguments


@dataclass
class DenseModelArguments(EncoderArguments):
    """The encoder under a head: a pre-trained one, or a new one (`architecture`)."""

    architecture: str | None = HfArg(
        default=None,
        help="Train this timm model from scratch: any name of timm.list_models(); with a tag (resnet50.a1_in1k) or "
        "--pretrained, from weights of timm.",
    )
    model_name_or_path: str | None = HfArg(
        default=None,
        help="An exported folder (of an encoder, a classifier, or a model of this task), its name on the Hub, or any "
        "model of timm or transformers there, or a file of weights for --architecture (.safetensors, .pth).",
    )
    out_indices: list[int] | None = HfArg(
        default=None,
        help="Which of timm's feature maps the head sees; default: the last four, or evenly spread ones.",
        metadata={"nargs": "+"},
    )
    drop_path: float | None = HfArg(default=None, help="Rate of stochastic depth in the encoder.")
    freeze_encoder: bool = HfArg(default=False, help="Train what is on the encoder, not the encoder.")
    eval_only: bool = HfArg(
        default=False, help="Train nothing: evaluate the model of this task in --model_name_or_path."
    )

    def __post_init__(self):
        super().__post_init__()
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: must be in [0, 1), got {self.drop_path}")


NO_IMAGES = "dataset_name: annotated images are needed; give --dataset_name or --train_dir"


@dataclass
class DenseArguments(DataArguments):
    """Where annotated images come from: one source, with a split for evaluation if it has any."""

    def __post_init__(self):
        super().__post_init__()
        if self.train_dir is None and self.dataset_name is None and self.validation_dir is None:
            raise ValueError(NO_IMAGES)
        if len(sources_of(self)) > 1:
            raise ValueError("dataset_name: annotated images come from one source")
        if list(self.crop_scale) != [0.8, 1.0]:
            raise ValueError("crop_scale: is for pre-training and classification; here see --resize_scale")


def check_trained(args: DenseArguments):
    """
    Raises:
        ValueError: if images to evaluate on are named, and none to train on.
    """
    if sources_of(args) == [None]:
        raise ValueError(NO_IMAGES)


@dataclass
class DenseTrainingArguments(A2MIMTrainingArguments):
    """transformers' TrainingArguments for tasks with one answer for each place: evaluation in small pieces after every
    epoch."""

    per_device_train_batch_size: int = HfArg(default=16, help="Images per device and step.")
    per_device_eval_batch_size: int = HfArg(default=16, help="Images per device for evaluation.")
    num_train_epochs: str = HfArg(default="3", help="Passes over the data.")
    base_learning_rate: float | None = HfArg(default=1.6e-3, help="Learning rate for a total batch of 256 images.")
    eval_strategy: str = HfArg(default="epoch", help="When to evaluate: no, steps or epoch.")
    batch_eval_metrics: bool = HfArg(
        default=True, help="Add metrics up batch by batch, so that memory stays as it is."
    )
    remove_unused_columns: bool = HfArg(default=False, help="Keep what the metrics need beside what the model does.")
