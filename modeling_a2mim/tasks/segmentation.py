"""Semantic segmentation: UperNet of transformers on a pre-trained encoder, from images with maps of classes."""

import logging

import torch
from PIL.Image import Image as PILImage
from torch import nn
from transformers import set_seed

from ..arguments.segmentation import (
    SegmentationArguments,
    SegmentationModelArguments,
    SegmentationTrainingArguments,
)
from ..data.splits import (
    NO_VALIDATION,
    find_evaluation_split,
    image_samples,
    load_evaluation_split,
    load_training_split,
)
from ..export.provenance import data_provenance
from ..training.best_model import check_best_model
from ..training.resuming import flags
from ..utils.plotting import to_picture
from .dense import DenseTask, DenseTrainer
from .encoder import encoder_provenance, open_model_of_task, task_of
from .segmentation_data import SegmentationTransform, collate_maps, find_columns, find_labels_file, read_maps
from .segmentation_maps import MeanIoU, confusion, predictions_picture, resized_prediction
from .segmentation_model import build_segmenter, image_processor, without_package


logger = logging.getLogger("a2mim")

SHOWN = 6  # images in predictions.png
TASK = DenseTask(
    pipeline_tag="image-segmentation",
    title="a semantic segmenter (UperNet)",
    metric="mean_iou",
    model_class="AutoModelForSemanticSegmentation",
    code="""\
inputs = processor(image, return_tensors="pt")  # a PIL image
outputs = model(**inputs)
size = (image.height, image.width)
classes = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]  # (height, width)""",
    limits=(
        "For telling which of its classes each pixel belongs to, in images like those it was trained on.",
        "It gives every pixel one of its classes, also pixels of none of them.",
        "The processor brings the whole image to one size and changes its aspect ratio where that is another; the "
        "figures above were measured so, at the annotations' own resolution.",
        "What its training images lack, or show too often, shows in it; nobody tested it for that. Do not let it "
        "decide about people.",
    ),
)


class SegmentationTrainer(DenseTrainer):
    """Evaluates maps of classes at their own resolution: what leaves each step are the counts of `confusion`.

    Args:
        names: of the classes.
        ignore_index: of pixels that do not count.
    """

    def __init__(self, *args, names: list[str], ignore_index: int, **kwargs):
        self.metric = MeanIoU(names, ignore_index)
        super().__init__(*args, task=TASK, data_collator=collate_maps, compute_metrics=self._add_up, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        maps = inputs.pop("maps")
        loss, logits, _ = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=["hidden_states"])
        if logits is None:
            return loss, None, None
        classes, ignored = len(self.metric.names), self.metric.ignore_index
        counts = [
            confusion(resized_prediction(one, truth.shape), truth.to(one.device), classes, ignored)
            for one, truth in zip(logits, maps, strict=True)
        ]
        counts = torch.stack(counts)
        return loss, counts, counts.new_zeros(len(counts))  # Trainer computes no metrics without labels

    def _add_up(self, prediction, compute_result: bool = True) -> dict[str, float]:
        self.metric.add_counts(torch.as_tensor(prediction.predictions))
        return self.metric.compute() if compute_result else {}

    def exported(self, model):
        twin = without_package(model)
        return model if twin is None else twin


def run(
    model_args: SegmentationModelArguments, data_args: SegmentationArguments, args: SegmentationTrainingArguments
) -> dict[str, float]:
    """Load, build, train, evaluate, save. Returns the metrics.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    if model_args.eval_only:
        return evaluate_segmenter(model_args, data_args, args)
    train, split = load_training_split(data_args, args.hub_token), find_evaluation_split(data_args)
    validation = load_evaluation_split(data_args, split, args.hub_token)
    image_column, column = find_columns(data_args, train)
    train, validation, labels = read_maps(data_args, train, validation, column, split, args.hub_token)
    names = labels.names
    if validation is not None:
        metrics = ["mean_iou", "mean_accuracy", "overall_accuracy", *(f"iou_{name}" for name in names)]
        check_best_model(args, {"loss": False, **dict.fromkeys(metrics, True)})
    set_seed(args.seed)
    model = build_segmenter(model_args, names, labels.ignored, args.hub_token)
    processor, channels = image_processor(model, data_args.do_reduce_labels), model.backbone.config.num_channels
    seed = args.seed if args.data_seed is None else args.data_seed
    augment = SegmentationTransform(processor, channels, labels, data_args)
    whole = SegmentationTransform(processor, channels, labels, data_args, train=False)
    train_samples = image_samples(data_args, train, augment, seed, column, image_column)
    eval_samples = None
    if validation is not None:
        eval_samples = image_samples(data_args, validation, whole, seed, column, image_column)
    train_samples.first(1)  # what is wrong with the maps is told now
    shown = [] if eval_samples is None else eval_samples.first(SHOWN)
    if validation is None:
        args.without_evaluation()
    logger.info(
        "UperNet on %s: %s parameters; %d classes; %s training images",
        model.backbone.config.architecture,
        f"{model.num_parameters():,}",
        len(names),
        f"{len(train):,}",
    )
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        train_dataset=train_samples,
        eval_dataset=eval_samples,
        processing_class=processor,
        names=names,
        ignore_index=labels.ignored,
        draw=Predictions(shown, names) if shown else None,
        shown=[eval_samples.name(row) for row in range(len(shown))],
        flags=flags(model_args, data_args),
        provenance={
            "task": task_of(model_args),
            "labels": f"by the values in the maps: {labels.describe()}",
            **data_provenance(data_args, split),
            **encoder_provenance(model_args, args.hub_token),
        },
    )
    metrics = trainer.run()
    if eval_samples is not None:
        logger.info("mean IoU %.4f on %d images", metrics["eval_mean_iou"], len(eval_samples))
    logger.info("segmenter is in %s", args.output_dir)
    return metrics


def evaluate_segmenter(
    model_args: SegmentationModelArguments, data_args: SegmentationArguments, args: SegmentationTrainingArguments
) -> dict[str, float]:
    """Evaluate the segmenter in `model_name_or_path`, its classes told apart by their names; where the images come
    without names, what is in their maps are the numbers of its classes. Returns the metrics.

    Raises:
        ValueError: naming the argument, if there is no segmenter, nothing to evaluate on, or an unknown class.
    """
    start, split = open_model_of_task(model_args, ["segmenter"], args.hub_token), find_evaluation_split(data_args)
    validation = load_evaluation_split(data_args, split, args.hub_token)
    if validation is None:
        raise ValueError(NO_VALIDATION)
    image_column, column = find_columns(data_args, validation)
    if find_labels_file(data_args, args.hub_token) is None:
        logger.warning("no names of classes (--labels_file): values in the maps are taken for those of the segmenter")
    _, validation, labels = read_maps(data_args, None, validation, column, split, args.hub_token, start.names)
    model = build_segmenter(model_args, start.names, labels.ignored, args.hub_token)
    processor, channels = image_processor(model, data_args.do_reduce_labels), model.backbone.config.num_channels
    transform = SegmentationTransform(processor, channels, labels, data_args, train=False)
    samples = image_samples(data_args, validation, transform, args.seed, column, image_column)
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        eval_dataset=samples,
        processing_class=processor,
        names=start.names,
        ignore_index=labels.ignored,
    )
    metrics = trainer.evaluate()
    if args.should_save:
        trainer.save_metrics("eval", metrics)
    logger.info("mean IoU %.4f on %d images", metrics["eval_mean_iou"], len(samples))
    return metrics


class Predictions:
    """Makes the picture of what a model predicts for these samples of the evaluation."""

    def __init__(self, samples: list[dict], names: list[str]):
        self.samples, self.names = samples, names

    def __call__(self, model: nn.Module) -> PILImage:
        core = next(module for module in model.modules() if hasattr(module, "a2mim"))
        mean, std = core.config.image_mean, core.config.image_std
        pixels = torch.stack([sample["pixel_values"] for sample in self.samples])
        device = next(model.parameters()).device
        predicted = model(pixel_values=pixels.to(device)).logits.float().argmax(1).cpu()
        images = [to_picture(image, mean, std) for image in pixels]
        return predictions_picture(images, [s["labels"] for s in self.samples], list(predicted), self.names)
