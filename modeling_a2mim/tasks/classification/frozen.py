"""k-NN and logistic regression on the features of a frozen encoder."""

import logging
from collections.abc import Sequence

import torch
from transformers import set_seed

from ...arguments.data import ClassificationArguments
from ...arguments.model import ClassifierArguments
from ...arguments.training import FineTuningArguments, data_seed
from ...data.pages import PagesSource
from ...data.pixel_spec import PixelSpec
from ...data.splits import image_samples
from ...data.transforms import FineTuneTransform
from ...evaluation.frozen import evaluate_frozen
from ...export.folder import timm_pretrained_cfg
from ...export.provenance import labels_used
from ..encoder import build_classifier
from ..start import is_new
from .data import choose_rows, evaluation_samples, keep_subset
from .labelled_images import LabelledImages
from .seeds import seed_folder
from .trainer import make_class_weights


logger = logging.getLogger("a2mim")


def evaluate_features(
    model_args: ClassifierArguments,
    data_args: ClassificationArguments,
    args: FineTuningArguments,
    images: LabelledImages,
) -> list[dict]:
    """k-NN and logistic regression on frozen features, for each seed and layer: rows of `summary.summarise`. An
    encoder that was not pre-trained has other weights for each seed."""
    if args.class_weights is not None:
        logger.info("class_weights: are for the logistic regression; neighbours do not know of them")
    seeds = data_args.seeds or [data_seed(args)]
    name = labels_used(data_args)
    drawn: dict[tuple[str, int], Sequence[int]] = {}
    for seed in seeds:
        rows = choose_rows(data_args, images, seed)
        if rows is not None and args.should_save:
            folder = seed_folder(args.output_dir, seed) if data_args.seeds else args.output_dir
            keep_subset(str(folder), rows, data_args, images, seed)
        drawn[name, seed] = range(len(images.train)) if rows is None else rows
    if not is_new(model_args):
        if data_args.labels_per_class is None and data_args.label_fraction is None:  # each seed would give the same
            drawn = {(name, seeds[0]): drawn[name, seeds[0]]}
        return _evaluate(model_args, data_args, args, images, drawn)
    found = []
    for key, subset in drawn.items():
        set_seed(key[1])
        found += _evaluate(model_args, data_args, args, images, {key: subset})
    return found


def _evaluate(model_args, data_args, args, images: LabelledImages, subsets: dict) -> list[dict]:
    class_weights = args.class_weights
    if class_weights == ["balanced"]:
        class_weights = "balanced"
    elif class_weights is not None:
        class_weights = dict(enumerate(make_class_weights(class_weights, None, images.names)))
    model, _ = build_classifier(model_args, images.names, token=args.hub_token)
    model.to(args.device)
    transform = FineTuneTransform(
        timm_pretrained_cfg(model.a2mim), False, PixelSpec.from_config(model.config, data_args.max_image_pixels)
    )
    train = image_samples(data_args, images.train, transform, args.seed, images.column)
    if isinstance(train.source, PagesSource):  # what was drawn are files
        subsets = {key: train.source.rows_of(rows) for key, rows in subsets.items()}
    return evaluate_frozen(
        model,
        train,
        evaluation_samples(model, data_args, images, args.seed),
        subsets,
        model_args.probe_layers,
        neighbors=model_args.knn_neighbours,
        temperature=model_args.knn_temperature,
        c=model_args.probe_strength,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        dtype=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
        names=images.names,
        class_weights=class_weights,
    )
