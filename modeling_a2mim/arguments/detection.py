"""Command-line arguments of object detection and instance segmentation."""

from dataclasses import dataclass, field

from .data import helped
from .dense import DenseArguments, DenseModelArguments, DenseTrainingArguments


BOX_FORMATS = ("coco", "pascal_voc", "yolo")


@dataclass
class DetectionModelArguments(DenseModelArguments):
    """The encoder, and the detector on it."""

    # Default: those of a detector from which a run starts, else A2MIMDetectorConfig's.
    fpn_channels: int | None = helped(
        None, "Channels of the feature pyramid, and of the head that predicts masks. Default 256."
    )
    box_channels: int | None = helped(None, "Width of the head that classifies boxes. Default 1024.")
    head_norm: bool | None = helped(
        None,
        "BatchNorm in pyramid and heads, and four convolutions before boxes are classified. Default: no.",
        nargs="?",
        const=True,
    )
    anchor_scale: float | None = helped(
        None, "Size of the anchors at each level, in its strides. Default 8: 32 px at stride 4."
    )
    proposals_per_image: int | None = helped(
        None, "Regions that are looked at closely; twice as many while training. Default 1000."
    )
    rois_per_image: int | None = helped(None, "How many of them the heads learn from, at most. Default 512.")
    detections_per_image: int | None = helped(None, "The most objects that are found in an image. Default 100.")
    batch_norm: str = helped(
        "train",
        "BatchNorm of the encoder and the heads: train; sync, over all devices; frozen, the encoder's as pre-trained.",
        choices=["train", "sync", "frozen"],
    )


@dataclass
class DetectionArguments(DenseArguments):
    """Where annotated images come from, and how they are augmented."""

    objects_column_name: str | None = helped(
        None, "Column of the objects (bbox, category, ...) of each image; found if not given."
    )
    bbox_format: str = helped(
        "coco",
        "How boxes are stored: coco (x y width height), pascal_voc (x0 y0 x1 y1), yolo (centre, shares of the image).",
        choices=list(BOX_FORMATS),
    )
    id2label: str | None = helped(
        None, "Names of the classes by what is stored for them, if the dataset has none: JSON, or a file of it."
    )
    shortest_edge: list[int] | None = helped(
        None,
        "Resize the shorter edge to this many pixels; from several, training draws, and evaluation takes the largest. "
        "Default: images are fitted into --image_size.",
        nargs="+",
    )
    longest_edge: int = helped(1333, "The most pixels that the longer edge may have, with --shortest_edge.")
    horizontal_flip: float = helped(0.5, "Share of training images that are mirrored left to right.")

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

    per_device_train_batch_size: int = field(default=4, metadata={"help": "Images per device and step."})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "Images per device for evaluation."})
    base_learning_rate: float | None = field(
        default=3.2e-3, metadata={"help": "Learning rate for a total batch of 256 images."}
    )
    metric_for_best_model: str | None = field(default="map", metadata={"help": "What the best checkpoint is best in."})
    # The norm after an encoder's last map gets no gradient.
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "As in torch's DistributedDataParallel."}
    )
