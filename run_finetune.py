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
import sys

import transformers
from transformers import HfArgumentParser, set_seed

from modeling_a2mim.arguments import ClassificationArguments, ClassifierArguments
from modeling_a2mim.data import FineTuneTransform
from modeling_a2mim.evaluation import compute_accuracy, labels_subset
from modeling_a2mim.export import timm_pretrained_cfg
from modeling_a2mim.trainer import A2MIMTrainer, FineTuningArguments, check_output_dir, find_checkpoint


logger = logging.getLogger("a2mim")


def main(argv: list[str] | None = None) -> dict:
    """Parse, build, train, evaluate, save. Returns the metrics.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    parser = HfArgumentParser((ClassifierArguments, ClassificationArguments, FineTuningArguments))
    model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logger.setLevel(logging.INFO if args.should_log else logging.WARNING)
    transformers.utils.logging.set_verbosity(args.get_process_log_level())

    check_output_dir(args.output_dir, args.resume_from_checkpoint)
    find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    if data_args.streaming and args.max_steps < 1:
        raise ValueError("max_steps: a stream has no known length; say with --max_steps how long to train")
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
    augment = FineTuneTransform(cfg, scale=tuple(data_args.crop_scale), auto_augment=data_args.auto_augment)
    train_samples = data_args.samples(train, augment, seed, column)
    eval_samples = None
    if validation is not None:
        eval_samples = data_args.samples(validation, FineTuneTransform(cfg, train=False), seed, column)
    logger.info(
        "%s%s: %s trainable parameters; %d classes; %s training images; learning rate %g",
        model.config.architecture,
        " (frozen encoder)" if model_args.linear_probe else "",
        f"{model.num_parameters(only_trainable=True):,}",
        len(names),
        "streamed" if data_args.streaming else len(train),
        args.learning_rate,
    )
    if validation is None:
        args.eval_strategy = "no"
        logger.warning("no images to evaluate on: give --validation_dir or --validation_split")
    trainer = A2MIMTrainer(
        model=model,
        args=args,
        train_dataset=train_samples,
        eval_dataset=eval_samples,
        compute_metrics=compute_accuracy,
        pretraining_model=pretraining_model,
    )
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    metrics = result.metrics
    trainer.save_model()
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    if eval_samples is not None:
        evaluation = trainer.evaluate()
        trainer.save_metrics("eval", evaluation)
        metrics |= evaluation
        logger.info("accuracy %.4f on %d images", evaluation["eval_accuracy"], len(eval_samples))
    if args.push_to_hub:
        trainer.push_to_hub()
    logger.info("classifier is in %s", args.output_dir)
    return metrics


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        logger.debug("", exc_info=True)
        sys.exit(f"error: {error}")
