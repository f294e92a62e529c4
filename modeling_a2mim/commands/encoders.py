"""`a2mim encoders`: which encoders of timm pre-train, and how."""

import argparse

from ..utils.command import run_command


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="a2mim encoders",
        description="Pre-train encoders of timm for one step without values, and tell where the mask token enters and "
        "what is decoded. All of timm take half an hour on 2 cores.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="names or patterns like 'resnet*' (default: all)")
    parser.add_argument("--names", dest="more", nargs="+", default=[], metavar="NAME", help="the same")
    parser.add_argument("--output", help="write FOLDER/architectures.json and .md there")
    parser.add_argument("--jobs", type=int, help="processes (default: one for each core)")
    parser.add_argument(
        "--max_parameters",
        type=float,
        default=30e6,
        help="build encoders up to this size with values, to try out their sites (default: %(default)g)",
    )
    return parser


def run(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming `names`, if timm has no such encoder."""
    from ..analysis.architectures import sweep

    sweep([*args.names, *args.more], args.max_parameters, args.jobs, args.output)


def main(argv: list[str] | None = None):
    """The command."""
    run_command(build_parser(), run, argv)


if __name__ == "__main__":
    main()
