"""`a2mim app`: a page that shows what models make of an image that is uploaded.

    a2mim app MODEL [MODEL ...] [--embeddings vectors.parquet --images IMAGES]

needs gradio (`pip install 'a2mim[app]'`). `model_cards/space/` makes a Space of it.
"""

import argparse
import contextlib
import importlib.util
import ipaddress
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from ..utils.command import run_command


logger = logging.getLogger("a2mim")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="a2mim app",
        description="A page that shows what models make of an image that is uploaded: what they reconstruct of it "
        "(pre-training models), how they classify it (classifiers), and which of many images are like it "
        "(--embeddings).",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder, or id on the Hub")
    parser.add_argument("--names", nargs="+", help="what to call them (default: the last part of each)")
    parser.add_argument("--embeddings", metavar="FILE", help="written by a2mim embed with one of the models")
    parser.add_argument(
        "--images", nargs="+", help="those that were embedded, named as then; the page shows them to its visitors"
    )
    parser.add_argument("--split", help="of --images, as for a2mim embed")
    parser.add_argument("--dataset_config_name", help="of --images, as for a2mim embed")
    parser.add_argument("--image_column_name", help="of --images, as for a2mim embed")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines, too (default: %(default)s)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--share", action="store_true", help="make a public link through gradio's servers, for whoever has it"
    )
    return parser


def main(argv: list[str] | None = None):
    """Serve the page for the models that the command line names, until the process is told to end."""
    run_command(build_parser(), serve, argv)


def serve(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming what is missing."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)  # others would log each request
    with private_cache():
        page = prepare(args)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)  # or it would write into a folder that is being removed


def prepare(args: argparse.Namespace) -> Any:
    """The page of these arguments, a `gradio.Blocks` that is served. Raises ValueError naming what is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio: pip install 'a2mim[app]'")
    for given, needed in (("embeddings", "images"), ("images", "embeddings")):
        if getattr(args, given) and not getattr(args, needed):
            raise ValueError(f"{given}: is for neighbors, which need --{needed} as well")
    for option in ("split", "dataset_config_name", "image_column_name"):
        if getattr(args, option) and not args.images:
            raise ValueError(f"{option}: is of --images; give these as well, or leave it out")
    import torch

    from ..inference.vectors import read_metadata
    from ..page.layout import build_page, launch
    from ..page.models import check_used, open_models
    from ..page.neighbors import NeighborIndex

    if args.embeddings:
        read_metadata(args.embeddings)  # which fails before models are loaded
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    models = open_models(args.models, args.names, device)
    index = None
    if args.embeddings:
        index = NeighborIndex(
            args.embeddings,
            args.images,
            args.models,
            [model.name for model in models],
            device,
            split=args.split,
            config_name=args.dataset_config_name,
            image_column=args.image_column_name,
        )
    check_used(models, None if index is None else index.model, args.embeddings)
    page = build_page(models, index)
    warn(args)
    launch(page, server_name=args.host, server_port=args.port, share=args.share)
    return page


def warn(args: argparse.Namespace):
    """Say who will see the page, where that is more than this machine."""
    seen = "upload images to it" + (", and see those of --images" if args.images else "")
    if args.share:
        logger.warning("share: the page becomes public: whoever has the link can %s", seen)
    try:
        here = ipaddress.ip_address(args.host).is_loopback
    except ValueError:
        here = args.host == "localhost"
    if not here:
        logger.warning("host: whoever reaches this machine as %s can %s", args.host, seen)


@contextlib.contextmanager
def private_cache() -> Iterator[None]:
    """While this lasts, gradio keeps what is uploaded in a folder that only this user may read, which is removed in
    the end, after SIGTERM as well; it sends nothing to its makers, and lets browsers keep no history of runs."""
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    before = dict(os.environ)
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with tempfile.TemporaryDirectory(prefix="a2mim-app-", dir=before.get("GRADIO_TEMP_DIR")) as folder:
            # Gradio reads them when it is imported, and when a page is launched.
            os.environ.update(settings, GRADIO_TEMP_DIR=folder)
            yield
    finally:
        for name in (*settings, "GRADIO_TEMP_DIR"):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
        signal.signal(signal.SIGTERM, handler)


if __name__ == "__main__":
    main()
