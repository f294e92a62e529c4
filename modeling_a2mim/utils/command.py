"""How commands end."""

import argparse
from collections.abc import Callable


INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended


def run_command(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], object],
    argv: list[str] | None = None,
    how_to_go_on: Callable[[argparse.Namespace], str] | None = None,
):
    """Parse the command line and run. What the user can mend (ValueError, OSError) ends the program with one line on
    standard error, `error: ...`, and exit status 2; Ctrl-C with a line as well, and exit status 130.

    Args:
        parser: of the arguments.
        run: what the command does with them.
        argv: the command line; that of the process, if not given.
        how_to_go_on: what is there after Ctrl-C, and how it goes on.
    """
    args = parser.parse_args(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, f"interrupted; {how_to_go_on(args)}\n" if how_to_go_on else "interrupted\n")
    except (ValueError, OSError) as error:
        message = str(error).strip()
        if message.startswith("Caught "):  # in a worker, of which torch gives the traceback
            message = message.splitlines()[-1].split(": ", 1)[-1]
        parser.exit(2, f"error: {message}\n")
