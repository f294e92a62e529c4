"""What commands have in common: which images, and for `predict` and `embed` by what model and how it is run."""

import argparse
from typing import Any

from ..arguments.analysis import DTYPES
from ..utils.value_range import PAGES


def add_image_arguments(parser: argparse.ArgumentParser, split: str = "of a dataset; needed where it has several"):
    """Add the images and what tells which of them. `split`: the help of that flag."""
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="a folder, a file of images, image files, or a dataset of the Hub"
    )
    parser.add_argument("--split", help=split)
    parser.add_argument("--dataset_config_name", help="configuration of a dataset on the Hub")
    parser.add_argument("--dataset_revision", help="branch, tag or commit of a dataset on the Hub")
    parser.add_argument("--image_column_name", help="column of the images; found if not given")


def add_run_arguments(parser: argparse.ArgumentParser):
    """Add what a model makes of images, and how it is run, but for `--num_workers`."""
    parser.add_argument(
        "--value_range",
        nargs="+",
        help="what stored values become 0 and 1: LOW HIGH, percentile LOW HIGH, or window (default: the model's own)",
    )
    parser.add_argument("--pages", choices=PAGES, help="what further pages of a file are (default: the model's own)")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--batch_size", type=int, default=64, help="images in a forward pass (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of autocast (default: %(default)s)")


def value_range(args: argparse.Namespace) -> Any:
    """The `ValueRange` that is given, or `None`. Raises ValueError naming it."""
    from ..utils.value_range import ValueRange

    if args.value_range is None:
        return None
    found = ValueRange.from_words([str(word) for word in args.value_range])
    if found is None:
        raise ValueError("value_range: auto is found while training; give LOW HIGH, or leave it out")
    return found


def check_bytes(args: argparse.Namespace, source: Any, spec: Any):
    """Refuse images of 8 bits for a model that keeps a range that they do not fill, unless a range is given.

    Args:
        args: of the command.
        source: rows whose images are selected.
        spec: what the model takes of them.

    Raises:
        ValueError: naming `value_range`.
    """
    from ..data.image_statistics import kinds_of_first, refuse_bytes

    if args.value_range is None and spec.value_range is not None:
        ways = "--value_range 0 255 takes them as they are, and the range of the model, if it is given, as it does"
        refuse_bytes(kinds_of_first(source, spec), spec.value_range, ways)


def check_images(args: argparse.Namespace):
    """Refuse flags that would have no effect on what is named, and a file that would be taken for images. Raises
    ValueError naming one."""
    from ..inference.options import check_local

    check_local(
        args.model, args.images, args.revision, args.dataset_revision, args.dataset_config_name, split=args.split
    )
    check_apart(args)


def check_apart(args: argparse.Namespace):
    """Refuse a file in a folder of images that would be taken for one of them, or for a shard of them, the next time.

    Raises:
        ValueError: naming `out`.
    """
    from ..data.formats.census import IMAGES, Census, format_of
    from ..data.formats.image_folders import LeftOut, walk
    from ..data.loading import local_path
    from ..utils.files import folder_around

    kind = format_of(args.out.name)
    for name in args.images:
        path = local_path(name)
        if kind is None or not folder_around(args.out, path):
            continue
        if kind in (IMAGES, Census.of(walk(str(path), LeftOut(str(path)))).choose(str(path), log=False)[0]):
            raise ValueError(
                f"out: {args.out} lies where the images are read from ({name}), and would be taken for images the "
                "next time; name a file outside"
            )


def open_images(args: argparse.Namespace) -> Any:
    """The rows of all images that are named. Raises as `inference.images.open_every_image`."""
    from ..inference.images import open_every_image

    return open_every_image(
        args.images,
        split=args.split,
        config_name=args.dataset_config_name,
        image_column=args.image_column_name,
        **({} if args.dataset_revision is None else {"revision": args.dataset_revision}),
    )


def go_on_with_parts(args: argparse.Namespace) -> str:
    """What to do about a run that was interrupted."""
    return "the same command goes on with the parts that are written"
