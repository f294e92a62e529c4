#!/usr/bin/env python
"""Pre-train any timm encoder on unlabelled images with A2MIM.

    python run_pretraining.py --architecture resnet50 --train_dir path/to/images --output_dir a2mim-r50

`output_dir` ends up as a plain timm / transformers checkpoint (see README.md). All of transformers' TrainingArguments
work; `--help` lists everything.
"""

import logging

from transformers import set_seed

from modeling_a2mim.arguments.data import PreTrainingDataArguments
from modeling_a2mim.arguments.model import PreTrainingModelArguments
from modeling_a2mim.arguments.settings import new_config
from modeling_a2mim.arguments.training import A2MIMTrainingArguments, data_seed
from modeling_a2mim.commands.parser import parse, run_as_command
from modeling_a2mim.data.augmentation import pretraining_augmentation
from modeling_a2mim.data.monitor import load_monitor, open_monitor
from modeling_a2mim.data.splits import image_samples, load_pretraining_splits
from modeling_a2mim.data.transforms import PreTrainTransform
from modeling_a2mim.export.provenance import monitor_data, pretraining_provenance
from modeling_a2mim.pretrained import MASKED
from modeling_a2mim.tasks.pretraining import build_pretraining_model, open_pretraining_start
from modeling_a2mim.tasks.start import is_new
from modeling_a2mim.training.advice import before_training
from modeling_a2mim.training.best_model import RECONSTRUCTION_METRICS, with_best_model
from modeling_a2mim.training.monitor import check_best_metric, figure_names
from modeling_a2mim.training.resuming import flags
from modeling_a2mim.training.trainer import A2MIMTrainer


logger = logging.getLogger("a2mim")


def main(argv: list[str] | None = None) -> dict:
    """Parse, build, train, save. Returns the metrics.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    arguments = (PreTrainingModelArguments, PreTrainingDataArguments, A2MIMTrainingArguments)
    model_args, data_args, args = parse(*arguments, argv, "run_pretraining.py")
    start = open_pretraining_start(model_args, args.hub_token)
    if is_new(model_args):
        new_config(model_args)  # what is wrong in it is said before images are looked for
    train, evaluation, evaluated = load_pretraining_splits(data_args, args.hub_token)
    monitored = open_monitor(data_args, args.hub_token)

    set_seed(args.seed)
    provenance = {"task": MASKED, **pretraining_provenance(data_args)}
    provenance["monitor_data"] = monitor_data(data_args, evaluated)
    if evaluated is not None:
        provenance |= {"evaluated_on": None, "evaluation_note": None, "evaluation_data": evaluated}
    model, origin = build_pretraining_model(model_args, start, args.hub_token)
    provenance |= origin
    config = model.config
    augmentation = pretraining_augmentation(data_args)
    crop = PreTrainTransform(
        config, tuple(data_args.crop_scale), max_pixels=data_args.max_image_pixels, **augmentation
    )
    whole = PreTrainTransform(config, train=False, max_pixels=data_args.max_image_pixels)
    seed = data_seed(args)
    train_samples = image_samples(data_args, train, crop, seed)
    eval_samples = image_samples(data_args, evaluation, whole, seed)
    shown, names = eval_samples.spread(8)
    monitor = load_monitor(data_args, monitored, eval_samples, evaluated, whole)
    check_best_metric(args.metric_for_best_model, monitor)
    left_out = () if config.frequency_loss_weight else ("frequency_loss",)
    metrics = {name: more for name, more in RECONSTRUCTION_METRICS.items() if name not in left_out}
    args = with_best_model(args, metrics | figure_names(monitor))
    site = model.a2mim.site
    logger.info(
        "%s images; %s: %s parameters; mask token at %s (%d x %d); %d of %d cells masked; learning rate %g",
        f"{len(train_samples):,}",
        config.architecture,
        f"{model.num_parameters():,}",
        site.module,
        *site.layout.grid,
        config.num_masked,
        config.mask_grid[0] * config.mask_grid[1],
        args.learning_rate,
    )
    trainer = A2MIMTrainer(
        model=model,
        args=args,
        train_dataset=train_samples,
        eval_dataset=eval_samples,
        picture_samples=shown,
        picture_names=names,
        monitor=monitor,
        monitor_steps=data_args.monitor_steps,
        provenance=provenance,
        flags=flags(model_args, data_args),
    )
    warnings = before_training(model, len(train_samples), trainer.args, from_weights=not is_new(model_args))
    for warning in warnings if args.should_log else ():
        logger.warning("%s", warning)
    metrics = trainer.run()
    logger.info("encoder, pretraining/ and reconstruction.png are in %s", args.output_dir)
    return metrics


if __name__ == "__main__":
    run_as_command(main)
