"""`a2mim completion bash`: the script with which a shell completes commands and their arguments."""

import argparse
import importlib

from ..utils.command import run_command


SHELLS = ("bash", "zsh", "tcsh")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="a2mim completion",
        description="Print the completion script of a shell. For bash: "
        "`a2mim completion bash > ~/.local/share/bash-completion/completions/a2mim`; for zsh a file `_a2mim` in one "
        "of its $fpath.",
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def all_commands() -> argparse.ArgumentParser:
    """One parser of all commands with all their arguments."""
    from a2mim.__main__ import COMMANDS, PACKAGE

    parser = argparse.ArgumentParser(prog="a2mim")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for name, (module, text) in COMMANDS.items():
        own = importlib.import_module(f"{PACKAGE}.{module}").build_parser()
        commands.add_parser(name, parents=[own], conflict_handler="resolve", help=text)
    return parser


def main(argv: list[str] | None = None):
    """The command."""

    def run(args: argparse.Namespace):
        import shtab

        script = shtab.complete(all_commands(), args.shell)
        # Where no argument is known, the names of files.
        print(script.replace("complete -o bashdefault", "complete -o bashdefault -o default"))

    run_command(build_parser(), run, argv)


if __name__ == "__main__":
    main()
