"""`a2mim embed`: a vector for each image, the nearest neighbors of some, and duplicates.

a2mim embed MODEL IMAGES --out vectors.parquet
accelerate launch -m a2mim embed MODEL IMAGES --out vectors.parquet
"""

import argparse
import logging
from pathlib import Path

from ..utils.command import run_command
from .images import (
    add_image_arguments,
    add_run_arguments,
    check_bytes,
    check_images,
    go_on_with_parts,
    open_images,
    value_range,
)


logger = logging.getLogger("a2mim")

QUERIES = 8


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="a2mim embed",
        description="Write a vector for each image, and find nearest neighbors and duplicates among them. With "
        "--neighbors or --duplicates, a file that the same model wrote for the same images is used as it is.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder, or id on the Hub, of an encoder or classifier")
    add_image_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="FILE.parquet or FILE.npy")
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument(
        "--layer",
        nargs="+",
        default=["pooled"],
        help="pooled: timm's own pooled features; cls: the class token; last: the mean of the last feature map; "
        "indices of feature maps (negative from the end); all of them. Several are concatenated (default: pooled). "
        "stages: mean and standard deviation of the maps of every stage",
    )
    layers.add_argument(
        "--probe_layers", nargs="+", help="the same by the names that fine-tuning has: all is --layer stages"
    )
    parser.add_argument(
        "--normalize", action="store_true", help="vectors of length 1; of stages, parts of equal length for each map"
    )
    parser.add_argument(
        "--store", choices=["float32", "float16"], default="float32", help="of the vectors in the file (%(default)s)"
    )
    add_run_arguments(parser)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, and remove what was found by it")
    parser.add_argument(
        "--neighbors", type=int, metavar="N", help="write a page and a table of the N nearest neighbors of some images"
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--queries", type=int, metavar="K", help=f"of so many, drawn with --seed (default: {QUERIES})")
    asked.add_argument("--query", nargs="+", metavar="FILE", help="of these image files, in the collection or not")
    parser.add_argument("--seed", type=int, help="draws the queries (default: 0)")
    parser.add_argument(
        "--duplicates", type=float, metavar="COSINE", help="write a table and a page of images that are as similar"
    )
    return parser


def embed(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming what is wrong."""
    from .. import __version__
    from ..arguments.model import probe_layer
    from ..data.display import stored_channels
    from ..data.fingerprints import changed_after, fingerprint_of_images
    from ..inference.embedding import ALL, STAGES, check_once, embedder, layer_names
    from ..inference.images import InferenceImages, open_every_image
    from ..inference.options import check_device
    from ..inference.parts import parts_of
    from ..inference.running import process_state
    from ..inference.similar_images import Collection, check_results, open_queries, write_results
    from ..inference.similarity import check_threshold
    from ..inference.vectors import check_beside, read_metadata, read_rows

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    state = process_state(args.device)
    check_device(args.device)
    if not state.is_main_process:
        logger.setLevel(logging.WARNING)
    check_numbers(args)
    check_images(args)
    if args.probe_layers is not None:
        # Refuses other names than its own
        check_once([probe_layer(layer) for layer in args.probe_layers], args.probe_layers, "probe_layers")
        if ALL in args.probe_layers and len(args.probe_layers) > 1:
            raise ValueError(f"probe_layers: {ALL} is read alone, got {' '.join(args.probe_layers)}")
        args.layer = [STAGES if layer == ALL else layer for layer in args.probe_layers]
    looks = args.neighbors is not None or args.duplicates is not None
    if layer_names(args.layer) == [STAGES] and looks and not args.normalize:
        raise ValueError(
            "normalize: the cosine of all stages would be that of the map of the largest values; add --normalize, "
            "with which each map weighs the same"
        )
    if args.duplicates is not None:
        check_threshold(args.duplicates, "duplicates")
    used = looks and args.out.is_file() and not args.overwrite
    if used and parts_of(args.out).exists():
        what = "%s: parts of a run that was killed are there, so that %s is not used as it is"
        logger.info(what, parts_of(args.out), args.out)
        used = False
    if not used:
        check_beside(args.out, args.overwrite)
    check_results(args.out, args.neighbors is not None, args.duplicates is not None, args.overwrite, anew=not used)

    source = open_images(args)
    model = embedder(
        *(args.model, args.layer, args.normalize, args.dtype, args.device or state.device),
        value_range=value_range(args),
        pages=args.pages,
        revision=args.revision,
    )
    check_bytes(args, source, model.transform.spec)
    images = InferenceImages(source, model.transform)
    metadata = {
        **model.description,
        "store": args.store,
        "images": fingerprint_of_images(source),
        "version": __version__,
    }
    asked = None if args.query is None else open_queries(args.query, model.transform)
    for file in args.query or ():
        check_bytes(args, open_every_image([file]), model.transform.spec)
    described = "{model} ({architecture}), layer {layer}, {dim} features".format(**metadata)
    logger.info("model: %s; images: %d", described, len(images))
    if used:
        check_same(args.out, read_metadata(args.out), metadata)
        if changed := changed_after(source, args.out.stat().st_mtime):
            raise ValueError(
                f"out: {len(changed)} files of the images, such as {Path(changed[0]).name}, were changed after "
                f"{args.out} was written, and may be others; give --overwrite or another --out"
            )
        logger.info("%s: is used as it is, of this model and these images", args.out)
    elif not run(args, model, images, metadata):
        return
    if looks and state.is_main_process:
        found, rows = read_rows(args.out)
        collection, queries = Collection(images, found, rows, stored_channels(model.model.config)), None
        if asked is not None:
            queries = collection.neighbors_of_files(asked, args.neighbors, model)
        elif args.neighbors is not None:
            drawn = collection.drawn_queries(args.queries or QUERIES, args.seed or 0)
            if len(drawn) < (args.queries or 0):
                logger.warning("queries: %d, as there are no more images", len(drawn))
            queries = collection.neighbors(drawn, args.neighbors)
        fewest = min((len(query.rows) for query in queries or ()), default=args.neighbors)
        if queries and fewest < args.neighbors:
            logger.warning("neighbors: %d, as there are no more images", fewest)
        for path in write_results(collection, args.out, queries, args.duplicates):
            logger.info("written: %s", path)


def run(args: argparse.Namespace, model, images, metadata: dict) -> bool:
    """Embed all images into the file. Returns whether this process is the one that goes on with it."""
    import json

    from ..data.fingerprints import fingerprint_of_images
    from ..inference import parts
    from ..inference.running import process_state, run_over
    from ..inference.similar_images import remove_results
    from ..inference.vectors import EMBEDDING, FORMATS, METADATA, columns, stored_as, write_file

    identity = {name: value for name, value in metadata.items() if name not in ("model", "version")}
    identity["images"] = fingerprint_of_images(images.source, times=True)  # parts go on with --overwrite as well
    with process_state(args.device).main_process_first():  # which makes the folder of the parts
        table = parts.PartedTable(args.out, len(images), identity, parts.ROWS_IN_PART, args.overwrite, FORMATS)

    def vectors(pixel_values, rows):
        return {EMBEDDING: stored_as(model.embed(pixel_values), args.store)}

    is_main = run_over(
        images,
        table,
        vectors,
        columns(model.dim, args.store),
        args.batch_size,
        args.num_workers,
        {METADATA: json.dumps(metadata)},
    )
    if is_main:
        for path in remove_results(args.out):
            logger.info("removed: %s, of the vectors that were there", path)
        paths, without = write_file(table, metadata)
        for path in paths:
            logger.info("written: %s", path)
        logger.info("%d vectors of %d %s", len(images) - without, model.dim, args.store)
        if without:
            logger.info("images without a vector, as they could not be read: %d", without)
    return is_main


def check_numbers(args: argparse.Namespace):
    """
    Raises:
        ValueError: naming the argument that is too small, or has no effect.
    """
    for name, least in (("batch_size", 1), ("num_workers", 0), ("neighbors", 1), ("queries", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")
    for name in ("queries", "query"):
        if getattr(args, name) is not None and args.neighbors is None:
            raise ValueError(f"{name}: needs --neighbors, which says how many")
    if args.seed is not None and (args.neighbors is None or args.query is not None):
        without = "with --query, which names the queries" if args.query is not None else "without --neighbors"
        raise ValueError(f"seed: has no effect {without}; leave it out")


def check_same(path: Path, found: dict, metadata: dict):
    """
    Raises:
        ValueError: naming `out`, if the vectors in a file are others than would be written.
    """
    names = [name for name in {**found, **metadata} if name not in ("model", "version")]
    if other := [name for name in names if found.get(name) != metadata.get(name)]:
        raise ValueError(
            f"out: {path} holds other vectors (other {', '.join(other)}); give what it was written with, another "
            "--out, or --overwrite"
        )


def main(argv: list[str] | None = None):
    """Run the command."""
    run_command(build_parser(), embed, argv, go_on_with_parts, shared=True)


if __name__ == "__main__":
    main()
