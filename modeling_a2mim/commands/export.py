"""Write a classifier or an encoder for another runtime: ONNX, or a program of torch.export.

a2mim export MODEL --format onnx
"""

import argparse
import logging
from pathlib import Path

from ..export.filenames import ONNX_FILE, PROGRAM_FILE
from ..utils.command import run_command


FORMATS = ("onnx", "torch")
ONNX_ONLY = ("opset", "int8", "calibration", "calibration_images", "evaluate")

logger = logging.getLogger("a2mim")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    made = argparse.ArgumentParser(
        prog="a2mim export",
        description="Write a classifier or an encoder for another runtime, checked against PyTorch.",
    )
    made.add_argument("model", metavar="MODEL", help="folder, or id on the Hub, of a classifier or an encoder")
    made.add_argument("--format", choices=FORMATS, default="onnx", help="default: %(default)s")
    made.add_argument(
        "--out",
        type=Path,
        help="the file (default: MODEL/onnx/model.onnx or MODEL/model.pt2; must be given for models of the Hub)",
    )
    made.add_argument("--overwrite", action="store_true", help="replace files that are there")
    made.add_argument("--revision", help="of a model on the Hub")
    made.add_argument(
        "--dynamic_size", action="store_true", help="take images of other sizes, too, where the encoder allows it"
    )
    made.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference to PyTorch, relative to the largest value of an output (default: %(default)s)",
    )
    made.add_argument("--opset", type=int, help="version of ONNX's operators (default: that of torch.onnx)")
    made.add_argument("--int8", action="store_true", help="also write model_int8.onnx, in 8-bit integers")
    made.add_argument(
        "--calibration",
        metavar="IMAGES",
        help="with --int8: images that set the ranges of activations, which lets convolutions be quantized as well",
    )
    made.add_argument(
        "--calibration_images", type=int, metavar="N", help="how many of them, drawn at random (default: 128)"
    )
    made.add_argument(
        "--evaluate",
        metavar="IMAGES",
        help="a folder of labelled images: accuracy of PyTorch and of the files, side by side",
    )
    return made


def main(argv: list[str] | None = None):
    """The command: write the files, and say how they compare with PyTorch."""
    run_command(build_parser(), export, argv)


def export(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming the one that is wrong."""
    path = _checked(args)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger.setLevel(logging.INFO)
    from ..analysis.runtimes import export_onnx, export_program, open_for_runtime

    options = {name: getattr(args, name) for name in ("dynamic_size", "tolerance", "overwrite")}
    source = open_for_runtime(args.model, args.dynamic_size, revision=args.revision)
    if args.format == "onnx":
        options |= {name: getattr(args, name) for name in ONNX_ONLY if getattr(args, name) is not None}
        done = export_onnx(source, path, **options)
    else:
        done = export_program(source, path, **options)
    for line in report(done.agreement, done.figures, args):
        logger.info("%s", line)
    for written in done.paths:
        logger.info("written: %s (%.1f MB)", written, written.stat().st_size / 1e6)


def _checked(args: argparse.Namespace) -> Path:
    """The file to write. Raises ValueError naming the argument that is wrong."""
    if args.format != "onnx" and (idle := [name for name in ONNX_ONLY if getattr(args, name)]):
        raise ValueError(f"{idle[0]}: is for --format onnx")
    if (args.calibration or args.calibration_images is not None) and not args.int8:
        raise ValueError("calibration: is for --int8")
    if args.calibration_images is not None and not args.calibration:
        raise ValueError("calibration_images: give --calibration, which names them")
    if not 0 < args.tolerance < 1:
        raise ValueError(f"tolerance: must be in (0, 1), got {args.tolerance}")
    end, default = (".onnx", ONNX_FILE) if args.format == "onnx" else (".pt2", PROGRAM_FILE)
    if args.out is None and not Path(args.model).is_dir():
        raise ValueError(f"out: {args.model} is no folder; say where the file goes")
    path = Path(args.model, default) if args.out is None else args.out
    if path.suffix != end:
        raise ValueError(f"out: expected the name of a file that ends in {end}, got {path}")
    return path


def report(agreement, figures: dict, args: argparse.Namespace) -> list[str]:
    """What was found, in lines."""
    names = ", ".join(f"{name} {error:.1e}" for name, error in agreement.errors.items())
    shapes = ", ".join("x".join(map(str, shape)) for shape in agreement.batches)
    lines = [
        f"largest difference to PyTorch, relative to the largest value: {names} (at most {args.tolerance:.0e}; images "
        f"{shapes})"
    ]
    if multiple := figures.get("float32", {}).get("size_multiple"):
        lines.append(
            "images may have any size" if multiple == 1 else f"images may have sides of multiples of {multiple} px"
        )
    if "int8" in figures:
        layers = ", ".join(f"{count} {name}" for name, count in figures["int8"]["layers"].items())
        count = figures["int8"]["calibration_images"]
        how = (
            f"ranges of {count} images" if count else "ranges as they come; --calibration quantizes convolutions, too"
        )
        lines.append(f"int8: {layers} quantized ({how})")
    for what, words in (("evaluation", "labelled images"), ("on_calibration_images", "images of --calibration")):
        for name, found in figures.get(what, {}).items():
            values = ", ".join(f"{key} {value:.4f}" for key, value in found.items() if key != "images")
            if values:
                lines.append(f"{name} on {found['images']:,} {words}: {values}")
    if "int8" in figures and not {"evaluation", "on_calibration_images"} & figures.keys():
        lines.append("int8: how it compares was not measured; --evaluate or --calibration names images for that")
    return lines


if __name__ == "__main__":
    main()
