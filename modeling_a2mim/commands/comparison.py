"""What the commands of the analysis have in common: models, images, and where they are run."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from ..arguments.analysis import DTYPES
from ..utils.command import run_command


def comparison_parser(name: str, description: str, models: str, images: int, seed: str) -> argparse.ArgumentParser:
    """A parser with what all these commands take.

    Args:
        name: of the command, `a2mim NAME`.
        description: of what it does.
        models: help of the models.
        images: how many, by default.
        seed: what it decides, for the help.
    """
    parser = argparse.ArgumentParser(prog=f"a2mim {name}", description=description)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=models)
    parser.add_argument("--names", nargs="+", help="what to call them (default: the last part of each)")
    parser.add_argument("--revision", help="of models on the Hub")
    parser.add_argument("--dataset", help="a dataset on the Hub, or a folder or file of images (default: the sample)")
    parser.add_argument("--dataset_config_name", help="configuration of the dataset on the Hub")
    parser.add_argument("--split", help="default: the one for evaluation, else train")
    parser.add_argument("--streaming", action="store_true", help="read images on the fly instead of preparing them")
    parser.add_argument("--image_column_name", help="column of the images; found if not given")
    parser.add_argument("--images", type=int, help=f"how many, drawn with --seed (default: {images})")
    parser.set_defaults(default_images=images)
    parser.add_argument("--seed", type=int, default=0, help=f"draws {seed} (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="of a forward pass (default: %(default)s)")
    parser.add_argument("--device", help="default: a GPU, if there is one")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of autocast (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results, made if missing")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that are there in OUT")
    return parser


def check_apart(args: argparse.Namespace):
    """Refuse to write pictures where images are read from, as they would be among these the next time.

    Raises:
        ValueError: naming `out`.
    """
    from ..data.decoding import is_image_file
    from ..data.loading import local_path
    from ..utils.files import folder_around

    files = getattr(args, "files", None) or []
    named = {"dataset": [] if args.dataset is None else [args.dataset], "files": files}
    for field, name in ((field, name) for field, names in named.items() for name in names):
        around = folder_around(args.out, local_path(name))
        beside = is_image_file(name) and args.out.resolve() == local_path(name).resolve().parent
        if around or beside:
            raise ValueError(
                f"out: {args.out} is, or lies in, the folder of images {around or Path(name).parent} (--{field}), "
                "where the pictures would be taken for images; name a folder outside"
            )


def run_comparison(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], argv: list[str] | None):
    """Run such a command. What the user can mend ends in one line and exit status 2."""

    def checked(args: argparse.Namespace):
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        if args.out.exists() and not args.out.is_dir():
            raise ValueError(f"out: {args.out} is a file; expected a folder")
        for name, least in (("batch_size", 1), ("seed", 0)):
            if getattr(args, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(args, name)}")
        check_apart(args)
        run(args)

    run_command(parser, checked, argv)
