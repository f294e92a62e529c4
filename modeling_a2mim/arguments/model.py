"""Command-line arguments that say what model: its encoder, the mask and the loss, or a classifier."""

from dataclasses import dataclass
from pathlib import Path

from ..configuration_a2mim import check_statistics
from ..pretrained import PRETRAINING_CONFIG
from .data import helped


TASK_NAMES = ("image-classification", "semantic-segmentation", "object-detection", "instance-segmentation")
PRESETS = ("auto", "resnet", "convnext", "vit", "swin", "simmim")


@dataclass
class EncoderArguments:
    """The encoder and the images that it takes; what is not given is the configuration's default."""

    architecture: str | None = helped(None, "A timm model: any name of timm.list_models(). Default resnet50.")
    model_args: str | None = helped(
        None, "Further arguments of timm.create_model as JSON, e.g. '{\"patch_size\": 8}'."
    )
    image_size: list[int] | None = helped(None, "Image size in pixels: one number, or height and width.", nargs="+")
    num_channels: int | None = helped(None, "Channels of the images: 1 grey, 3 RGB (default).")
    image_mean: list[float] | None = helped(None, "Mean of each channel (pixels in [0, 1]).", nargs="+")
    image_std: list[float] | None = helped(None, "Standard deviation of each channel (pixels in [0, 1]).", nargs="+")
    crop_pct: float | None = helped(None, "Share of the resized image that is seen in evaluation. Default 0.95.")

    def __post_init__(self):
        for field in ("image_mean", "image_std"):
            if getattr(self, field) is not None:
                check_statistics(field, getattr(self, field))


@dataclass
class PreTrainingModelArguments(EncoderArguments):
    """The encoder, the mask and the loss (fields of A2MIMConfig)."""

    preset: str = helped(
        "auto",
        "Whose settings of the paper to start from; auto: resnet for hierarchical encoders, vit for isotropic ones, "
        "its own for a model that continues.",
        choices=PRESETS,
    )
    model_name_or_path: str | None = helped(
        None,
        "Continue from a pre-trained folder or Hub id (with pretraining/) instead of new weights. What is not given "
        "stays as it is; what its weights do not fit is refused.",
    )
    model_revision: str | None = helped(None, "Branch, tag or commit of --model_name_or_path on the Hub.")
    mask_ratio: float | None = helped(None, "Share of masked cells, in (0, 1). Default 0.6.")
    mask_patch_size: list[int] | None = helped(
        None, "Size of one masked cell in pixels. Default: 32, or less to have 6 x 6 cells.", nargs="+"
    )
    mask_fill: str | None = helped(None, "What masked pixels become: mean, zero or none.")
    mask_site: str | None = helped(None, "Where the mask token enters: a timm module, or an index into feature_info.")
    mask_token_mode: str | None = helped(None, "add (A2MIM) or replace (SimMIM).")
    mask_gamma_init: str | None = helped(None, "First value of gamma, or none.")
    decoder: str | None = helped(
        None, "linear (the paper's), or multiscale: reads every stage, learns from fewer steps; hierarchical encoders."
    )
    decoder_kernel_size: int | None = helped(None, "Size of the convolution that predicts the pixels. Default 1.")
    decoder_norm: bool | None = helped(None, "Decode after the norm of the encoder's head, where it has one.")
    spatial_loss: str | None = helped(None, "l1 or focal_l1.")
    frequency_loss_weight: float | None = helped(None, "Weight of the Fourier term; 0 turns it off.")
    frequency_focal: bool | None = helped(None, "Focal frequency loss, or the spatial criterion of the spectrum.")
    frequency_replacement: str | None = helped(None, "mixed, prediction, target or mean.")
    frequency_unmasked_weight: float | None = helped(None, "Share of the visible prediction in the Fourier term.")
    frequency_batch_average: bool | None = helped(None, "Average the batch before the Fourier transform.")


@dataclass
class ClassifierArguments(EncoderArguments):
    """What to fine-tune: a pre-trained encoder, or a new one (`architecture`)."""

    architecture: str | None = helped(None, "Train this timm model from scratch: any name of timm.list_models().")
    model_name_or_path: str | None = helped(None, "An exported folder, its name on the Hub, or any timm model there.")
    model_revision: str | None = helped(None, "Branch, tag or commit of --model_name_or_path on the Hub.")
    global_pool: str | None = helped(
        None, "How the last map is pooled: avg for the mean of a ViT's patches instead of its class token, ..."
    )
    drop_path: float | None = helped(None, "Rate of stochastic depth.")
    linear_probe: bool = helped(False, "Freeze the encoder and train only a linear classifier.")
    probe_batch_norm: bool = helped(
        False, "Normalise the features of --linear_probe by BatchNorm (no scale, no shift)."
    )
    probe_layers: list[int] | None = helped(
        None,
        "Layers whose features are probed: indices of timm's feature_info, -1 the last map. One for --linear_probe, "
        "several for --knn. Default of --knn: -1; of --linear_probe: what timm's classifier reads.",
        nargs="+",
    )
    eval_only: bool = helped(False, "Train nothing: evaluate the classifier in --model_name_or_path.")
    knn: bool = helped(False, "Train nothing: k-nearest neighbours and logistic regression on frozen features.")
    knn_neighbours: int = helped(20, "Nearest neighbours that vote in --knn.")
    knn_temperature: float | None = helped(0.07, "A neighbour at cosine similarity s counts exp(s / temperature).")

    probe_strength: float | None = helped(
        None, "Inverse regularisation (scikit-learn's C) of logistic regression; default: by cross-validation."
    )
    add_to_card: bool = helped(False, "Write what was measured into the card of the folder --model_name_or_path.")

    def __post_init__(self):
        super().__post_init__()
        modes = [name for name in ("linear_probe", "knn", "eval_only") if getattr(self, name)]
        if len(modes) > 1:
            raise ValueError(f"{modes[1]}: give either it or --{modes[0]}")
        if self.add_to_card and not Path(self.model_name_or_path or "", PRETRAINING_CONFIG).is_file():
            raise ValueError("add_to_card: --model_name_or_path is no folder with a pre-trained encoder")
        if self.probe_layers is not None and not (self.knn or self.linear_probe):
            raise ValueError("probe_layers: is for --linear_probe and --knn")
        if self.linear_probe and len(self.probe_layers or [None]) > 1:
            raise ValueError("probe_layers: --linear_probe trains on one layer; --knn compares several")
        if self.probe_batch_norm and not self.linear_probe:
            raise ValueError("probe_batch_norm: is for --linear_probe")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: must be in [0, 1), got {self.drop_path}")
