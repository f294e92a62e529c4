"""How commands end."""

import argparse
from collections.abc import Callable


def run_command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], object], argv: list[str] | None = None
):
    """Parse the command line and run. What the user can mend (ValueError, OSError) ends the program with one line on
    standard error, `error: ...`, and exit status 2.

    Args:
        parser: of the arguments.
        run: what the command does with them.
        argv: the command line; that of the process, if not given.
    """
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        message = str(error).strip()
        if message.startswith("Caught "):  # in a worker, of which torch gives the traceback
            message = message.splitlines()[-1].split(": ", 1)[-1]
        parser.exit(2, f"error: {message}\n")
