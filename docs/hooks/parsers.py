"""The argument parsers of this project's commands, without running them."""

import argparse
import contextlib
import importlib
import io
from unittest import mock


def parser_of(module: str, *argv: str) -> argparse.ArgumentParser:
    """The parser that `main` of a module (`run_pretraining`, `modeling_a2mim.export`, ...) makes for `argv`.

    `main` is called with `--help`, and the parser that would print is caught instead. This depends on nothing but the
    command line itself.

    Raises:
        LookupError: if `main` prints no help.
    """
    found = []
    catch = mock.patch.object(argparse.ArgumentParser, "print_help", lambda parser, file=None: found.append(parser))
    with catch, contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main_of(module)([*argv, "--help"])
    if not found:
        raise LookupError(f"{module}: main() prints no help")
    return found[0]


def main_of(module: str):
    """`main` of a module, or of the `__main__` of a package."""
    imported = importlib.import_module(module)
    if hasattr(imported, "__path__"):
        imported = importlib.import_module(f"{module}.__main__")
    return imported.main
