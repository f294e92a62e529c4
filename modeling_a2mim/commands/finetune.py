"""`a2mim finetune`, and what `run_finetune.py` does: fine-tune an encoder, train one from scratch, or probe a frozen
one."""

import argparse

from ..tasks import arguments_of, find_task
from .parser import Arguments, keep_run_file, parse, peek, run_as_command, write_run_file
from .parser import build_parser as parser_of_script


SCRIPT = "run_finetune.py"


def build_parser(task: str = "image-classification") -> argparse.ArgumentParser:
    """The parser of the command for a task."""
    return parser_of_script(arguments_of(task), SCRIPT, task)


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, parsed and checked. Raises ValueError naming the argument that is wrong."""
    name = find_task(peek(argv), SCRIPT)
    return parse(arguments_of(name), argv, SCRIPT, name)


def run(arguments: Arguments) -> tuple:
    """Build, train, evaluate, save. Returns the trainer (`None` where nothing is trained, or several times) and the
    metrics.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    from transformers import set_seed

    from ..tasks import load_task
    from ..tasks.start import open_start
    from ..tasks.stored_images import with_found_values

    model_args, data_args, args = arguments[:3]
    task = load_task(arguments.task)
    if model_args.eval_only:
        metrics = task.evaluate(model_args, data_args, args)
        write_run_file(arguments)
        return None, metrics
    images = task.load(model_args, data_args, args)
    start = open_start(model_args, args.hub_token)
    rows, column = images.stored
    known = None if start is None else start.config
    model_args = with_found_values(model_args, data_args, rows, column, known)
    if getattr(model_args, "knn", False) or getattr(data_args, "seeds", None):
        metrics = task.compare(model_args, data_args, args, images)
        write_run_file(arguments)
        return None, metrics

    args = task.adapt(args, images)
    set_seed(args.seed)
    model = task.build(model_args, images, args.hub_token)
    trainer = task.make_trainer(model, images, model_args, data_args, args)
    keep_run_file(trainer, arguments)
    metrics = trainer.run()
    task.log_result(trainer, metrics)
    return trainer, metrics


def run_script(argv: list[str] | None = None) -> dict:
    """Parse, build, train, evaluate, save. Returns the metrics; raises as `run`."""
    return run(parse_arguments(argv))[1]


def main(argv: list[str] | None = None):
    """The command."""
    run_as_command(run_script, argv)


if __name__ == "__main__":
    main()
