"""`a2mim predict MODEL IMAGES... --out FILE`: what a trained model says of every image."""

import argparse
import logging
import os
from pathlib import Path

from ..utils.command import run_command
from .images import add_image_arguments, add_run_arguments, check_bytes, check_images, open_images, value_range


logger = logging.getLogger("a2mim")

SHOWN = 30  # classes in the summary


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="a2mim predict",
        description="What a trained model says of every image: the class and its scores (.csv, .parquet), a mask of "
        "classes (a folder), or objects (.json, COCO). A run that was killed goes on with the same command.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder, or id on the Hub, of a classifier, segmenter, detector"
    )
    add_image_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="file (.csv, .parquet, .json), of a segmenter a folder"
    )
    parser.add_argument("--threshold", help="score from which on a class counts (default: the model's own)")
    parser.add_argument("--positive_class", help="the class that --threshold is of, where an image has one class")
    add_run_arguments(parser)
    parser.add_argument("--num_workers", type=int, help="processes that read images (default: up to 4)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    return parser


def main(argv: list[str] | None = None):
    """Predict what the command line names."""
    run_command(build_parser(), run, argv, how_to_go_on, shared=True)


def run(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming the argument that is wrong."""
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if main_process else logging.WARNING)
    done = predict(args)
    if done is not None:
        summary(done)


def predict(args: argparse.Namespace):
    """The `Prediction`; `None` in all processes but the main one. Raises as `run`."""
    from ..inference.models import CLASSIFIER, DETECTOR, SEGMENTER, find_model
    from ..inference.options import RunOptions

    options = RunOptions(args.batch_size, args.num_workers, args.device, args.dtype, args.overwrite)
    check_images(args)
    hub_kwargs = {} if args.revision is None else {"revision": args.revision}
    model = find_model(args.model, value_range(args), args.pages, **hub_kwargs)
    if model.kind != CLASSIFIER and args.positive_class is not None:
        raise ValueError(f"positive_class: is for classifiers, and {args.model} holds a {model.kind}; leave it out")
    if model.kind == SEGMENTER and args.threshold is not None:
        raise ValueError(f"threshold: is for classifiers and detectors, and {args.model} holds a segmenter")
    if model.kind == SEGMENTER:
        from ..inference.segmentation import check_folder

        check_folder(args.out, args.images, args.overwrite)
    else:
        from ..inference.parts import check_out

        check_out(args.out, (".csv", ".parquet") if model.kind == CLASSIFIER else (".json",), args.overwrite)
    source = open_images(args)
    check_bytes(args, source, model.spec)
    names = [name if not os.path.exists(name) else Path(name).resolve().name for name in args.images]
    about = {"source": [names, args.split, args.dataset_config_name, args.dataset_revision, args.image_column_name]}
    logger.info("%s, %s: %s images", args.images[0], model.kind, f"{len(source):,}")
    if model.kind == CLASSIFIER:
        from ..inference.prediction import predict_classes

        return predict_classes(model, source, args.out, options, args.threshold, args.positive_class, about)
    if model.kind == DETECTOR:
        from ..inference.detection import predict_objects

        return predict_objects(model, source, args.out, options, args.threshold, about)
    from ..inference.segmentation import predict_maps

    return predict_maps(model, source, args.out, options, about)


def how_to_go_on(args: argparse.Namespace) -> str:
    """What is there of a run that was interrupted, and how it goes on."""
    from ..inference.parts import parts_of
    from ..inference.segmentation import TABLE

    folder = next((f for f in (parts_of(args.out), parts_of(args.out / TABLE)) if f.is_dir()), None)
    if folder is None:
        return "nothing was written"
    count = len(list(folder.glob("*.part")))
    return f"parts of the result in {folder}: {count}; the same command goes on from there"


def summary(done):
    """Say what a prediction has written."""
    counts = sorted(done.counts.items(), key=lambda item: -item[1])
    shown = [f"{name}: {count:,}" for name, count in counts[:SHOWN]]
    more = [f"{len(counts) - SHOWN} more classes"] if len(counts) > SHOWN else []
    lines = [f"{done.images:,} images, {done.broken:,} of them could not be read", *shown, *more]
    logger.info("%s", "; ".join(lines))
    logger.info("written to %s", done.path)


if __name__ == "__main__":
    main()
