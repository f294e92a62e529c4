"""Command-line arguments that say what model: its encoder, the mask and the loss, or a classifier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg

from ..utils.statistics import check_statistics
from ..utils.value_range import AUTO, PAGES, ValueRange


TASK_NAMES = ("image-classification", "semantic-segmentation", "object-detection", "instance-segmentation")
KNN_LAYERS = ["all"]  # what `--knn` reads without `--probe_layers`
PRESETS = ("auto", "resnet", "convnext", "vit", "swin", "simmim")


@dataclass
class EncoderArguments:
    """The encoder and the images that it takes; what is not given is the configuration's default."""

    architecture: str | None = HfArg(
        default=None, help="A timm model: any name of timm.list_models(). Default resnet50."
    )
    pretrained: bool = HfArg(
        default=False,
        help="Start from the weights that timm has for --architecture; a tag (resnet50.a1_in1k) names certain ones.",
    )
    model_name_or_path: str | None = HfArg(
        default=None, help="Start from the weights in a folder, a repository of the Hub, or a file."
    )
    model_revision: str | None = HfArg(default=None, help="Branch, tag or commit of --model_name_or_path on the Hub.")
    model_args: str | None = HfArg(
        default=None, help="Further arguments of timm.create_model as JSON, e.g. '{\"patch_size\": 8}'."
    )
    image_size: list[int] | None = HfArg(
        default=None, help="Image size in pixels: one number, or height and width.", metadata={"nargs": "+"}
    )
    num_channels: int | None = HfArg(
        default=None, help="Channels of the images: 1 grey, 3 RGB (default), or any other number."
    )
    channels: list[int] | None = HfArg(
        default=None,
        help="Take these of the stored channels, in this order, counted from 1; all, if not given.",
        metadata={"nargs": "+"},
    )
    value_range: list[str] | None = HfArg(
        default=None,
        help="What stored values become 0 and 1: LOW HIGH (once, or for each channel; what lies outside is cut off, "
        "unless `unclipped` follows), percentile LOW HIGH (of each channel of each image), window (what each DICOM "
        "file says), or auto: lowest and highest value in a sample of the images; without it, auto for images that "
        "are not of 8 bits.",
        metadata={"nargs": "+"},
    )
    pages: str | None = HfArg(
        default=None,
        help="What pages or frames of a file are: channels, samples, or first (take no others). Without it, files "
        "that have several are refused, and of animations the first frame is taken.",
        metadata={"choices": PAGES},
    )
    display_channels: list[int] | None = HfArg(
        default=None,
        help="One or three of the model's channels that figures show, from 1. Default: all of 1 or 3, else the first.",
        metadata={"nargs": "+"},
    )
    image_mean: list[str] | None = HfArg(
        default=None,
        help="Mean of each channel (pixels in [0, 1]); auto: of a sample of the images.",
        metadata={"nargs": "+"},
    )
    image_std: list[str] | None = HfArg(
        default=None,
        help="Standard deviation of each channel (pixels in [0, 1]); auto: of a sample of the images.",
        metadata={"nargs": "+"},
    )
    crop_pct: float | None = HfArg(
        default=None, help="Share of the resized image that is seen in evaluation. Default 0.95."
    )

    def __post_init__(self):
        from ..pretrained import plain_source  # imports timm, without which --help is there at once

        self.model_name_or_path = plain_source(self.model_name_or_path, self.architecture)
        if self.pretrained and self.architecture is None:
            raise ValueError("pretrained: needs --architecture, the timm model whose weights are loaded")
        known = None if self.value_range is None else ValueRange.from_words(self.value_range)
        for field in ("image_mean", "image_std"):
            values = getattr(self, field)
            if values is not None and not is_auto(values):
                check_statistics(field, numbers(field, values), bounded=known is None or known.clip)
        if self.channels is not None and min(self.channels) < 1:
            raise ValueError(f"channels: are counted from 1, got {' '.join(map(str, self.channels))}")


def is_auto(words: Sequence[Any] | None) -> bool:
    """Whether these words of the command line say that a value is to be found in the images."""
    return words is not None and list(words) == [AUTO]


def numbers(field: str, words: Sequence[Any]) -> list[float]:
    """Words of the command line as numbers.

    Raises:
        ValueError: naming `field`.
    """
    try:
        return [float(word) for word in words]
    except (TypeError, ValueError):
        raise ValueError(f"{field}: expected a number for each channel, or {AUTO}, got {words}") from None


@dataclass
class PreTrainingModelArguments(EncoderArguments):
    """The encoder, the mask and the loss (fields of A2MIMConfig)."""

    preset: str = HfArg(
        default="auto",
        help="Whose settings of the paper to start from; auto: resnet for hierarchical encoders, vit for isotropic "
        "ones, its own for a model that continues.",
        metadata={"choices": PRESETS},
    )
    model_name_or_path: str | None = HfArg(
        default=None,
        help="Start from weights: a folder or Hub id of this package (with pretraining/, token and decoder go on as "
        "well), of timm or of transformers, or a file of weights for --architecture (.safetensors, .pth). What is not "
        "given stays as it is; what the weights do not fit is refused.",
    )
    mask_ratio: float | None = HfArg(default=None, help="Share of masked cells, in (0, 1). Default 0.6.")
    mask_patch_size: list[int] | None = HfArg(
        default=None,
        help="Size of one masked cell in pixels. Default: 32, or less to have 6 x 6 cells.",
        metadata={"nargs": "+"},
    )
    mask_fill: str | None = HfArg(default=None, help="What masked pixels become: mean, zero or none.")
    mask_site: str | None = HfArg(
        default=None, help="Where the mask token enters: a timm module, or an index into feature_info."
    )
    mask_token_mode: str | None = HfArg(default=None, help="add (A2MIM) or replace (SimMIM).")
    mask_gamma_init: str | None = HfArg(default=None, help="First value of gamma, or none.")
    decoder: str | None = HfArg(
        default=None,
        help="linear (the paper's), or multiscale: reads every stage, learns from fewer steps; hierarchical encoders.",
    )
    decoder_kernel_size: int | None = HfArg(
        default=None, help="Size of the convolution that predicts the pixels. Default 1."
    )
    decoder_norm: bool | None = HfArg(
        default=None, help="Decode after the norm of the encoder's head, where it has one."
    )
    target: str | None = HfArg(
        default=None,
        help="What is predicted: pixels (the paper's), or normalised: each cell less its mean, divided by its "
        "deviation, as in MAE.",
    )
    spatial_loss: str | None = HfArg(default=None, help="l1 or focal_l1.")
    frequency_loss_weight: float | None = HfArg(default=None, help="Weight of the Fourier term; 0 turns it off.")
    frequency_focal: bool | None = HfArg(
        default=None, help="Focal frequency loss, or the spatial criterion of the spectrum."
    )
    frequency_replacement: str | None = HfArg(default=None, help="mixed, prediction, target or mean.")
    frequency_unmasked_weight: float | None = HfArg(
        default=None, help="Share of the visible prediction in the Fourier term."
    )
    frequency_batch_average: bool | None = HfArg(default=None, help="Average the batch before the Fourier transform.")


def probe_layer(value: str | int) -> int | str:
    """A layer by its index, "last" being -1, or "all".

    Raises:
        ValueError: naming `probe_layers`, if it is none.
    """
    if value == "all":
        return value
    try:
        return -1 if value == "last" else int(value)
    except ValueError:
        raise ValueError(f"probe_layers: expected last, all or an index of a feature map, got {value!r}") from None


@dataclass
class ClassifierArguments(EncoderArguments):
    """What to fine-tune: a pre-trained encoder, or a new one (`architecture`)."""

    architecture: str | None = HfArg(
        default=None,
        help="Train this timm model from scratch: any name of timm.list_models(); with a tag (resnet50.a1_in1k) or "
        "--pretrained, from weights of timm.",
    )
    model_name_or_path: str | None = HfArg(
        default=None,
        help="An exported folder, its name on the Hub, any model of timm or transformers there, or a file of weights "
        "for --architecture (.safetensors, .pth).",
    )
    global_pool: str | None = HfArg(
        default=None,
        help="How the last map is pooled: avg for the mean of a ViT's patches instead of its class token, ...",
    )
    drop_path: float | None = HfArg(default=None, help="Rate of stochastic depth.")
    linear_probe: bool = HfArg(default=False, help="Freeze the encoder and train only a linear classifier.")
    probe_batch_norm: bool = HfArg(
        default=False, help="Normalise the features of --linear_probe by BatchNorm (no scale, no shift)."
    )
    probe_layers: list[str] | None = HfArg(
        default=None,
        help="Layers whose features are probed: last, the mean of the last map; all, mean and standard deviation of "
        "the maps of every stage together; indices of timm's feature_info. One for --linear_probe, several for --knn. "
        f"Default of --knn: {KNN_LAYERS[0]}; of --linear_probe: what timm's classifier reads.",
        metadata={"nargs": "+"},
    )
    eval_only: bool = HfArg(default=False, help="Train nothing: evaluate the classifier in --model_name_or_path.")
    knn: bool = HfArg(
        default=False, help="Train nothing: k-nearest neighbours and logistic regression on frozen features."
    )
    knn_neighbours: int = HfArg(default=20, help="Nearest neighbours that vote in --knn.")
    knn_temperature: float | None = HfArg(
        default=0.07, help="A neighbour at cosine similarity s counts exp(s / temperature)."
    )

    probe_strength: float | None = HfArg(
        default=None,
        help="Inverse regularisation (scikit-learn's C) of logistic regression; default: by cross-validation.",
    )
    threshold: str | None = HfArg(
        default=None,
        help="From which score on --positive_class is decided for (of a multi-label problem, each label): a number, "
        "or f1 (the best F1) or fpr=0.05 (the most recall at that rate of false alarms) on the validation images.",
    )
    positive_class: str | None = HfArg(default=None, help="The class that --threshold is of.")
    add_to_card: bool = HfArg(
        default=False, help="Write what was measured into the card of the folder --model_name_or_path."
    )

    def __post_init__(self):
        super().__post_init__()
        modes = [name for name in ("linear_probe", "knn", "eval_only") if getattr(self, name)]
        if len(modes) > 1:
            raise ValueError(f"{modes[1]}: give either it or --{modes[0]}")
        from ..pretrained import PRETRAINING_CONFIG

        if self.add_to_card and not Path(self.model_name_or_path or "", PRETRAINING_CONFIG).is_file():
            raise ValueError("add_to_card: --model_name_or_path is no folder with a pre-trained encoder")
        if self.probe_layers is not None and not (self.knn or self.linear_probe):
            raise ValueError("probe_layers: is for --linear_probe and --knn")
        layers = KNN_LAYERS if self.knn and self.probe_layers is None else self.probe_layers
        self.probe_layers = layers if layers is None else [probe_layer(layer) for layer in layers]
        if self.linear_probe and len(self.probe_layers or [None]) > 1:
            raise ValueError("probe_layers: --linear_probe trains on one layer; --knn compares several")
        if self.probe_batch_norm and not self.linear_probe:
            raise ValueError("probe_batch_norm: is for --linear_probe")
        if self.knn_neighbours < 1:
            raise ValueError(f"knn_neighbours: must be at least 1, got {self.knn_neighbours}")
        for name in ("knn_temperature", "probe_strength"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: must be a finite number above 0, got {value}")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: must be in [0, 1), got {self.drop_path}")
