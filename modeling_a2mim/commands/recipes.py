"""`a2mim recipes`: the recipes there are, or one of them whole."""

import argparse
from pathlib import Path

from ..recipes import FOLDER, load_recipe, recipe_names
from ..utils.command import run_command


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="a2mim recipes", description="Published settings, and those of this project: `--recipe NAME` trains so."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one (default: list all)")
    parser.add_argument("--command", choices=("pretrain", "finetune"), help="list those for this command alone")
    return parser


def run(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming `recipe`, if there is none of that name."""
    if args.name is not None:
        load_recipe(args.name)
        path = FOLDER / f"{args.name}.yaml"
        print((path if path.exists() else Path(args.name)).read_text(encoding="utf-8-sig"), end="")
        return
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        recipe = load_recipe(name)
        command = {"run_pretraining.py": "pretrain", "run_finetune.py": "finetune"}[recipe["script"]]
        if args.command in (None, command):
            print(f"{name:{width}}  {command}  {' '.join(recipe['description'].split())}")


def main(argv: list[str] | None = None):
    """The command."""
    run_command(build_parser(), run, argv)


if __name__ == "__main__":
    main()
