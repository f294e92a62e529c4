"""The command line of the scripts, parsed by transformers' HfArgumentParser."""

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import transformers
from transformers import HfArgumentParser

from ..arguments.data import sources_by_field
from ..arguments.model import TASK_NAMES
from ..arguments.trainer_fields import FOR_TRAINING, FOR_TRAINING_DATA, check_fields, idle_arguments, without_effect
from ..recipes import as_flags, load_recipe
from ..training.checkpoints import find_checkpoint
from ..training.endings import check_writable, describe_os_error, interrupted
from ..training.outputs import check_apart, check_output_dir


logger = logging.getLogger("a2mim")

SECRET = re.compile(r"\bhf_\w{16,}|(?<=://)[^/@\s]+(?=@)")  # a token of the Hub, and who logs in to a server


def parse(
    model_type: type,
    data_type: type,
    training_type: type,
    argv: list[str] | None,
    script: str,
    task: str | None = None,
) -> tuple:
    """Parse the command line into these dataclasses, set logging up, and check what needs neither data nor model.

    Args:
        argv: the command line; of the recipe that it names, what it does not give itself.
        script, task: what a recipe must be for.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    types = (model_type, data_type, training_type)
    parser = HfArgumentParser(types, allow_abbrev=False)  # type: ignore[arg-type] # its NewType takes no class
    if task is not None:
        parser.add_argument("--task", default=task, help=f"What to train for: {', '.join(TASK_NAMES)}.")
    argv = own = list(sys.argv[1:] if argv is None else argv)
    name = peek(argv).recipe
    if name is not None:
        settings = dict(load_recipe(name, script, task)["arguments"])
        if any(flag.partition("=")[0] == "--architecture" for flag in argv):
            settings.pop("model_args", None)  # which are for the recipe's own architecture
        recipe = as_flags(settings, {action.dest for action in parser._actions})
        argv = recipe + argv
    model_args, data_args, args = parser.parse_args_into_dataclasses(argv)[:3]
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("a2mim").setLevel(logging.INFO if args.should_log else logging.WARNING)
    transformers.utils.logging.set_verbosity(args.get_process_log_level())
    show_bars(not args.disable_tqdm)
    check_fields(args)
    if name is not None:
        logger.info("recipe %s: %s", name, " ".join(recipe))
    logger.info("arguments: %s", given_arguments(parser, argv))
    given = given_names(parser, own)
    mode = next((mode for mode in ("knn", "eval_only") if getattr(model_args, mode, False)), None)
    trains = mode is None
    idle = [] if trains else [name for name in FOR_TRAINING if name in given]
    idle += [name for name in FOR_TRAINING_DATA if name in given and mode == "eval_only"]
    if trains:
        logger.info("%s", args.batch_note)
    elif idle and args.should_log:
        logger.warning("no effect, as --%s trains nothing: %s", mode, ", ".join(idle))
    lines = [
        *without_effect(args, given.difference(idle)),
        *idle_arguments(given, {**vars(model_args), **vars(data_args)}),
    ]
    for line in lines if args.should_log else ():
        logger.warning("%s", line)
    check_apart(args.output_dir, sources_by_field(data_args), args.overwrite_output_dir)
    check_writable(args.output_dir)
    resume = args.resume_from_checkpoint
    if not getattr(data_args, "seeds", None):  # whose checkpoints are in folders of their own
        found = find_checkpoint(resume, args.output_dir)
        resume = resume if found or args.overwrite_output_dir else None
    if trains or Path(args.output_dir).is_file():
        check_output_dir(args.output_dir, resume, args.overwrite_output_dir, model_args.model_name_or_path)
    return model_args, data_args, args


def show_bars(shown: bool):
    """Whether progress is shown in bars, those of the libraries among them."""
    ours = transformers.utils.logging  # which this package uses as well
    if shown:
        ours.enable_progress_bar()
        datasets.enable_progress_bars()
    else:
        ours.disable_progress_bar()  # and those of huggingface_hub
        datasets.disable_progress_bars()


def given_names(parser: HfArgumentParser, argv: list[str]) -> set[str]:
    """The arguments that a command line names, whatever their value."""
    nothing = object()
    names = dict.fromkeys((action.dest for action in parser._actions), nothing)
    values = vars(parser.parse_known_args(argv, argparse.Namespace(**names))[0])
    return {name for name in names if values[name] is not nothing}


def given_arguments(parser: HfArgumentParser, argv: list[str]) -> str:
    """What a command line gives that is not the default, as `name=value, ...`; tokens of the Hub are left out. What
    follows from other arguments is not given."""
    nothing, shown = object(), []
    names = dict.fromkeys(action.dest for action in parser._actions)
    values = vars(parser.parse_known_args(argv, argparse.Namespace(**dict.fromkeys(names, nothing)))[0])
    for name in names:
        value = values[name]
        if value is nothing or value == parser.get_default(name) or name.endswith("_token"):
            continue
        text = shlex.join(str(getattr(v, "value", v)) for v in (value if isinstance(value, list) else [value]))
        shown.append(f"{name}={SECRET.sub('***', text)}")
    return ", ".join(shown) or "none that is not the default"


def peek(argv: list[str] | None) -> argparse.Namespace:
    """`recipe`, `task` and `output_dir` on the command line, before the rest can be parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    parser.add_argument("--task")
    parser.add_argument("--output_dir")
    return parser.parse_known_args(argv)[0]


def run_as_command(main: Callable[[], object]):
    """Run a script: what is wrong with arguments, data, folders or packages ends it with a message, and with its
    traceback at `--log_level debug`; Ctrl-C ends it with how to resume."""
    try:
        main()
    except KeyboardInterrupt:
        interrupted(peek(sys.argv[1:]).output_dir)
    except (ValueError, OSError, ImportError) as error:
        if transformers.utils.logging.get_verbosity() <= logging.DEBUG:
            raise
        # Of an error in a worker, torch gives the traceback as the message.
        message = (describe_os_error(error) if isinstance(error, OSError) else str(error)).strip()
        if message.startswith("Caught "):
            message = message.splitlines()[-1].split(": ", 1)[-1]
        sys.exit(f"error: {message}")
