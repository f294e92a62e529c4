"""`a2mim pretrain`, and what `run_pretraining.py` does: pre-train any timm encoder on unlabelled images with A2MIM."""

import argparse

from ..arguments.data import PreTrainingDataArguments
from ..arguments.model import PreTrainingModelArguments
from ..arguments.training import A2MIMTrainingArguments
from .parser import Arguments, keep_run_file, parse, run_as_command
from .parser import build_parser as parser_of_script


SCRIPT = "run_pretraining.py"
TYPES = (PreTrainingModelArguments, PreTrainingDataArguments, A2MIMTrainingArguments)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    return parser_of_script(TYPES, SCRIPT)


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """The command line, parsed and checked. Raises ValueError naming the argument that is wrong."""
    return parse(TYPES, argv, SCRIPT)


def run(arguments: Arguments) -> tuple:
    """Build, train, save. Returns the trainer and the metrics.

    Raises:
        ValueError: naming the argument that is wrong, before anything is written.
    """
    from ..tasks.pretraining import make_trainer

    trainer = make_trainer(*arguments[:3])
    keep_run_file(trainer, arguments)
    return trainer, trainer.run()


def run_script(argv: list[str] | None = None) -> dict:
    """Parse, build, train, save. Returns the metrics; raises as `run`."""
    return run(parse_arguments(argv))[1]


def main(argv: list[str] | None = None):
    """The command."""
    run_as_command(run_script, argv)


if __name__ == "__main__":
    main()
