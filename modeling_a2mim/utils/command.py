"""How commands end."""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence


INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended

logger = logging.getLogger("a2mim")


def say_repeated(parser: argparse.ArgumentParser, argv: Sequence[str]):
    """Warn of arguments that are given more than once, of which the last counts.

    Raises:
        ValueError: naming one that takes several names, or a file of further arguments: all may have been meant.
    """
    words = (word.partition("=")[0] for word in argv)
    actions = [found for word in words if (found := parser._option_string_actions.get(word)) is not None]
    for name, count in Counter(action.dest for action in actions).items():
        kinds = dict.fromkeys(action for action in actions if action.dest == name)
        if count == 1 or (len(kinds) == 1 and next(iter(kinds)).nargs == 0):
            continue
        if len(kinds) > 1:
            logger.warning("%s are given; the last one counts", " and ".join(kind.option_strings[0] for kind in kinds))
            continue
        (action,) = kinds
        several = action.nargs in ("+", "*") and action.type not in (int, float)  # sizes and ranges are set anew
        if several or action.dest in ("config", "recipe"):
            way = "give all of its values after one" if action.nargs else "give one"
            raise ValueError(f"{action.dest}: --{action.dest} is given {count} times; {way}")
        logger.warning("--%s is given %d times; the last one counts", action.dest, count)


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], object],
    argv: list[str] | None = None,
    how_to_go_on: Callable[[argparse.Namespace], str] | None = None,
    shared: bool = False,
):
    """Parse the command line and run. What the user can mend (ValueError, OSError) ends the program with one line on
    standard error, `error: ...`, and exit status 2; Ctrl-C with a line as well, and exit status 130.

    Args:
        parser: of the arguments.
        run: what the command does with them.
        argv: the command line; that of the process, if not given.
        how_to_go_on: what is there after Ctrl-C, and how it goes on.
        shared: whether several processes share its work, where `torchrun` or `accelerate launch` start them.
    """
    args = parser.parse_args(argv)
    try:
        if not shared and "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise ValueError(
                f"{parser.prog}: runs in one process, each of several would write the same files; start it without "
                "torchrun or accelerate launch"
            )
        say_repeated(parser, sys.argv[1:] if argv is None else argv)
        run(args)
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, f"interrupted; {how_to_go_on(args)}\n" if how_to_go_on else "interrupted\n")
    except (ValueError, OSError) as error:
        message = str(error).strip()
        if message.startswith("Caught "):  # in a worker, of which torch gives the traceback
            message = message.splitlines()[-1].split(": ", 1)[-1]
        parser.exit(2, f"error: {message}\n")
