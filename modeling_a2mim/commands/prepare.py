"""`a2mim prepare IMAGES OUT`: images decoded once, and written as shards that train fast."""

import argparse
import logging
from pathlib import Path

from ..utils.command import run_command
from ..utils.value_range import PAGES
from .images import add_image_arguments, go_on_with_parts


SIZE, QUALITY = 256, 95  # those of `preparation.options`, for which help would import transformers


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="a2mim prepare",
        description="Decode images once, make them smaller or cut them in tiles, and write shards with their names, "
        "labels and other columns, which train fast. A run that was killed goes on with the same command.",
    )
    add_image_arguments(parser, split="the only split to take; all if not given")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help=f"pixels of the shorter side; smaller images stay as they are; 0 changes no size (default: {SIZE})",
    )
    parser.add_argument(
        "--resize_mode", choices=["shorter", "longer"], help="which side --size is of (default: shorter)"
    )
    parser.add_argument(
        "--tile", type=int, metavar="N", help="cut tiles of N x N pixels instead of making images smaller"
    )
    parser.add_argument(
        "--tile_overlap", type=int, default=0, metavar="M", help="pixels that neighboring tiles share (default: 0)"
    )
    parser.add_argument(
        "--min_content",
        type=float,
        metavar="SHARE",
        help="leave out tiles with a smaller share of pixels that are not background: the values of half of the "
        "border of the image or more, within 5%% of its range",
    )
    parser.add_argument("--channels", type=int, nargs="+", metavar="C", help="which stored channels, from 1 (all)")
    parser.add_argument("--pages", choices=PAGES, help="what further pages of a file are")
    parser.add_argument(
        "--format", choices=["parquet", "webdataset"], default="parquet", help="of the shards (default: %(default)s)"
    )
    parser.add_argument(
        "--encode",
        choices=["auto", "jpeg", "png", "npy"],
        default="auto",
        help="auto: JPEG for what came as JPEG, PNG for other 8 bits and grey 16 bits, .npy for all else; nothing is "
        "cut to 8 bits (default: %(default)s)",
    )
    parser.add_argument("--quality", type=int, default=QUALITY, help="of JPEG (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float16", "float32"], help="of floating-point values (as they are)")
    parser.add_argument("--max_image_pixels", type=int, help="larger images are skipped (default: as while training)")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="write in a random order, not as the images lie")
    parser.add_argument(
        "--near_duplicates",
        type=int,
        metavar="BITS",
        help="count images whose perceptual hashes (64 bits) differ in at most so many as duplicates, too",
    )
    parser.add_argument("--drop_duplicates", action="store_true", help="write the first of each group alone")
    parser.add_argument("--num_workers", type=int, help="processes (default: as many as there are cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace what this command has written to OUT")
    return parser


def run(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming what is wrong."""
    from ..preparation.options import MAX_PIXELS, SHORTER, Options
    from ..preparation.running import prepare

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.tile is not None and (args.size is not None or args.resize_mode is not None):
        raise ValueError("tile: are cut at the resolution of the images; leave out --size and --resize_mode")
    if args.size == 0 and args.resize_mode is not None:
        raise ValueError("resize_mode: has no effect with --size 0; leave it out")
    if args.num_workers is not None and args.num_workers < 0:
        raise ValueError(f"num_workers: must be at least 0, got {args.num_workers}")
    if args.shuffle is not None and args.shuffle < 0:
        raise ValueError(f"shuffle: must be at least 0, got {args.shuffle}")
    size = SIZE if args.size is None else args.size or None
    options = Options(
        size=size if args.tile is None else None,
        resize_mode=args.resize_mode or SHORTER,
        tile=args.tile,
        tile_overlap=args.tile_overlap,
        min_content=args.min_content,
        channels=None if args.channels is None else tuple(args.channels),
        pages=args.pages,
        encode=args.encode,
        quality=args.quality,
        dtype=args.dtype,
        max_pixels=MAX_PIXELS if args.max_image_pixels is None else args.max_image_pixels,
        format=args.format,
        near_duplicates=args.near_duplicates,
        drop_duplicates=args.drop_duplicates,
    )
    prepare(
        args.images,
        args.out,
        options,
        split=args.split,
        config_name=args.dataset_config_name,
        image_column=args.image_column_name,
        revision=args.dataset_revision,
        shuffle=args.shuffle,
        num_workers=args.num_workers,
        overwrite=args.overwrite,
    )


def main(argv: list[str] | None = None):
    """Run the command."""
    run_command(build_parser(), run, argv, go_on_with_parts)


if __name__ == "__main__":
    main()
