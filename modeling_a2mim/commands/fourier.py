"""`a2mim fourier`: spectra and variances of several encoders on the same images."""

import argparse

from .comparison import comparison_parser, run_comparison


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = comparison_parser(
        "fourier",
        "Relative log amplitude of feature maps by frequency and layer, and their variance by depth: "
        "OUT/fourier.json and OUT/fourier.png.",
        models="an encoder or classifier: a folder, or its id on the Hub",
        images=256,
        seed="the images",
    )
    parser.set_defaults(batch_size=64)
    return parser


def main(argv: list[str] | None = None):
    """The command."""

    def run(args: argparse.Namespace):
        from ..analysis.fourier import compare

        compare(args)

    run_comparison(build_parser(), run, argv)


if __name__ == "__main__":
    main()
