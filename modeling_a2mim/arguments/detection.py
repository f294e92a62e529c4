"""Command-line arguments of object detection and instance segmentation."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from .dense import DenseArguments, DenseModelArguments, DenseTrainingArguments


BOX_FORMATS = ("coco", "pascal_voc", "yolo")


@dataclass
class DetectionModelArguments(DenseModelArguments):
    """The encoder, and the detector on it."""

    # Default: those of a detector from which a run starts, else A2MIMDetectorConfig's.
    fpn_channels: int | None = HfArg(
        default=None, help="Channels of the feature pyramid, and of the head that predicts masks. Default 256."
    )
    box_channels: int | None = HfArg(default=None, help="Width of the head that classifies boxes. Default 1024.")
    head_norm: bool | None = HfArg(
        default=None,
        help="BatchNorm in pyramid and heads, and four convolutions before boxes are classified. Default: no.",
        metadata={"nargs": "?", "const": True},
    )
    anchor_scale: float | None = HfArg(
        default=None, help="Size of the anchors at each level, in its strides. Default 8: 32 px at stride 4."
    )
    proposals_per_image: int | None = HfArg(
        default=None, help="Regions that are looked at closely; twice as many while training. Default 1000."
    )
    rois_per_image: int | None = HfArg(
        default=None, help="How many of them the heads learn from, at most. Default 512."
    )
    detections_per_image: int | None = HfArg(
        default=None, help="The most objects that are found in an image. Default 100."
    )
    batch_norm: str = HfArg(
        default="train",
        help="BatchNorm of the encoder and the heads: train; sync, over all devices; frozen, the encoder's as "
        "pre-trained.",
        metadata={"choices": ["train", "sync", "frozen"]},
    )


@dataclass
class DetectionArguments(DenseArguments):
    """Where annotated images come from, and how they are augmented."""

    objects_column_name: str | None = HfArg(
        default=None, help="Column of the objects (bbox, category, ...) of each image; found if not given."
    )
    bbox_format: str = HfArg(
        default="coco",
        help="How boxes are stored: coco (x y width height), pascal_voc (x0 y0 x1 y1), yolo (centre, shares of the "
        "image).",
        metadata={"choices": list(BOX_FORMATS)},
    )
    id2label: str | None = HfArg(
        default=None,
        help="Names of the classes by what is stored for them, if the dataset has none: JSON, or a file of it.",
    )
    shortest_edge: list[int] | None = HfArg(
        default=None,
        help="Resize the shorter edge to this many pixels; from several, training draws, and evaluation takes the "
        "largest. Default: images are fitted into --image_size.",
        metadata={"nargs": "+"},
    )
    longest_edge: int = HfArg(
        default=1333, help="The most pixels that the longer edge may have, with --shortest_edge."
    )
    horizontal_flip: float = HfArg(default=0.5, help="Share of training images that are mirrored left to right.")

    def __post_init__(self):
        super().__post_init__()
        if self.shortest_edge is not None and min(self.shortest_edge) < 1:
            raise ValueError(f"shortest_edge: must be positive, got {self.shortest_edge}")
        if self.shortest_edge is not None and max(self.shortest_edge) > self.longest_edge:
            raise ValueError(f"longest_edge: {self.longest_edge} is less than --shortest_edge {self.shortest_edge}")
        if not 0 <= self.horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip: must be in [0, 1], got {self.horizontal_flip}")
        self.shortest_edge = None if self.shortest_edge is None else sorted(self.shortest_edge)


@dataclass
class DetectionTrainingArguments(DenseTrainingArguments):
    """The same for detection: small batches; the best checkpoint is the one of the highest average precision."""

    per_device_train_batch_size: int = HfArg(default=4, help="Images per device and step.")
    per_device_eval_batch_size: int = HfArg(default=4, help="Images per device for evaluation.")
    base_learning_rate: float | None = HfArg(default=3.2e-3, help="Learning rate for a total batch of 256 images.")
    metric_for_best_model: str | None = HfArg(default="map", help="What the best checkpoint is best in.")
    # The norm after an encoder's last map gets no gradient.
    ddp_find_unused_parameters: bool | None = HfArg(default=True, help="As in torch's DistributedDataParallel.")
