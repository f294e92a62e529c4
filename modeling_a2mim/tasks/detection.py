"""Object detection and instance segmentation: annotated images -> augmented samples -> training -> average precision.

`run` is what `run_finetune.py --task object-detection` and `--task instance-segmentation` call.
"""

import functools
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from datasets import ClassLabel
from timm.layers import convert_sync_batchnorm
from transformers import PreTrainedModel, set_seed

from ..arguments.data import helped
from ..configuration_a2mim import A2MIMConfig
from ..models.detection import A2MIMDetectorConfig, A2MIMForObjectDetection
from ..models.heads import kept_as_it_is, load_head, places_of, say_start
from ..pretrained import DETECTORS
from ..training.best_model import check_best_model
from ..training.resuming import flags
from .annotation_folders import annotated_splits, choose_split
from .dense import (
    DenseArguments,
    DenseModelArguments,
    DenseTask,
    DenseTrainer,
    DenseTrainingArguments,
    start_to_evaluate,
)
from .detection_annotations import BOX_FORMATS, FIGURES, Annotations, AveragePrecision, find_objects_column
from .detection_data import CLIPPED, DROPPED, TRUTH, DetectionTransform, Resize, draw_predictions, pad_batch
from .detection_scan import NoObjects, look_at_objects, stored_classes, with_sizes
from .segmentation_scan import is_far


logger = logging.getLogger("a2mim")

HEAD_FIELDS = [name for name in A2MIMDetectorConfig.__annotations__ if name not in A2MIMConfig.__annotations__]
HEAD_FIELDS.remove("predict_masks")
OF_WEIGHTS = ("fpn_channels", "box_channels", "head_norm", "anchor_scale")  # what weights were trained for
PICTURES = 4  # images in predictions.png

USE = """
import torch

inputs = processor(images=image, return_tensors="pt")
with torch.no_grad():
    outputs = model.eval()(**inputs)
found = model.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(image.height, image.width)])[0]
for score, label, box in zip(found["scores"], found["labels"], found["boxes"]):
    print(model.config.id2label[label.item()], round(score.item(), 3), box.tolist())
""".strip()
MASKS = '\nprint(found["masks"].shape)  # (objects, height, width), True where each object is'
LIMITS = (
    "It finds things of the classes above, at the sizes that its training images show them; elsewhere test it first.",
    "Scores are not calibrated: choose a threshold on images of your own.",
)
DETECTOR = DenseTask("object-detection", "an object detector", "map", "A2MIMForObjectDetection", USE, LIMITS, True)
SEGMENTER = DenseTask(
    "object-detection", "an instance segmenter", "mask_map", "A2MIMForObjectDetection", USE + MASKS, LIMITS, True
)


class DetectionTrainer(DenseTrainer):
    """Trains an `A2MIMForObjectDetection`, logs the terms of its loss, and measures average precision; arguments as
    `DenseTrainer`'s. The loss of an evaluation is not known: torchvision's heads give losses or detections."""

    _judge: AveragePrecision

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._sums = Counter()  # since the last log: terms of the loss, dropped boxes, batches

    def training_step(self, model, inputs, num_items_in_batch=None):
        for name in (DROPPED, CLIPPED):
            self._sums[name] += inputs.pop(name)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for name, value in outputs["losses"].items():
            self._sums[name] += value.detach()
        self._sums["batches"] += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, start_time=None):
        if "loss" in logs and self._sums:
            sums, self._sums = self._sums, Counter()
            batches, boxes = sums.pop("batches"), [sums.pop(DROPPED), sums.pop(CLIPPED)]
            known = torch.stack([torch.as_tensor(value, device=self.accelerator.device) for value in sums.values()])
            means = self.accelerator.gather(known[None]).mean(0) / batches
            logs |= dict(zip(sums, means.tolist(), strict=True))
            boxes = self.accelerator.gather(torch.tensor([boxes], device=self.accelerator.device)).sum(0)
            logs |= dict(zip((DROPPED, CLIPPED), boxes.tolist(), strict=True))
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        names = [self.unwrapped().config.id2label[i] for i in range(self.unwrapped().num_labels)]
        self._judge = AveragePrecision(names, self.unwrapped().config.predict_masks)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        reasons = sum((image["objects"].reasons for image in self._judge.images), Counter())
        clipped = sum(image["objects"].clipped for image in self._judge.images)
        if (reasons or clipped) and self.args.should_log:
            words = [f"{count:,} objects left out, {reason}" for reason, count in reasons.items()]
            words += [f"{clipped:,} boxes cut off at the edge of their image"] * (clipped > 0)
            logger.warning("evaluated with %s", "; ".join(words))
        # Each process is asked which checkpoint is best, one computes it.
        found = broadcast_object_list([self._judge.compute() if self.is_world_process_zero() else None])[0]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        truth = inputs[TRUTH]
        inputs = self.on_device({name: inputs[name] for name in ("pixel_values", "pixel_mask")})
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        found = self.unwrapped().post_process_object_detection(outputs, 0.0, [image["size"] for image in truth])
        judged = [
            self._judge.judged(image["objects"], image["size"], f) for image, f in zip(truth, found, strict=True)
        ]
        # Images that fill up the last batch of several processes are counted once.
        self._judge.add(self.accelerator.gather_for_metrics(judged, use_gather_object=True))
        return None, None, None


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

    def build(self, names: list[str], masks: bool, token: str | None = None) -> A2MIMForObjectDetection:
        """A detector for classes of these names, with the encoder's pre-trained weights if it has any, or with those
        of a whole detector, if that is what `model_name_or_path` names.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        start = self.start(token)
        whole = start is not None and start.kind in DETECTORS
        backbone = self.backbone(start, whole)
        own = {f.name for f in fields(DetectionModelArguments)} & set(A2MIMDetectorConfig.__annotations__)
        own = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        if whole:
            known = {name: start.data[name] for name in A2MIMDetectorConfig.__annotations__ if name in start.data}
            for name in (name for name in OF_WEIGHTS if own.get(name, known.get(name)) != known.get(name)):
                raise kept_as_it_is(name, start, known.get(name), own[name])
            own = {**{name: known[name] for name in HEAD_FIELDS if name in known}, **own}
        kept = {name: getattr(backbone.config, name) for name in A2MIMConfig.__annotations__ if name != "model_type"}
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        config = A2MIMDetectorConfig(**{**kept, **own, **labels}, predict_masks=masks)
        if whole or self.out_indices is not None or backbone.pyramid is not None:
            config.out_indices, config.feature_pyramid = backbone.config.out_indices, backbone.pyramid is not None
        model = A2MIMForObjectDetection(config)
        model.backbone.load_state_dict(backbone.state_dict())
        note = ""
        if whole:
            by_class = [f"box_predictor.{layer}" for layer in ("cls_score", "bbox_pred")]
            by_class.append("mask_predictor.mask_fcn_logits")
            with_masks = start.kind == "instance segmenter"
            load_head(model.heads.rpn, start, "heads.rpn.")
            load_head(model.heads.pyramid, start, "heads.pyramid.")
            for name, part in model.heads.roi_heads.named_children():
                if with_masks or not name.startswith("mask_"):
                    inside = [layer.removeprefix(f"{name}.") for layer in by_class if layer.startswith(f"{name}.")]
                    load_head(part, start, f"heads.roi_heads.{name}.", inside, names, first=1)
            if masks != with_masks:
                note = "; the head that predicts masks is new" if masks else "; it predicts masks, which are left out"
        say_start(start, whole, names, note)
        if self.freeze_encoder:
            model.backbone.freeze_encoder()
        if self.batch_norm == "frozen":
            model.freeze_batch_norm()
        return convert_sync_batchnorm(model) if self.batch_norm == "sync" else model


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

    def load(self, train: bool, token: str | None = None):
        """As `DataArguments.load`; folders in COCO's or YOLO's form are read as well."""
        source = self.validation_dir if not train and self.validation_dir else self.sources[0]
        folder = None if source is None else Path(source).expanduser()
        splits = annotated_splits(folder) if folder is not None and folder.is_dir() else None
        if splits is None:
            return super().load(train, token)
        if self.bbox_format == "pascal_voc":
            raise ValueError(f"bbox_format: {folder} is in COCO's or YOLO's form, which tells how boxes are stored")
        self.bbox_format = "coco"  # which they are made
        given = self.train_split if train else self.validation_split
        whole = not train and self.validation_dir is not None
        only = next(iter(splits)) if len(splits) == 1 and (whole or self.train_dir) else None
        name = only if only is not None else choose_split(splits, given, train, folder)
        if name is None:
            return None
        if not train and not whole and self.validation_split is None:
            self.validation_split = name
        dataset = splits[name]()
        if self.id2label is not None and isinstance(dataset.features["objects"]["category"].feature, ClassLabel):
            raise ValueError(f"id2label: the annotations in {folder} name their classes; leave it out")
        count = self.max_train_samples if train else self.max_eval_samples
        logger.info("%s, %s: %s annotated images", folder, name or "all of it", f"{len(dataset):,}")
        return dataset if count is None else dataset.take(min(count, len(dataset)))

    def samples(self, dataset, transform, seed, label_column=None):
        return super().samples(with_sizes(self.source(dataset)), transform, seed, label_column)

    def annotations(
        self, dataset, masks: bool, like: Annotations | None = None, others: Sequence = (), what: str = "training data"
    ) -> tuple[str, Annotations]:
        """The column of the objects of a dataset from `load`, and how to read it. All of them are looked at, where
        that does not take the network, and what cannot be used is counted in the log.

        Args:
            dataset: to read.
            masks: whether its segmentations are needed.
            like: those of the training data, whose classes are taken; the dataset's own are told apart by names.
            others: further datasets, whose classes are taken as well where no names are known.
            what: to call the dataset in messages.

        Raises:
            NoObjects: if there is none that can be used.
            ValueError: naming the argument, if there is no column of objects, or no names of classes.
        """
        column, names = find_objects_column(dataset.features, self.objects_column_name), self._names()
        feature, source = dataset.features.get(column), self.source(dataset)
        make = functools.partial(Annotations, feature, column, box_format=self.bbox_format, masks=masks)
        try:
            annotations = make(names)
        except ValueError as error:
            if not str(error).startswith("id2label") or (is_far(source) and not like):
                raise
            known = like.id2label if like else stored_classes([source, *map(self.source, others)], column)
            if not known:
                raise NoObjects(f"objects_column_name: {column!r} of the {what} holds no objects at all") from error
            annotations = make(known)
        if like is not None and annotations.names != like.names:
            places = {name: place for place, name in enumerate(like.names)}
            annotations.renumber(like.names, [places.get(name) for name in annotations.names])
        look_at_objects(source, annotations, what)
        return column, annotations

    def _names(self) -> dict[str, str] | None:
        if self.id2label is None:
            return None
        inline = self.id2label.lstrip().startswith("{")
        if not inline and not Path(self.id2label).is_file():
            raise ValueError(f"id2label: expected a JSON object or a file of one, there is no file {self.id2label}")
        try:
            names = json.loads(self.id2label if inline else Path(self.id2label).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"id2label: expected a JSON object: {error}") from error
        if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
            raise ValueError(f"id2label: expected a JSON object of names by number, got {str(names)[:80]}")
        return names


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


def run(
    model_args: DetectionModelArguments, data_args: DetectionArguments, args: DetectionTrainingArguments, masks: bool
) -> dict[str, float]:
    """Build, train, evaluate, save. Returns the metrics.

    Args:
        model_args, data_args, args: as parsed.
        masks: instance segmentation (Mask R-CNN) instead of detection (Faster R-CNN).

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    if model_args.eval_only:
        return evaluate_detector(model_args, data_args, args, masks)
    train, validation = (data_args.load(train=which, token=args.hub_token) for which in (True, False))
    others = [] if validation is None else [validation]
    column, annotations = data_args.annotations(train, masks, others=others)
    try:
        if validation is not None:
            known = {"like": annotations, "what": "evaluation data"}
            eval_column, eval_annotations = data_args.annotations(validation, masks, **known)
    except NoObjects as error:
        if data_args.names_evaluation:
            raise
        logger.warning("there is no evaluation, of %s; %s", data_args.validation_split, error)
        validation = None
    if validation is not None:
        metrics = [*FIGURES, *(f"map_class_{name}" for name in annotations.names)]
        metrics += [f"mask_{name}" for name in metrics] if masks else []
        check_best_model(args, dict.fromkeys(metrics, True))
    seed = args.seed if args.data_seed is None else args.data_seed
    set_seed(args.seed)
    model = model_args.build(annotations.names, masks, token=args.hub_token)
    sizes = Resize(model.config.input_size, data_args.shortest_edge, data_args.longest_edge)
    if sizes.canvas is None:
        check_other_sizes(model)
    make = functools.partial(DetectionTransform, model.config, resize=sizes, max_pixels=data_args.max_image_pixels)
    train_samples = data_args.samples(
        train, make(annotations, flip=data_args.horizontal_flip), seed, label_column=column
    )
    eval_samples, draw, names = None, None, []
    if validation is None:
        args.without_evaluation()
    else:
        eval_samples = data_args.samples(validation, make(eval_annotations, train=False), seed, eval_column)
        shown = eval_samples.first(PICTURES)
        draw = functools.partial(draw_predictions, samples=shown, canvas=sizes.canvas)
        names = [eval_samples.name(row) for row in range(len(shown))]
    logger.info(
        "%s: %s trainable parameters; %d classes; %s training images",
        model.config.architecture,
        f"{model.num_parameters(only_trainable=True):,}",
        len(annotations.names),
        f"{len(train):,}",
    )
    trainer = DetectionTrainer(
        model=model,
        args=args,
        train_dataset=train_samples,
        eval_dataset=eval_samples,
        data_collator=functools.partial(pad_batch, canvas=sizes.canvas),
        task=SEGMENTER if masks else DETECTOR,
        processing_class=sizes.processor(model.config),
        draw=draw,
        shown=names,
        provenance={
            "task": model_args.task,
            **data_args.provenance(),
            **model_args.origin(args.hub_token),
            **({"tags": ["instance-segmentation"]} if masks else {}),
        },
        flags=flags(model_args, data_args),
    )
    metrics = trainer.run()
    if eval_samples is not None:
        _say_precision(metrics, len(eval_samples))
    logger.info("detector is in %s", args.output_dir)
    return metrics


def evaluate_detector(
    model_args: DetectionModelArguments, data_args: DetectionArguments, args: DetectionTrainingArguments, masks: bool
) -> dict[str, float]:
    """Evaluate the detector in `model_name_or_path`, its classes told apart by their names. Returns the metrics.

    Raises:
        ValueError: naming the argument, if there is no detector (with `masks`: one that predicts them), nothing to
            evaluate on, or an unknown class.
    """
    start, validation = start_to_evaluate(model_args, data_args, DETECTORS[masks:], args.hub_token)
    column, annotations = data_args.annotations(validation, masks, what="evaluation data")
    annotations.renumber(start.names, places_of(annotations.names, start))
    model = model_args.build(start.names, masks, token=args.hub_token)
    sizes = Resize(model.config.input_size, data_args.shortest_edge, data_args.longest_edge)
    if sizes.canvas is None:
        check_other_sizes(model)
    transform = DetectionTransform(
        model.config, annotations, resize=sizes, train=False, max_pixels=data_args.max_image_pixels
    )
    samples = data_args.samples(validation, transform, args.seed, column)
    trainer = DetectionTrainer(
        model=model,
        args=args,
        eval_dataset=samples,
        data_collator=functools.partial(pad_batch, canvas=sizes.canvas),
        task=SEGMENTER if masks else DETECTOR,
        processing_class=sizes.processor(model.config),
    )
    metrics = trainer.evaluate()
    if args.should_save:
        trainer.save_metrics("eval", metrics)
    _say_precision(metrics, len(samples))
    return metrics


def _say_precision(metrics: dict[str, float], images: int):
    kinds = (("box", "eval_map"), ("mask", "eval_mask_map"))
    found = [f"{kind} AP {metrics[name]:.4f}" for kind, name in kinds if name in metrics]
    logger.info("%s on %d images", ", ".join(found), images)


def check_other_sizes(model: PreTrainedModel):
    """Raises ValueError, naming `shortest_edge`, if the encoder takes images of no other size than its own."""
    config, divisor = model.config, int(max(model.strides))
    size = [side + (-side % divisor) + divisor * step for step, side in enumerate(config.input_size, 1)]
    training = model.training
    try:
        with torch.no_grad():
            model.eval().backbone(torch.zeros(1, config.num_channels, *size, device=model.device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"shortest_edge: {config.architecture} takes only images of {config.input_size} px, which --image_size "
            f"changes ({error}); timm has options for some: --model_args '{{\"dynamic_img_size\": true}}' (ViT), "
            "'{\"strict_img_size\": false}' (Swin)"
        ) from error
    finally:
        model.train(training)


__all__ = ["DetectionArguments", "DetectionModelArguments", "DetectionTrainer", "DetectionTrainingArguments", "run"]
