"""Semantic segmentation: UperNet of transformers on a pre-trained encoder, from images with maps of classes."""

import logging
from typing import Any

import torch
from PIL.Image import Image as PILImage
from torch import nn
from transformers import UperNetForSemanticSegmentation

from ...arguments.segmentation import SegmentationArguments, SegmentationModelArguments, SegmentationTrainingArguments
from ...arguments.training import data_seed
from ...data.pixel_spec import PixelSpec
from ...data.splits import image_samples
from ...export.provenance import data_provenance
from ...training.best_model import with_best_model, without_evaluation
from ...training.resuming import flags
from ...utils.plotting import to_pil_image
from ..dense import DenseTask, DenseTrainer
from ..start import encoder_provenance, open_model_of_task, task_of
from ..stored_images import check_evaluated
from .data import Labelled, SegmentationTransform, collate_maps, load_labelled, load_to_evaluate, transform_options
from .maps import MeanIoU, confusion, plot_predictions, resized_prediction
from .model import build_segmenter, image_processor, without_package


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

    def model_to_export(self):
        model = super().model_to_export()
        twin = without_package(model)
        return model if twin is None else twin


def load(
    model_args: SegmentationModelArguments, data_args: SegmentationArguments, args: SegmentationTrainingArguments
) -> Labelled:
    """The images with maps of classes. Raises as `load_labelled`."""
    return load_labelled(data_args, args.hub_token)


def adapt(args: SegmentationTrainingArguments, images: Labelled) -> SegmentationTrainingArguments:
    """The training arguments for these images. Raises as `with_best_model` and `without_evaluation`."""
    if images.validation is None:
        return without_evaluation(args)
    metrics = ["mean_iou", "mean_accuracy", "overall_accuracy", *(f"iou_{name}" for name in images.labels.names)]
    better = {"loss": False, **dict.fromkeys(metrics, True)}
    return with_best_model(args, better)


def build(
    model_args: SegmentationModelArguments, images: Labelled, token: str | None = None
) -> UperNetForSemanticSegmentation:
    """UperNet for the classes of the images. Raises as `build_segmenter`."""
    return build_segmenter(model_args, images.labels.names, images.labels.ignored, token)


def make_trainer(
    model: UperNetForSemanticSegmentation,
    images: Labelled,
    model_args: SegmentationModelArguments,
    data_args: SegmentationArguments,
    args: SegmentationTrainingArguments,
) -> SegmentationTrainer:
    """A trainer that is ready to `run()`.

    Raises:
        ValueError: naming the argument, if the first image or its map is not what it should be.
    """
    labels, seed = images.labels, data_seed(args)
    processor = image_processor(model, data_args.do_reduce_labels)
    spec = PixelSpec.from_config(model.backbone.config, data_args.max_image_pixels)
    columns: dict[str, Any] = {"label_column": images.label_column, "image_column": images.image_column}
    options = transform_options(data_args)
    augment = SegmentationTransform(processor, spec, labels, **options)
    train_samples = image_samples(data_args, images.train, augment, seed, **columns)
    eval_samples, shown = None, []
    if images.validation is not None:
        whole = SegmentationTransform(processor, spec, labels, train=False, **options)
        eval_samples = image_samples(data_args, images.validation, whole, seed, **columns)
    train_samples.first(1)  # what is wrong with the maps is told now
    if eval_samples is not None:
        shown = eval_samples.first(SHOWN)
    logger.info(
        "UperNet on %s: %s parameters; %d classes; %s training images",
        model.backbone.config.architecture,
        f"{model.num_parameters():,}",
        len(labels.names),
        f"{len(images.train):,}",
    )
    return SegmentationTrainer(
        model=model,
        args=args,
        train_dataset=train_samples,
        eval_dataset=eval_samples,
        processing_class=processor,
        names=labels.names,
        ignore_index=labels.ignored,
        draw=Predictions(shown, labels.names) if shown else None,
        shown=[eval_samples.name(row) for row in range(len(shown))],
        flags=flags(model_args, data_args),
        provenance={
            "task": task_of(model_args),
            "labels": f"by the values in the maps: {labels.describe()}",
            **data_provenance(data_args, images.split, images.seen),
            **encoder_provenance(model_args, args.hub_token, model),
        },
    )


def log_result(trainer: SegmentationTrainer, metrics: dict[str, float]):
    """Log the mean IoU, if there was an evaluation, and where the segmenter is, if one was trained."""
    if trainer.eval_dataset is not None:
        logger.info("mean IoU %.4f on %d images", metrics["eval_mean_iou"], len(trainer.eval_dataset))
    if trainer.train_dataset is not None:
        logger.info("segmenter is in %s", trainer.args.output_dir)


def evaluate(
    model_args: SegmentationModelArguments, data_args: SegmentationArguments, args: SegmentationTrainingArguments
) -> dict[str, float]:
    """Evaluate the segmenter in `model_name_or_path`, its classes told apart by their names. Returns the metrics.

    Raises:
        ValueError: naming the argument, if there is no segmenter, nothing to evaluate on, or an unknown class.
    """
    start = open_model_of_task(model_args, ["segmenter"], args.hub_token)
    images = load_to_evaluate(data_args, start.names, args.hub_token)
    labels = images.labels
    model = build_segmenter(model_args, start.names, labels.ignored, args.hub_token)
    processor = image_processor(model, data_args.do_reduce_labels)
    spec = PixelSpec.from_config(model.backbone.config, data_args.max_image_pixels)
    transform = SegmentationTransform(processor, spec, labels, train=False, **transform_options(data_args))
    columns: dict[str, Any] = {"label_column": images.label_column, "image_column": images.image_column}
    trainer = SegmentationTrainer(
        model=model,
        args=args,
        eval_dataset=check_evaluated(image_samples(data_args, images.validation, transform, args.seed, **columns)),
        processing_class=processor,
        names=start.names,
        ignore_index=labels.ignored,
    )
    metrics = trainer.evaluate()
    if args.should_save:
        trainer.save_metrics("eval", metrics)
    log_result(trainer, metrics)
    return metrics


class Predictions:
    """Plots the predictions of a model for these samples of the evaluation."""

    def __init__(self, samples: list[dict], names: list[str]):
        self.samples, self.names = samples, names

    def __call__(self, model: nn.Module) -> PILImage:
        """The figure for this model, which is in evaluation mode."""
        core: Any = next(module for module in model.modules() if hasattr(module, "a2mim"))
        config = core.config
        pixels = torch.stack([sample["pixel_values"] for sample in self.samples])
        device = next(model.parameters()).device
        predicted = model(pixel_values=pixels.to(device)).logits.float().argmax(1).cpu()
        looks = config.image_mean, config.image_std, config.display_channels
        images = [to_pil_image(image, *looks, None if config.value_range is None else image) for image in pixels]
        return plot_predictions(images, [s["labels"] for s in self.samples], list(predicted), self.names)
