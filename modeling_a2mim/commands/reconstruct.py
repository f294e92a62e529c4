"""`a2mim reconstruct`: what several pre-trained models reconstruct of the same images."""

import argparse

from .comparison import comparison_parser, run_comparison


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = comparison_parser(
        "reconstruct",
        "What pre-trained models reconstruct: for each OUT/NAME.png with its images, and OUT/reconstruction.json with "
        "PSNR and SSIM of each image; OUT/spectrum.png with the errors of all by frequency.",
        models="a pre-trained model: a folder (with pretraining/, or a checkpoint), or its id on the Hub",
        images=8,
        seed="images and masks",
    )
    parser.add_argument(
        "--files", nargs="+", help="images to reconstruct, in place of a dataset; all, or as many as --images says"
    )
    parser.add_argument(
        "--display_channels", type=int, nargs="+", help="one or three channels to show, from 1 (default: the model's)"
    )
    parser.add_argument("--mask_ratio", type=float, help="share of masked cells, in (0, 1) (default: the model's own)")
    return parser


def main(argv: list[str] | None = None):
    """The command."""

    def run(args: argparse.Namespace):
        from ..analysis.reconstruction import compare

        compare(args)

    run_comparison(build_parser(), run, argv)


if __name__ == "__main__":
    main()
