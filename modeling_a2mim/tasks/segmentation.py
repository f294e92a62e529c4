"""Semantic segmentation: UperNet of transformers on a pre-trained encoder, from images with maps of classes.

Training: the image is scaled by a random factor (1: it just covers the crop), cropped, padded where it is smaller, and
flipped. Evaluation: the whole image is brought to the crop's size, whatever its aspect ratio, as the exported image
processor does; the prediction is brought back to the size of the annotation and compared there.
"""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Image
from PIL.Image import Image as PILImage
from torch import nn
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import (
    SegformerImageProcessor,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)

from ..arguments.data import helped
from ..data.columns import choose_images, find_column
from ..data.decoding import BrokenImage, open_image, orientation, to_pixels, turned, upright
from ..data.sources import RowSource
from ..export.record import hub_id
from ..models.heads import kept_as_it_is, load_head, say_start
from ..pretrained import backbone_names, find_file
from ..training.best_model import check_best_model
from ..training.resuming import flags
from ..utils.plotting import to_picture
from .dense import (
    DenseArguments,
    DenseModelArguments,
    DenseTask,
    DenseTrainer,
    DenseTrainingArguments,
    start_to_evaluate,
)
from .segmentation_labels import AUTO, LabelValues, ignored_value, read_labels
from .segmentation_maps import MeanIoU, confusion, predictions_picture, resized_prediction
from .segmentation_scan import EVALUATION, TRAINING, label_maps


logger = logging.getLogger("a2mim")

ANNOTATIONS = ("annotation", "annotations", "label", "labels", "mask", "masks", "segmentation_mask", "semantic")
UPERNET = {"hidden_size": 512, "auxiliary_channels": 256, "auxiliary_loss_weight": 0.4}
LABELS_FILE = "id2label.json"
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


@dataclass
class SegmentationModelArguments(DenseModelArguments):
    """The encoder, and UperNet's head on it."""

    # Default: those of a segmenter from which a run starts, else UPERNET's.
    head_channels: int | None = helped(None, "Channels of UperNet's head. Default 512.")
    auxiliary_channels: int | None = helped(
        None, "Channels of the auxiliary head, which is there for training. Default 256."
    )
    auxiliary_weight: float | None = helped(None, "Weight of the auxiliary head's loss; 0: no such head. Default 0.4.")
    sync_batch_norm: bool = helped(False, "Statistics of BatchNorm over all processes, on GPUs.")


@dataclass
class SegmentationArguments(DenseArguments):
    """Where images with maps of classes come from, and how they are augmented."""

    label_column_name: str | None = helped(None, "Column of the maps of classes (images); found if not given.")
    labels_file: str | None = helped(
        None,
        'JSON of class names by the values of their pixels, {"0": "wall", ...}, by their colours, {"#ff0000": "wall", '
        f"...}}, or a list for 0, 1, ...; default: {LABELS_FILE} beside the data, if any.",
    )
    do_reduce_labels: bool = helped(False, "0 in the maps is no class, and 1 the first one, called 0 (ADE20K).")
    ignore_index: str = helped(
        AUTO,
        "Value in the maps (or #rrggbb) of pixels that are neither trained nor evaluated on; none for no value. "
        f"{AUTO}: 255, unless --labels_file names that.",
    )
    resize_scale: list[float] = field(
        default_factory=lambda: [0.5, 2.0],
        metadata={"help": "Random factor of training images, 1: just covers the crop; lowest, highest.", "nargs": 2},
    )
    horizontal_flip: bool = helped(True, "Flip half of the training images.")
    photometric_distortion: bool = helped(False, "Random brightness, contrast, saturation and hue (RGB only).")

    def __post_init__(self):
        super().__post_init__()
        low, high = self.resize_scale
        if not 0 < low <= high:
            raise ValueError(f"resize_scale: expected 0 < lowest <= highest, got {low} {high}")
        ignored_value(self.ignore_index, (), str(self.ignore_index).startswith("#"))  # whether it is one

    def columns(self, dataset) -> tuple[str, str]:
        """The columns of the images and of their maps of classes.

        Raises:
            ValueError: if there are none.
        """
        kinds = {name: isinstance(kind, Image) for name, kind in dataset.features.items()}
        label = self.label_column_name
        if label is None:
            label = next((name for name in ANNOTATIONS if kinds.get(name)), None)
            if label is None:
                raise ValueError(
                    "label_column_name: the dataset has no column of maps (images) by a usual name; its columns are "
                    f"{', '.join(kinds)}"
                )
        label = find_column(dataset, Image, label, "label_column_name")
        if not kinds[label]:
            raise ValueError(f"label_column_name: column {label!r} holds {dataset.features[label]}, no images")
        image = self.image_column_name
        if image is None:
            others = [name for name, is_image in kinds.items() if is_image and name != label]
            image = choose_images(others) if others else None
            if others and image is None:
                raise ValueError(
                    f"image_column_name: the dataset has several columns of images beside {label!r} "
                    f"({', '.join(others)}); choose one with --image_column_name"
                )
        if image is None or image == label:
            raise ValueError(f"image_column_name: no column of images beside {label!r}; there are {', '.join(kinds)}")
        return find_column(dataset, Image, image, "image_column_name"), label

    def labels(
        self, train, validation, column: str, token: str | None = None, names: list[str] | None = None
    ) -> "Labelled":
        """Look through all maps of both splits, as far as they are on this machine: the classes, and the images that
        have labels.

        Args:
            train, validation: from `load`; one of them may be `None`.
            column: of the maps.
            names: the classes of a segmenter that is there already: those of the maps are told apart by names, and
                without a file of names, values are their numbers.

        Raises:
            ValueError: naming the argument or the file, if there are not two classes, values of no class, or no image
                with a label.
        """
        named, colours = None, False
        if (file := self._find_labels_file(token)) is not None:
            named, colours = read_labels(file)
            if len(named) < 2:
                raise ValueError(f"labels_file: fewer than two classes: {', '.join(named.values())}")
            if colours and self.do_reduce_labels:
                raise ValueError("do_reduce_labels: is for maps of numbers, and --labels_file names colours")
        elif names is not None:
            own = [name.removeprefix("class ") for name in names]  # of values, if nobody has named them
            values = list(map(int, own)) if all(map(str.isdecimal, own)) else range(len(names))
            named = dict(zip(values, names, strict=True))
        options = {"reduce_labels": self.do_reduce_labels, "colours": colours}
        taken = LabelValues(list((named or {}).values()), list(named or ()), None, **options)
        ignored = ignored_value(self.ignore_index, taken.stored, colours)
        if ignored in taken.stored:
            raise ValueError(f"ignore_index: {self.ignore_index} is the class {taken.names[taken.stored[ignored]]!r}")
        sources = {TRAINING: train, EVALUATION: validation}
        sources = {what: self.source(split) for what, split in sources.items() if split is not None}
        reading = {"max_pixels": self.max_image_pixels, "most_broken": self.max_skipped_ratio}
        sources, labels = label_maps(sources, column, named, **options, ignore_value=ignored, **reading)
        if sources.get(TRAINING) is None and train is not None:
            raise ValueError(f"label_column_name: no training image has a map in {column!r} with a class")
        validation = sources.get(EVALUATION)
        if validation is None and EVALUATION in sources:
            if self.names_evaluation:
                raise ValueError(f"validation_split: no image for evaluation has a map in {column!r} with a class")
            logger.warning("the split %s has no maps with classes: there is no evaluation", self.validation_split)
        labels = labels if names is None else labels.ordered_as(names)
        return Labelled(sources.get(TRAINING), validation, labels)

    def _find_labels_file(self, token: str | None) -> Path | None:
        if self.labels_file is not None:
            return Path(self.labels_file)
        source = self.sources[0]
        if hub_id(source) is not None:
            where = {"repo_type": "dataset", "argument": "labels_file", "revision": self.dataset_revision}
            return find_file(source, LABELS_FILE, token=token, **where)
        folder = Path(source).expanduser()
        places = [folder, folder.parent] if self.train_dir else [folder]
        return next((place / LABELS_FILE for place in places if (place / LABELS_FILE).is_file()), None)


class Labelled(NamedTuple):
    """The images with labels to train and, if there are any, to evaluate on, and the classes of their maps."""

    train: RowSource
    validation: RowSource | None
    labels: LabelValues


class SegmentationTransform:
    """A stored image and its stored map of classes to a sample, as at the top of this module. What is drawn comes from
    torch's generator.

    Args:
        processor: size and normalisation; what evaluation uses, and users of the model.
        num_channels: of the images.
        labels: how to read maps.
        args: augmentation.
        train: whether to augment.
    """

    takes_label = True

    def __init__(
        self,
        processor: SegformerImageProcessor,
        num_channels: int,
        labels: LabelValues,
        args: SegmentationArguments,
        train: bool = True,
    ):
        self.processor, self.num_channels, self.train = processor, num_channels, train
        self.labels, self.args = labels, args
        self.size = (processor.size["height"], processor.size["width"])
        mean, std = list(processor.image_mean), list(processor.image_std)
        fill = {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: labels.ignored}
        steps = [v2.RandomCrop(self.size, pad_if_needed=True, fill=fill)]
        if args.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if args.photometric_distortion:
            if num_channels != 3:
                raise ValueError(f"photometric_distortion: is for RGB images, not for {num_channels} channel(s)")
            steps.append(v2.RandomPhotometricDistort())
        self.augment = v2.Compose([*steps, v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)])
        self.normalize = v2.Normalize(mean, std)

    def __call__(self, image, label) -> dict[str, torch.Tensor]:
        """
        Returns:
            `pixel_values`, float32 (channels, height, width), normalised; `labels`, int64 (height, width); for
            evaluation also `maps`, int64, the annotation at its own size.

        Raises:
            BrokenImage: if there is no image or map that can be used, the map holds what is no class, or one is larger
                than the other.
            ValueError: if the map is no image of numbers or colours.
        """
        opened = open_image(image, self.args.max_image_pixels)
        raw, turn = (opened.height, opened.width), orientation(opened)
        pixels = v2.functional.pil_to_tensor(to_pixels(upright(opened), self.num_channels))
        classes = self.labels.read(label, self.args.max_image_pixels)
        if classes.shape == raw != tuple(pixels.shape[1:]):  # annotated as stored, not as shown
            classes = turned(classes, turn)
        classes = torch.from_numpy(classes)
        if classes.shape != pixels.shape[1:]:
            sizes = " x ".join(map(str, classes.shape)), " x ".join(map(str, pixels.shape[1:]))
            raise BrokenImage("its map of classes has {} pixels, the image {}".format(*sizes))
        return self._augmented(pixels, classes) if self.train else self._whole(pixels, classes.long())

    def _augmented(self, pixels: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        low, high = self.args.resize_scale
        cover = max(wanted / size for wanted, size in zip(self.size, classes.shape, strict=True))
        scale = cover * (low + (high - low) * torch.rand(1).item())
        size = [max(1, round(scale * side)) for side in classes.shape]
        image, mask = v2.functional.resize(tv_tensors.Image(pixels), size), tv_tensors.Mask(classes[None])
        mask = v2.functional.resize(mask, size, v2.InterpolationMode.NEAREST_EXACT)
        image, mask = self.augment(image, mask)
        image = self.normalize(image)
        return {"pixel_values": image.as_subclass(torch.Tensor), "labels": mask.as_subclass(torch.Tensor)[0].long()}

    def _whole(self, pixels: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        made = self.processor(images=pixels, input_data_format="channels_first", return_tensors="pt")
        nearest = v2.InterpolationMode.NEAREST_EXACT
        labels = v2.functional.resize(tv_tensors.Mask(classes[None]), list(self.size), nearest)
        return {
            "pixel_values": made["pixel_values"][0],
            "labels": labels.as_subclass(torch.Tensor)[0],
            "maps": classes,
        }


def collate_maps(samples: list[dict]) -> dict:
    """A batch; `maps`, which differ in size, stay a list."""
    maps = [sample["maps"] for sample in samples if "maps" in sample]
    batch = default_collate([{k: v for k, v in sample.items() if k != "maps"} for sample in samples])
    return {**batch, "maps": maps} if maps else batch


@dataclass
class SegmentationTrainingArguments(DenseTrainingArguments):
    """The same for segmentation."""

    metric_for_best_model: str = helped("mean_iou", "What --load_best_model_at_end goes by.")
    dataloader_drop_last: bool = helped(
        True,
        "Leave out what does not fill the last batch of a training pass; BatchNorm cannot be trained on one image.",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.per_device_train_batch_size < 2:
            raise ValueError("per_device_train_batch_size: must be at least 2; UperNet's BatchNorm needs two images")


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


def without_package(model: UperNetForSemanticSegmentation) -> UperNetForSemanticSegmentation | None:
    """The same model on transformers' `TimmBackbone`, which loads without this package; `None`, and the reason in the
    log, where that cannot hold the encoder or does not give the same logits, bit for bit. Stochastic depth is left
    out: the model is for use, or for training with other settings."""
    config = model.backbone.config
    model = copy.deepcopy(model).cpu().eval()
    architecture, channels = config.architecture, config.num_channels
    try:
        if model.backbone.pyramid is not None:
            raise ValueError("it has a feature pyramid")
        plain = copy.deepcopy(model.config)
        plain.backbone_config = TimmBackboneConfig(
            backbone=architecture, num_channels=channels, out_indices=list(model.backbone.out_indices)
        )
        twin = UperNetForSemanticSegmentation(plain).eval()
        twin.backbone.load_state_dict(_renamed(model.backbone.a2mim.encoder, twin.backbone))
        twin.decode_head.load_state_dict(model.decode_head.state_dict())
        if model.auxiliary_head is not None:
            twin.auxiliary_head.load_state_dict(model.auxiliary_head.state_dict())
        images = torch.randn(2, channels, *config.input_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            maps = [features.shape for features in twin.backbone(images).feature_maps]
            if maps != [features.shape for features in model.backbone(images).feature_maps]:
                raise ValueError(f"its first map comes out as {tuple(maps[0])}")
            if not torch.equal(twin(images).logits, model(images).logits):
                raise ValueError("its outputs would differ")
    except (ValueError, RuntimeError, TypeError, AttributeError, AssertionError) as error:  # timm's kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logger.warning(
            "transformers' TimmBackbone cannot hold this %s (%s): loading the segmenter takes `import modeling_a2mim`",
            architecture,
            reason,
        )
        return None
    return twin


def _renamed(encoder: nn.Module, backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a timm encoder by the names that timm's features_only gives them."""
    weights = {other: tensor for name, tensor in encoder.state_dict().items() for other in backbone_names(name)}
    wanted = backbone.state_dict()
    if missing := [name for name in wanted if name not in weights]:
        raise ValueError(f"it has no {missing[0].removeprefix('_backbone.')}")
    return {name: weights[name] for name in wanted}


def build(
    model_args: SegmentationModelArguments, names: list[str], ignore_index: int = 255, token: str | None = None
) -> UperNetForSemanticSegmentation:
    """UperNet for classes of these names, on the encoder of `model_args`, or from the whole segmenter, if that is what
    they name.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    start = model_args.start(token)
    whole = start is not None and start.kind == "segmenter"
    known = UPERNET
    if whole:
        known = {name: start.data[name] for name in UPERNET}
        for flag, name in (("head_channels", "hidden_size"), ("auxiliary_channels", "auxiliary_channels")):
            given = getattr(model_args, flag)
            if given not in (None, known[name]):
                raise kept_as_it_is(flag, start, known[name], given)
        if not start.data["use_auxiliary_head"]:
            known = {**known, "auxiliary_loss_weight": 0.0}
    backbone = model_args.backbone(start, whole)
    weight = known["auxiliary_loss_weight"] if model_args.auxiliary_weight is None else model_args.auxiliary_weight
    config = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=model_args.head_channels or known["hidden_size"],
        use_auxiliary_head=weight > 0 and len(backbone.channels) > 2,  # it reads the third map
        auxiliary_loss_weight=weight,
        auxiliary_channels=model_args.auxiliary_channels or known["auxiliary_channels"],
        loss_ignore_index=ignore_index,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone = backbone
    note = ""
    if whole:
        load_head(model.decode_head, start, "decode_head.", ["classifier"], names)
        if model.auxiliary_head is not None and start.data["use_auxiliary_head"]:
            load_head(model.auxiliary_head, start, "auxiliary_head.", ["classifier"], names)
        elif model.auxiliary_head is not None:
            note = "; the auxiliary head is new"
    say_start(start, whole, names, note)
    if model_args.sync_batch_norm and torch.cuda.is_available() and torch.distributed.is_initialized():
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def image_processor(model: UperNetForSemanticSegmentation, reduce_labels: bool = False) -> SegformerImageProcessor:
    """What makes images of any size those that the model was trained on."""
    config = model.backbone.config
    height, width = config.input_size
    return SegformerImageProcessor(
        size={"height": height, "width": width},
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
        do_reduce_labels=reduce_labels,
    )


def run(
    model_args: SegmentationModelArguments, data_args: SegmentationArguments, args: SegmentationTrainingArguments
) -> dict[str, float]:
    """Load, build, train, evaluate, save. Returns the metrics.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    if model_args.eval_only:
        return evaluate_segmenter(model_args, data_args, args)
    train = data_args.load(train=True, token=args.hub_token)
    validation = data_args.load(train=False, token=args.hub_token)
    data_args.image_column_name, column = data_args.columns(train)
    train, validation, labels = data_args.labels(train, validation, column, args.hub_token)
    names = labels.names
    if validation is not None:
        metrics = ["mean_iou", "mean_accuracy", "overall_accuracy", *(f"iou_{name}" for name in names)]
        check_best_model(args, {"loss": False, **dict.fromkeys(metrics, True)})
    set_seed(args.seed)
    model = build(model_args, names, labels.ignored, args.hub_token)
    processor, channels = image_processor(model, data_args.do_reduce_labels), model.backbone.config.num_channels
    seed = args.seed if args.data_seed is None else args.data_seed
    augment = SegmentationTransform(processor, channels, labels, data_args)
    whole = SegmentationTransform(processor, channels, labels, data_args, train=False)
    train_samples = data_args.samples(train, augment, seed, column)
    eval_samples = None if validation is None else data_args.samples(validation, whole, seed, column)
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
            "task": model_args.task,
            "labels": f"by the values in the maps: {labels.describe()}",
            **data_args.provenance(),
            **model_args.origin(args.hub_token),
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
    start, validation = start_to_evaluate(model_args, data_args, ["segmenter"], args.hub_token)
    data_args.image_column_name, column = data_args.columns(validation)
    if data_args._find_labels_file(args.hub_token) is None:
        logger.warning("no names of classes (--labels_file): values in the maps are taken for those of the segmenter")
    _, validation, labels = data_args.labels(None, validation, column, args.hub_token, start.names)
    model = build(model_args, start.names, labels.ignored, args.hub_token)
    processor, channels = image_processor(model, data_args.do_reduce_labels), model.backbone.config.num_channels
    transform = SegmentationTransform(processor, channels, labels, data_args, train=False)
    samples = data_args.samples(validation, transform, args.seed, column)
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
