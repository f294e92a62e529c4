"""Object detection and instance segmentation, from images with annotated objects to average precision."""

import functools
import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from ...arguments.detection import DetectionArguments, DetectionModelArguments, DetectionTrainingArguments
from ...arguments.training import data_seed
from ...data.splits import NO_VALIDATION
from ...export.provenance import data_provenance
from ...models.detection import A2MIMForObjectDetection
from ...models.heads import places_of
from ...pretrained import DETECTORS
from ...training.best_model import with_best_model, without_evaluation
from ...training.resuming import flags
from ...utils.labels import label_names
from ..dense import DenseTask, DenseTrainer
from ..start import encoder_provenance, open_model_of_task, task_of
from ..stored_images import check_evaluated
from .annotations import FIGURES, AveragePrecision
from .data import CLIPPED, DROPPED, TRUTH, DetectionTransform, Resize, draw_predictions, pad_batch
from .images import AnnotatedImages, annotated_samples, load_annotated, load_annotated_split, read_annotations
from .model import build_detector, check_other_sizes


logger = logging.getLogger("a2mim")

SHOWN = 4  # images in predictions.png

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

    _precision: AveragePrecision

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

    def before_evaluation(self):
        names = label_names(self.unwrapped().config)
        self._precision = AveragePrecision(names, self.unwrapped().config.predict_masks)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        reasons = sum((image["objects"].reasons for image in self._precision.images), Counter())
        clipped = sum(image["objects"].clipped for image in self._precision.images)
        if (reasons or clipped) and self.args.should_log:
            words = [f"{count:,} objects left out, {reason}" for reason, count in reasons.items()]
            words += [f"{clipped:,} boxes cut off at the edge of their image"] * (clipped > 0)
            logger.warning("evaluated with %s", "; ".join(words))
        # Each process is asked which checkpoint is best, one computes it.
        found = broadcast_object_list([self._precision.compute() if self.is_world_process_zero() else None])[0]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        truth = inputs[TRUTH]
        inputs = self.on_device({name: inputs[name] for name in ("pixel_values", "pixel_mask")})
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        found = self.unwrapped().post_process_object_detection(outputs, 0.0, [image["size"] for image in truth])
        known = [
            self._precision.evaluated(image["objects"], image["size"], f)
            for image, f in zip(truth, found, strict=True)
        ]
        # Images that fill up the last batch of several processes are counted once.
        self._precision.add(self.accelerator.gather_for_metrics(known, use_gather_object=True))
        return None, None, None


def load(
    model_args: DetectionModelArguments, data_args: DetectionArguments, args: DetectionTrainingArguments, masks: bool
) -> AnnotatedImages:
    """The images with objects.

    Args:
        model_args, data_args, args: as they were parsed.
        masks: instance segmentation (Mask R-CNN) instead of detection (Faster R-CNN).

    Raises:
        ValueError: naming the argument that does not fit the images.
    """
    return load_annotated(data_args, masks, args.hub_token)


def adapt(args: DetectionTrainingArguments, images: AnnotatedImages) -> DetectionTrainingArguments:
    """The training arguments for these images. Raises as `with_best_model` and `without_evaluation`."""
    if images.validation is None:
        return without_evaluation(args)
    metrics = [*FIGURES, *(f"map_class_{name}" for name in images.annotations.names)]
    metrics += [f"mask_{name}" for name in metrics] if images.annotations.masks else []
    return with_best_model(args, dict.fromkeys(metrics, True))


def build(
    model_args: DetectionModelArguments, images: AnnotatedImages, token: str | None = None
) -> A2MIMForObjectDetection:
    """A detector of the classes of the images, and of masks if those are annotated. Raises as `build_detector`."""
    return build_detector(model_args, images.annotations.names, images.annotations.masks, token)


def make_trainer(
    model: A2MIMForObjectDetection,
    images: AnnotatedImages,
    model_args: DetectionModelArguments,
    data_args: DetectionArguments,
    args: DetectionTrainingArguments,
) -> DetectionTrainer:
    """A trainer that is ready to `run()`.

    Raises:
        ValueError: naming `shortest_edge`, if the encoder takes images of one size only.
    """
    masks, seed, sizes = images.annotations.masks, data_seed(args), resize_for(model, data_args)
    make = functools.partial(DetectionTransform, model.config, resize=sizes, max_pixels=data_args.max_image_pixels)
    augment = make(images.annotations, flip=data_args.horizontal_flip)
    train_samples = annotated_samples(data_args, images.train, augment, seed, images.column)
    eval_samples, draw, names = None, None, []
    if images.validation is not None:
        whole = make(images.eval_annotations, train=False)
        eval_samples = annotated_samples(data_args, images.validation, whole, seed, images.eval_column)
        shown = eval_samples.first(SHOWN)
        draw = functools.partial(draw_predictions, samples=shown, canvas=sizes.canvas)
        names = [eval_samples.name(row) for row in range(len(shown))]
    logger.info(
        "%s: %s trainable parameters; %d classes; %s training images",
        model.config.architecture,
        f"{model.num_parameters(only_trainable=True):,}",
        len(images.annotations.names),
        f"{len(images.train.images):,}",
    )
    return DetectionTrainer(
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
            "task": task_of(model_args),
            **data_provenance(data_args, images.split, images.seen),
            **encoder_provenance(model_args, args.hub_token, model),
            **({"tags": ["instance-segmentation"]} if masks else {}),
        },
        flags=flags(model_args, replace(data_args, bbox_format=images.train.box_format)),
    )


def resize_for(model: A2MIMForObjectDetection, data_args: DetectionArguments) -> Resize:
    """The size of the images. Raises as `check_other_sizes`."""
    sizes = Resize(model.config.input_size, data_args.shortest_edge, data_args.longest_edge)
    if sizes.canvas is None:
        check_other_sizes(model)
    return sizes


def log_result(trainer: DetectionTrainer, metrics: dict[str, float]):
    """Log the average precision, if there was an evaluation, and where the detector is, if one was trained."""
    if trainer.eval_dataset is not None:
        kinds = (("box", "eval_map"), ("mask", "eval_mask_map"))
        found = [f"{kind} AP {metrics[name]:.4f}" for kind, name in kinds if name in metrics]
        logger.info("%s on %d images", ", ".join(found), len(trainer.eval_dataset))
    if trainer.train_dataset is not None:
        logger.info("detector is in %s", trainer.args.output_dir)


def evaluate(
    model_args: DetectionModelArguments, data_args: DetectionArguments, args: DetectionTrainingArguments, masks: bool
) -> dict[str, float]:
    """Evaluate the detector in `model_name_or_path`, its classes told apart by their names. Returns the metrics.

    Raises:
        ValueError: naming the argument, if there is no detector (with `masks`: one that predicts them), nothing to
            evaluate on, or an unknown class.
    """
    start = open_model_of_task(model_args, DETECTORS[masks:], args.hub_token)
    validation = load_annotated_split(data_args, False, args.hub_token)
    if validation is None:
        raise ValueError(NO_VALIDATION)
    column, annotations = read_annotations(data_args, validation, masks, what="evaluation data")
    annotations.renumber(start.names, places_of(annotations.names, start))
    model = build_detector(model_args, start.names, masks, args.hub_token)
    sizes = resize_for(model, data_args)
    options: dict[str, Any] = {"resize": sizes, "train": False, "max_pixels": data_args.max_image_pixels}
    transform = DetectionTransform(model.config, annotations, **options)
    trainer = DetectionTrainer(
        model=model,
        args=args,
        eval_dataset=check_evaluated(annotated_samples(data_args, validation, transform, args.seed, column)),
        data_collator=functools.partial(pad_batch, canvas=sizes.canvas),
        task=SEGMENTER if masks else DETECTOR,
        processing_class=sizes.processor(model.config),
    )
    metrics = trainer.evaluate()
    if args.should_save:
        trainer.save_metrics("eval", metrics)
    log_result(trainer, metrics)
    return metrics
