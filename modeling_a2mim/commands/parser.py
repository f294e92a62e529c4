"""The command line of the scripts, parsed by transformers' HfArgumentParser."""

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from transformers import HfArgumentParser
from transformers.utils import logging as transformers_logging

from ..arguments.data import sources_by_field
from ..arguments.model import TASK_NAMES
from ..arguments.trainer_fields import FOR_TRAINING, FOR_TRAINING_DATA, check_fields, idle_arguments, without_effect
from ..recipes import as_flags, load_config, load_recipe
from ..utils.command import say_repeated
from ..utils.files import RUN_FILE
from ..utils.flag_names import meant
from ..utils.yaml_flags import dump


logger = logging.getLogger("a2mim")

SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+(?=@)")  # a token of the Hub, and who logs in to a server
COMMANDS = {"run_pretraining.py": "a2mim pretrain", "run_finetune.py": "a2mim finetune"}  # what a script is as well
EVALUATION_FILE = "evaluation.yaml"  # of --eval_only and --knn, which may write beside the model
HIDDEN = ", once what was secret stands for ***"
NOT_REPEATED = ("config", "resume_from_checkpoint", "overwrite_output_dir")  # of what `RUN_FILE` keeps


class Arguments(NamedTuple):
    """A command line, parsed.

    Attributes:
        model, data, training: the dataclasses with their values.
        given: names and values of what is not the default, without what is secret.
        task: of fine-tuning.
        script: that the arguments are for.
    """

    model: Any
    data: Any
    training: Any
    given: dict[str, Any]
    task: str | None
    script: str


class Parser(HfArgumentParser):
    """Says in one line what is wrong: its usage fills the screen."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def build_parser(types: tuple[type, ...], script: str, task: str | None = None) -> HfArgumentParser:
    """The parser of a script whose arguments these dataclasses are. `task`: of fine-tuning."""
    prog = script if Path(sys.argv[0]).name == script else COMMANDS[script]
    parser = Parser(types, prog=prog, allow_abbrev=False)  # type: ignore[arg-type] # its NewType: no class
    if task is not None:
        parser.add_argument("--task", default=task, help=f"What to train for: {', '.join(TASK_NAMES)}.")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"YAML file of flags (`max_steps: 100`), which the command line overrides; each run leaves one, "
        f"{RUN_FILE}, that repeats it.",
    )
    return parser


def parse(types: tuple[type, type, type], argv: list[str] | None, script: str, task: str | None = None) -> Arguments:
    """Parse the command line into dataclasses of model, data and training, set logging up, and check what needs
    neither data nor model.

    Args:
        types: the dataclasses.
        argv: the command line; of the recipe and the file of flags that it names, what it does not give itself.
        script, task: what a recipe must be for.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    parser = build_parser(types, script, task)
    known = {action.dest for action in parser._actions}
    typed = list(sys.argv[1:] if argv is None else argv)
    argv = own = with_config(argv, known)
    given = given_names(parser, own)
    name, recipe = peek(argv).recipe, []
    if name is not None:
        settings = dict(load_recipe(name, script, task)["arguments"])
        if "architecture" in given:
            settings.pop("model_args", None)  # which are for the recipe's own architecture
        if "base_learning_rate" in given:
            settings.pop("learning_rate", None)  # beside which it would not count
        recipe = as_flags(settings, known)
        argv = recipe + argv
    model_args, data_args, args, *_, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    refuse_unknown(rest, known)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("a2mim").setLevel(logging.INFO if args.should_log else logging.WARNING)
    transformers_logging.set_verbosity(args.get_process_log_level())
    show_bars(not args.disable_tqdm)
    say_repeated(parser, typed)
    check_fields(args)
    if name is not None:
        logger.info("recipe %s: %s", name, " ".join(recipe))
    values = given_values(parser, argv, given_names(parser, recipe))
    logger.info("arguments: %s", shown(values))
    mode = next((mode for mode in ("knn", "eval_only") if getattr(model_args, mode, False)), None)
    trains = mode is None
    idle = [] if trains else [name for name in FOR_TRAINING if name in given]
    if mode == "eval_only":
        if args.push_to_hub:
            raise ValueError(
                "push_to_hub: --eval_only makes no model that could be pushed; leave it out, `a2mim push` pushes one"
            )
        idle += [name for name in (*FOR_TRAINING_DATA, "overwrite_output_dir") if name in given]
    if trains:
        logger.info("%s", args.batch_note)
    elif idle and args.should_log:
        logger.warning("no effect, as --%s trains nothing: %s", mode, ", ".join(idle))
    lines = [
        *without_effect(args, given.difference(idle)),
        *idle_arguments(given.difference(idle), {**vars(model_args), **vars(data_args)}),
    ]
    for line in lines if args.should_log else ():
        logger.warning("%s", line)
    check_folder(model_args, data_args, args, trains)
    return Arguments(model_args, data_args, args, values, task, script)


def check_folder(model_args, data_args, args, trains: bool):
    """Refuse an output folder that cannot be written or must not be.

    Raises:
        ValueError: naming `output_dir`.
    """
    from ..training.checkpoints import find_checkpoint
    from ..training.endings import check_writable
    from ..training.outputs import check_apart, check_output_dir

    check_apart(args.output_dir, sources_by_field(data_args), args.overwrite_output_dir)
    check_writable(args.output_dir)
    resume = args.resume_from_checkpoint
    if not getattr(data_args, "seeds", None):  # whose checkpoints are in folders of their own
        found = find_checkpoint(resume, args.output_dir)
        resume = resume if found or args.overwrite_output_dir else None
    if trains or Path(args.output_dir).is_file():
        check_output_dir(args.output_dir, resume, args.overwrite_output_dir, model_args.model_name_or_path)


def refuse_unknown(rest: Collection[str], known: Collection[str]):
    """Raises ValueError, if the command line has what no argument takes, with what may be meant."""
    if not rest:
        return
    unknown = next((word for word in rest if word.startswith("--")), None)
    if unknown is None:
        raise ValueError(f"{shlex.join(rest)}: no argument takes this")
    flag = unknown.partition("=")[0]
    raise ValueError(f"{flag}: there is no such argument; {meant(flag.lstrip('-'), known) or '--help lists all'}")


def show_bars(shown: bool):
    """Whether progress is shown in bars, those of the libraries among them."""
    import datasets

    ours = transformers_logging  # which this package uses as well
    if shown:
        ours.enable_progress_bar()
        datasets.enable_progress_bars()
    else:
        ours.disable_progress_bar()  # and those of huggingface_hub
        datasets.disable_progress_bars()


def given_names(parser: argparse.ArgumentParser, argv: list[str]) -> set[str]:
    """The arguments that a command line names, whatever their value."""
    nothing = object()
    names = dict.fromkeys((action.dest for action in parser._actions), nothing)
    values = vars(parser.parse_known_args(argv, argparse.Namespace(**names))[0])
    return {name for name in names if values[name] is not nothing}


def given_values(parser: argparse.ArgumentParser, argv: list[str], overridden: Collection[str] = ()) -> dict[str, Any]:
    """What a command line gives that is not the default, by name. Tokens of the Hub are left out; in other values
    `***` replaces what is secret. What follows from other arguments is not given.

    Args:
        overridden: arguments of a recipe, whose values are told even where they are the default.
    """
    values, found = vars(parser.parse_known_args(argv)[0]), {}
    for name in given_names(parser, argv):
        value = values[name]
        if (value == parser.get_default(name) and name not in overridden) or name.endswith("_token"):
            continue
        plain = [getattr(v, "value", v) for v in (value if isinstance(value, list) else [value])]
        plain = [SECRET.sub("***", v) if isinstance(v, str) else v for v in plain]
        found[name] = plain if isinstance(value, list) else plain[0]
    order = [action.dest for action in parser._actions]
    return {name: found[name] for name in sorted(found, key=order.index)}


def shown(values: dict[str, Any]) -> str:
    """Arguments as `name=value, ...`, for the log."""
    words = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return ", ".join(f"{n}={shlex.join(map(str, v))}" for n, v in words.items()) or "none that is not the default"


def with_config(argv: list[str] | None, known: Collection[str] | None = None) -> list[str]:
    """A command line (that of the process, if not given) behind the flags in the file that its `--config` names.

    Raises:
        ValueError: naming `config`, if the file cannot be read, or holds what is none of the `known` arguments.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    path = _peeked(argv).config
    return argv if path is None else as_flags(load_config(path), known, f"config: {path}") + argv


def peek(argv: list[str] | None) -> argparse.Namespace:
    """`recipe`, `task` and `output_dir` on the command line, before the rest can be parsed."""
    return _peeked(with_config(argv))


def _peeked(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--recipe", "--task", "--output_dir", "--config"):
        parser.add_argument(name)
    return parser.parse_known_args(argv)[0]


def write_run_file(arguments: Arguments):
    """Leave `run.yaml` in the output folder (`evaluation.yaml` where nothing is trained), with which `--config`
    repeats this run. It names folders of this machine, and is not among what is uploaded."""
    from .. import __version__
    from ..utils.files import atomic_write

    args = arguments.training
    if not args.should_save:
        return
    values = {name: value for name, value in arguments.given.items() if name not in NOT_REPEATED}
    if arguments.task not in (None, "image-classification"):
        values = {"task": arguments.task, **values}
    trained = not (getattr(arguments.model, "eval_only", False) or getattr(arguments.model, "knn", False))
    name = RUN_FILE if trained else EVALUATION_FILE
    command = f"{COMMANDS[arguments.script]} --config {name}"
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    with atomic_write(Path(args.output_dir, name)) as temporary:
        head = f"# `{command} --output_dir ANOTHER` repeats this run (version {__version__})"
        head += f", from the folder that it was started in{HIDDEN if '***' in str(values) else ''}.\n"
        temporary.write_text(head + dump(values), encoding="utf-8")


def keep_run_file(trainer, arguments: Arguments):
    """Leave the file (see `write_run_file`) once a trainer begins: a run that fails before replaces no other's."""
    from ..training.callbacks import BeginCallback

    trainer.add_callback(BeginCallback(lambda: write_run_file(arguments)))


def run_as_command(main: Callable[[list[str] | None], object], argv: list[str] | None = None):
    """Run a script: what is wrong with arguments, data, folders or packages ends it with a message, and with its
    traceback at `--log_level debug`; Ctrl-C ends it with how to resume."""
    try:
        main(argv)
    except KeyboardInterrupt:
        from ..training.endings import interrupted

        interrupted(peek(argv).output_dir)
    except (ValueError, OSError, ImportError) as error:
        if transformers_logging.get_verbosity() <= logging.DEBUG:
            raise
        from ..training.endings import describe_os_error

        # Of an error in a worker, torch gives the traceback as the message.
        message = (describe_os_error(error) if isinstance(error, OSError) else str(error)).strip()
        if message.startswith("Caught "):
            message = message.splitlines()[-1].split(": ", 1)[-1]
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
