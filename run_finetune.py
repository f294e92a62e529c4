#!/usr/bin/env python
"""Fine-tune an encoder, train one from scratch, or probe a frozen one.

    python run_finetune.py --model_name_or_path a2mim-r50 --train_dir images/train --validation_dir images/test \
        --output_dir a2mim-r50-classifier                      # one sub-folder of images for each class
    python run_finetune.py --model_name_or_path a2mim-r50 --recipe rsb_a3 ...            # published settings
    python run_finetune.py --model_name_or_path a2mim-r50 --linear_probe ...             # or --knn
    python run_finetune.py --architecture resnet50 ...                                   # from scratch
    python run_finetune.py --task semantic-segmentation --model_name_or_path a2mim-r50 ...

`output_dir` ends up as a plain timm / transformers model with its label names (see README.md). All of transformers'
TrainingArguments work; `--help` lists everything, with `--task` that task's.
"""

from transformers import set_seed

from modeling_a2mim.commands.parser import parse, peek, run_as_command
from modeling_a2mim.tasks import find_task, load_task


def main(argv: list[str] | None = None) -> dict:
    """Parse, build, train, evaluate, save. Returns the metrics.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    name = find_task(peek(argv), "run_finetune.py")
    task = load_task(name)
    model_args, data_args, args = parse(*task.arguments, argv, "run_finetune.py", name)
    if model_args.eval_only:
        return task.evaluate(model_args, data_args, args)
    images = task.load(model_args, data_args, args)
    if getattr(model_args, "knn", False) or getattr(data_args, "seeds", None):
        return task.compare(model_args, data_args, args, images)

    args = task.adapt(args, images)
    set_seed(args.seed)
    model = task.build(model_args, images, args.hub_token)
    trainer = task.make_trainer(model, images, model_args, data_args, args)
    metrics = trainer.run()
    task.log_result(trainer, metrics)
    return metrics


if __name__ == "__main__":
    run_as_command(main)
