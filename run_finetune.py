#!/usr/bin/env python
"""Fine-tune an encoder for image classification, train one from scratch, or probe a frozen one.

    python run_finetune.py --model_name_or_path a2mim-r50 --train_dir images/train --validation_dir images/test \
        --output_dir a2mim-r50-classifier                      # one sub-folder of images for each class
    python run_finetune.py --model_name_or_path a2mim-r50 --linear_probe ...
    python run_finetune.py --architecture resnet50 ...         # from scratch

`output_dir` ends up as a plain timm / transformers classifier with its label names (see README.md). All of
transformers' TrainingArguments work; `--help` lists everything.
"""

import logging

from transformers import set_seed

from modeling_a2mim.arguments import ClassificationArguments, ClassifierArguments, parse, run_as_command
from modeling_a2mim.evaluation import compute_accuracy, labels_subset
from modeling_a2mim.export import timm_pretrained_cfg
from modeling_a2mim.trainer import A2MIMTrainer, FineTuningArguments
from modeling_a2mim.transforms import FineTuneTransform


logger = logging.getLogger("a2mim")


def main(argv: list[str] | None = None) -> dict:
    """Parse, build, train, evaluate, save. Returns the metrics.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    model_args, data_args, args = parse(ClassifierArguments, ClassificationArguments, FineTuningArguments, argv)
    train = data_args.load(train=True, token=args.hub_token)
    validation = data_args.load(train=False, token=args.hub_token)
    column, names = data_args.labels(train)
    seed = args.seed if args.data_seed is None else args.data_seed
    if data_args.labels_per_class is not None:
        train = train.select(labels_subset(train[column], data_args.labels_per_class, seed))
    if validation is not None and data_args.labels(validation)[1] != names:
        raise ValueError(
            f"validation_dir: its classes {data_args.labels(validation)[1]} are not those trained on, {names}"
        )

    set_seed(args.seed)
    model, pretraining_model = model_args.build(names, token=args.hub_token)
    if model_args.linear_probe:
        model.freeze_encoder()
    cfg = timm_pretrained_cfg(model.a2mim)
    options = {"scale": tuple(data_args.crop_scale), "auto_augment": data_args.auto_augment}
    augment = FineTuneTransform(cfg, max_pixels=data_args.max_image_pixels, **options)
    whole = FineTuneTransform(cfg, train=False, max_pixels=data_args.max_image_pixels)
    train_samples = data_args.samples(train, augment, seed, column)
    eval_samples = None
    if validation is not None:
        eval_samples = data_args.samples(validation, whole, seed, column)
    logger.info(
        "%s%s: %s trainable parameters; %d classes; %s training images; learning rate %g",
        model.config.architecture,
        " (frozen encoder)" if model_args.linear_probe else "",
        f"{model.num_parameters(only_trainable=True):,}",
        len(names),
        f"{len(train):,}",
        args.learning_rate,
    )
    if validation is None:
        args.eval_strategy = "no"
        logger.warning("no images to evaluate on: give --validation_dir or --validation_split")
    example = None if eval_samples is None else eval_samples.first(1)
    trainer = A2MIMTrainer(
        model=model,
        args=args,
        train_dataset=train_samples,
        eval_dataset=eval_samples,
        compute_metrics=compute_accuracy,
        picture_samples=example,
        pretraining_model=pretraining_model,
        provenance={
            "task": model_args.task,
            **data_args.provenance(),
            "base_model": model_args.base_model(),
            "example": names[int(example[0]["labels"])] if example else None,
        },
    )
    metrics = trainer.run()
    if eval_samples is not None:
        logger.info("accuracy %.4f on %d images", metrics["eval_accuracy"], len(eval_samples))
    logger.info("classifier is in %s", args.output_dir)
    return metrics


if __name__ == "__main__":
    run_as_command(main)
