"""Semantic segmentation: UperNet of transformers on a pre-trained encoder, from images with maps of classes.

Training: the image is scaled by a random factor (1: it just covers the crop), cropped, padded where it is smaller, and
flipped. Evaluation: the whole image is brought to the crop's size, whatever its aspect ratio, as the exported image
processor does; the prediction is brought back to the size of the annotation and compared there.
"""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, Image
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from PIL.Image import Image as PILImage
from torch import nn
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm.auto import tqdm
from transformers import (
    SegformerImageProcessor,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)

from .analysis.reconstruction import to_picture
from .best_model import check_best_model
from .data_arguments import helped, hub_id
from .decoding import BrokenImage, open_image, to_pixels, upright
from .dense import DenseArguments, DenseModelArguments, DenseTask, DenseTrainer, DenseTrainingArguments
from .loading import find_column
from .segmentation_maps import MeanIoU, confusion, predictions_picture, read_labels, read_map, resized_prediction


logger = logging.getLogger("a2mim")

ANNOTATIONS = ("annotation", "annotations", "label", "labels", "mask", "masks", "segmentation_mask", "semantic")
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

    head_channels: int = helped(512, "Channels of UperNet's head.")
    auxiliary_channels: int = helped(256, "Channels of the auxiliary head, which is there for training.")
    auxiliary_weight: float = helped(0.4, "Weight of the auxiliary head's loss; 0: no such head.")
    sync_batch_norm: bool = helped(False, "Statistics of BatchNorm over all processes, on GPUs.")


@dataclass
class SegmentationArguments(DenseArguments):
    """Where images with maps of classes come from, and how they are augmented."""

    label_column_name: str | None = helped(None, "Column of the maps of classes (images); found if not given.")
    labels_file: str | None = helped(
        None, f'JSON of class names, {{"0": "wall", ...}} or a list; default: {LABELS_FILE} beside the data, if any.'
    )
    do_reduce_labels: bool = helped(False, "0 in the maps is no class, and 1 the first one (ADE20K).")
    ignore_index: int = helped(255, "Value in the maps of pixels that are neither trained nor evaluated on.")
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
            image = next((name for name, is_image in kinds.items() if is_image and name != label), None)
        if image is None or image == label:
            raise ValueError(f"image_column_name: no column of images beside {label!r}; there are {', '.join(kinds)}")
        return find_column(dataset, Image, image, "image_column_name"), label

    def names(self, dataset, column: str, token: str | None = None) -> list[str]:
        """The names of the classes: those of the file, or numbers for what is found in the maps.

        Raises:
            ValueError: naming the file that is wrong, or if there are fewer than two classes.
        """
        found = self._find_labels_file(token)
        names = self._found_in_maps(dataset, column) if found is None else read_labels(found)
        if len(names) < 2:
            raise ValueError(f"labels_file: fewer than two classes: {', '.join(names)}")
        if self.ignore_index < len(names):
            raise ValueError(f"ignore_index: {self.ignore_index} is the class {names[self.ignore_index]!r}")
        return names

    def _find_labels_file(self, token: str | None) -> Path | None:
        if self.labels_file is not None:
            return Path(self.labels_file)
        source = self.sources[0]
        if hub_id(source) is not None:
            try:
                return Path(
                    hf_hub_download(
                        source, LABELS_FILE, repo_type="dataset", revision=self.dataset_revision, token=token
                    )
                )
            except EntryNotFoundError:
                return None
        folder = Path(source).expanduser()
        places = [folder, folder.parent] if self.train_dir else [folder]
        return next((place / LABELS_FILE for place in places if (place / LABELS_FILE).is_file()), None)

    def _found_in_maps(self, dataset, column: str) -> list[str]:
        if not isinstance(dataset, Dataset):
            raise ValueError("labels_file: a stream is not read through to find its classes; name them")
        logger.warning("no names of classes (--labels_file): reading %d maps to find which there are", len(dataset))
        maps = dataset.select_columns([column]).cast_column(column, Image(decode=False))
        seen: set[int] = set()
        for row in tqdm(maps, desc="looking for classes", leave=False):
            seen.update(
                torch.from_numpy(read_map(row[column], self.do_reduce_labels, self.ignore_index)).unique().tolist()
            )
        classes = sorted(seen - {self.ignore_index})
        if not classes:
            raise ValueError(f"label_column_name: the maps in {column!r} hold no class")
        return [f"class {i}" for i in range(classes[-1] + 1)]


class SegmentationTransform:
    """A stored image and its stored map of classes to a sample, as at the top of this module. What is drawn comes from
    torch's generator.

    Args:
        processor: size and normalisation; what evaluation uses, and users of the model.
        num_channels: of the images.
        names: of the classes.
        args: augmentation, and how to read maps.
        train: whether to augment.
    """

    takes_label = True

    def __init__(
        self,
        processor: SegformerImageProcessor,
        num_channels: int,
        names: list[str],
        args: SegmentationArguments,
        train: bool = True,
    ):
        self.processor, self.num_channels, self.train = processor, num_channels, train
        self.names, self.args = names, args
        self.size = (processor.size["height"], processor.size["width"])
        mean, std = list(processor.image_mean), list(processor.image_std)
        fill = {tv_tensors.Image: [round(255 * value) for value in mean], tv_tensors.Mask: args.ignore_index}
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
            BrokenImage: if there is no image or map that can be used, or one is larger than the other.
            ValueError: if the map holds what is no class.
        """
        pixels = to_pixels(upright(open_image(image, self.args.max_image_pixels)), self.num_channels)
        pixels = v2.functional.pil_to_tensor(pixels)
        classes = torch.from_numpy(
            read_map(label, self.args.do_reduce_labels, self.args.ignore_index, self.args.max_image_pixels)
        )
        if classes.shape != pixels.shape[1:]:
            sizes = " x ".join(map(str, classes.shape)), " x ".join(map(str, pixels.shape[1:]))
            raise BrokenImage("its map of classes has {} pixels, the image {}".format(*sizes))
        wrong = classes[(classes != self.args.ignore_index) & ((classes < 0) | (classes >= len(self.names)))]
        if len(wrong):
            raise ValueError(
                f"labels_file: a map holds the class {int(wrong[0])}, but there are names of {len(self.names)} classes"
            )
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
    """Weights of a timm encoder by the names that timm's features_only gives them: `model.` before them, or the first
    two parts joined."""
    weights = {}
    for name, tensor in encoder.state_dict().items():
        weights |= {f"_backbone.{name}": tensor, f"_backbone.model.{name}": tensor}
        weights[f"_backbone.{name.replace('.', '_', 1)}"] = tensor
    wanted = backbone.state_dict()
    if missing := [name for name in wanted if name not in weights]:
        raise ValueError(f"it has no {missing[0].removeprefix('_backbone.')}")
    return {name: weights[name] for name in wanted}


def build(
    model_args: SegmentationModelArguments, names: list[str], ignore_index: int = 255, token: str | None = None
) -> UperNetForSemanticSegmentation:
    """UperNet for classes of these names, on the encoder of `model_args`.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    backbone = model_args.backbone(token)
    config = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=model_args.head_channels,
        use_auxiliary_head=model_args.auxiliary_weight > 0 and len(backbone.channels) > 2,  # it reads the third map
        auxiliary_loss_weight=model_args.auxiliary_weight,
        auxiliary_channels=model_args.auxiliary_channels,
        loss_ignore_index=ignore_index,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = UperNetForSemanticSegmentation(config)
    model.backbone = backbone
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
    train = data_args.load(train=True, token=args.hub_token)
    validation = data_args.load(train=False, token=args.hub_token)
    data_args.image_column_name, column = data_args.columns(train)
    names = data_args.names(train, column, args.hub_token)
    if validation is not None:
        metrics = ["mean_iou", "mean_accuracy", "overall_accuracy", *(f"iou_{name}" for name in names)]
        check_best_model(args, {"loss": False, **dict.fromkeys(metrics, True)})
    set_seed(args.seed)
    model = build(model_args, names, data_args.ignore_index, args.hub_token)
    processor, channels = image_processor(model, data_args.do_reduce_labels), model.backbone.config.num_channels
    seed = args.seed if args.data_seed is None else args.data_seed
    augment = SegmentationTransform(processor, channels, names, data_args)
    whole = SegmentationTransform(processor, channels, names, data_args, train=False)
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
        ignore_index=data_args.ignore_index,
        draw=Predictions(shown, names) if shown else None,
        shown=[eval_samples.name(row) for row in range(len(shown))],
        provenance={"task": model_args.task, **data_args.provenance(), **model_args.origin(args.hub_token)},
    )
    metrics = trainer.run()
    if eval_samples is not None:
        logger.info("mean IoU %.4f on %d images", metrics["eval_mean_iou"], len(eval_samples))
    logger.info("segmenter is in %s", args.output_dir)
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
