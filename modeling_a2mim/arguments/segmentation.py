"""Command-line arguments of semantic segmentation."""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from .dense import DenseArguments, DenseModelArguments, DenseTrainingArguments


LABELS_FILE = "id2label.json"
AUTO = "auto"  # --ignore_index: 255, unless that is a class
IGNORED = 255
LARGEST = 2**16  # values of pixels are below it, but for colours


@dataclass
class SegmentationModelArguments(DenseModelArguments):
    """The encoder, and UperNet's head on it."""

    # Default: those of a segmenter from which a run starts, else UPERNET's.
    head_channels: int | None = HfArg(default=None, help="Channels of UperNet's head. Default 512.")
    auxiliary_channels: int | None = HfArg(
        default=None, help="Channels of the auxiliary head, which is there for training. Default 256."
    )
    auxiliary_weight: float | None = HfArg(
        default=None, help="Weight of the auxiliary head's loss; 0: no such head. Default 0.4."
    )
    sync_batch_norm: bool = HfArg(default=False, help="Statistics of BatchNorm over all processes, on GPUs.")


@dataclass
class SegmentationArguments(DenseArguments):
    """Where images with maps of classes come from, and how they are augmented."""

    label_column_name: str | None = HfArg(
        default=None, help="Column of the maps of classes (images); found if not given."
    )
    labels_file: str | None = HfArg(
        default=None,
        help='JSON of class names by the values of their pixels, {"0": "wall", ...}, by their colours, {"#ff0000": '
        '"wall", '
        f"...}}, or a list for 0, 1, ...; default: {LABELS_FILE} beside the data, if any.",
    )
    do_reduce_labels: bool = HfArg(
        default=False, help="0 in the maps is no class, and 1 the first one, called 0 (ADE20K)."
    )
    ignore_index: str = HfArg(
        default=AUTO,
        help="Value in the maps (or #rrggbb) of pixels that are neither trained nor evaluated on; none for no value. "
        f"{AUTO}: 255, unless --labels_file names that.",
    )
    resize_scale: list[float] = HfArg(
        default_factory=lambda: [0.5, 2.0],
        help="Random factor of training images, 1: just covers the crop; lowest, highest.",
        metadata={"nargs": 2},
    )
    horizontal_flip: bool = HfArg(default=True, help="Flip half of the training images.")
    photometric_distortion: bool = HfArg(
        default=False, help="Random brightness, contrast, saturation and hue (RGB only)."
    )

    def __post_init__(self):
        super().__post_init__()
        low, high = self.resize_scale
        if not 0 < low <= high:
            raise ValueError(f"resize_scale: expected 0 < lowest <= highest, got {low} {high}")
        ignored_value(self.ignore_index, (), str(self.ignore_index).startswith("#"))  # whether it is one


@dataclass
class SegmentationTrainingArguments(DenseTrainingArguments):
    """The same for segmentation."""

    metric_for_best_model: str = HfArg(default="mean_iou", help="What --load_best_model_at_end goes by.")
    dataloader_drop_last: bool = HfArg(
        default=True,
        help="Leave out what does not fill the last batch of a training pass; BatchNorm cannot be trained on one "
        "image.",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.per_device_train_batch_size < 2:
            raise ValueError("per_device_train_batch_size: must be at least 2; UperNet's BatchNorm needs two images")


def parse_value(text: str) -> tuple[int, bool] | None:
    """A value of pixels as it is written (`255`, `#ff0000`), and whether it is a colour (0xRRGGBB); `None` for what is
    neither."""
    if text.startswith("#"):
        digits = text[1:].lower()
        return (int(digits, 16), True) if len(digits) == 6 and set(digits) <= set("0123456789abcdef") else None
    return (int(text), False) if text.isascii() and text.isdigit() and int(text) < LARGEST else None


def ignored_value(given: int | str | None, taken: Iterable[int], colours: bool) -> int | None:
    """The value of the pixels that do not count, or `None` if all do.

    Args:
        given: `--ignore_index`: a value, `#rrggbb` for maps of colours, `auto`; `none`, or any negative number but in
            maps that hold that very number, for none.
        taken: the values of classes.
        colours: whether maps hold colours.

    Raises:
        ValueError: naming `ignore_index`, if it is none of these.
    """
    text = "none" if given is None else str(given).strip().lower()
    if text == AUTO:
        return None if colours or IGNORED in taken else IGNORED
    if text == "none":
        return None
    if text.removeprefix("-").isdigit() and text.startswith("-"):
        return None if colours else int(text)
    value = parse_value(text)
    if value is None:
        raise ValueError(f"ignore_index: expected a value of pixels, none or {AUTO}, got {given!r}")
    if value[1] != colours:
        kind = "the maps' colours are given as #rrggbb" if colours else "the maps hold numbers"
        raise ValueError(f"ignore_index: {kind}, got {given}")
    return value[0]
