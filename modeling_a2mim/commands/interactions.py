"""`a2mim interactions`: J(m) of several classifiers, measured on the same images, pairs and contexts."""

import argparse

from ..arguments.analysis import FILLS, LABELS, RATIOS, SAMPLINGS, VALUES
from .comparison import comparison_parser, run_comparison


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = comparison_parser(
        "interactions",
        "Interaction strength of classifiers by order: OUT/interactions.json, OUT/interactions.png and, for each "
        "model, OUT/NAME.npz with the raw values, with which the same command goes on where it was stopped.",
        models="a classifier: a folder, or its id on the Hub",
        images=100,
        seed="images, pairs and contexts",
    )
    parser.add_argument("--label_column_name", help="column of the labels; found if not given")
    parser.add_argument(
        "--labels",
        choices=LABELS,
        default="names",
        help="whose odds are measured: the class of the same name as the label, of the same number, or the one that "
        "the model gives the whole image (default: %(default)s)",
    )
    parser.add_argument("--grid", type=int, default=14, help="cells along each side (default: %(default)s)")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="orders, as shares of all cells")
    parser.add_argument("--pairs", type=int, default=50, help="of each image (default: %(default)s)")
    parser.add_argument("--contexts", type=int, default=50, help="of each pair and order (default: %(default)s)")
    parser.add_argument("--value", choices=VALUES, default="log_odds", help="default: %(default)s")
    parser.add_argument("--fill", choices=FILLS, default="zero", help="of hidden cells (default: %(default)s)")
    parser.add_argument("--sampling", choices=SAMPLINGS, default="shared", help="default: %(default)s")
    parser.add_argument("--interval_width", type=float, help="stop when the intervals of J(m) are at most so wide")
    return parser


def main(argv: list[str] | None = None):
    """The command."""

    def run(args: argparse.Namespace):
        from ..analysis.interactions import compare

        compare(args)

    run_comparison(build_parser(), run, argv)


if __name__ == "__main__":
    main()
