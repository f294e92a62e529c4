"""What a pre-trained encoder is worth under a detector: instance segmentation of generated canvases (`shapes.py`) with
a small Mask R-CNN, from a pre-trained export and from random initialisation, in the same steps.

    python -m benchmarks.detection ENCODER [--output benchmarks/results/detection.json]

ENCODER is an export of `run_pretraining.py` for images of one channel, such as the one that `benchmarks/dense.py`
makes; without it, one is made first, on canvases without their annotations.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
import torchvision
import transformers
from transformers import HfArgumentParser

import run_pretraining
from modeling_a2mim.detection import DetectionArguments, DetectionModelArguments, DetectionTrainingArguments, run

from . import shapes


SIZE = 64  # of the canvases in pixels
ENCODER = ["--architecture", "convnext_atto", "--num_channels", "1", "--model_args"]
ENCODER += [json.dumps({"dims": [32, 64, 128, 256], "depths": [1, 1, 2, 1], "patch_size": 2})]
QUIET = ["--use_cpu", "--save_strategy", "no", "--eval_strategy", "no", "--disable_tqdm", "True"]
# Crops of about half the canvas, at its own resolution: an encoder of convolutions takes the whole one later.
PRETRAINING = "--image_size 32 --crop_scale 0.2 0.4 --mask_patch_size 4 --mask_site 0 --num_train_epochs 16 "
PRETRAINING += "--per_device_train_batch_size 128 --learning_rate 4e-3 --max_eval_samples 100"
# Anchors of 16 px and more, for things of 14 to 35 px, and as few regions as there is room for.
DETECTOR = f"--image_size {SIZE} --anchor_scale 4 --fpn_channels 32 --box_channels 128 "
DETECTOR += "--proposals_per_image 40 --rois_per_image 24 --detections_per_image 10 "
DETECTOR += "--per_device_train_batch_size 8 --per_device_eval_batch_size 25 --logging_steps 20"
FIGURES = ("map", "map_50", "mask_map", "mask_map_50")


def pretrain(data: Path, folder: Path):
    """An encoder pre-trained on the training canvases, without their annotations, in `folder`."""
    run_pretraining.main(
        [*ENCODER, *PRETRAINING.split(), *QUIET, "--dataset_name", str(data), "--output_dir", str(folder)]
    )


def fine_tune(source: list[str], data: Path, folder: Path, settings: str) -> dict[str, float]:
    """Average precision of a Mask R-CNN on an encoder.

    Args:
        source: the arguments that name the encoder.
        data: canvases, as `shapes.write` leaves them.
        folder: for the detector.
        settings: further arguments.
    """
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.INFO)
    parser = HfArgumentParser((DetectionModelArguments, DetectionArguments, DetectionTrainingArguments))
    argv = [*source, *DETECTOR.split(), *QUIET, "--dataset_name", str(data), "--output_dir", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()):  # the logs of training
        metrics = run(*parser.parse_args_into_dataclasses([*argv, *settings.split()]), masks=True)
    return {name: round(metrics[f"eval_{name}"], 4) for name in FIGURES}


def compare(
    encoder: Path, data: Path, out: Path, settings: str, rates: dict[str, float], seeds: int
) -> dict[str, dict[str, list[float]]]:
    """Average precision by figure and by where the encoder comes from, one value for each seed; one run on each
    core."""
    sources = {"random": ENCODER, "pre-trained": ["--model_name_or_path", str(encoder)]}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs = {
            (seed, name): pool.submit(
                fine_tune,
                source,
                data,
                out / f"{name}-{seed}",
                f"{settings} --seed {seed} --learning_rate {rates[name]}",
            )
            for seed in range(seeds)
            for name, source in sources.items()
        }
        for (seed, name), job in jobs.items():
            found = ", ".join(f"{figure} {value:.3f}" for figure, value in job.result().items())
            print(f"   seed {seed}, {name}: {found}", flush=True)
    return {
        figure: {name: [jobs[seed, name].result()[figure] for seed in range(seeds)] for name in sources}
        for figure in FIGURES
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("encoder", nargs="?", type=Path, help="an exported encoder; made if not given")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/detection.json"))
    parser.add_argument("--output_dir", type=Path, help="where detectors and encoder stay; default: nowhere")
    parser.add_argument("--images", type=int, default=400, help="annotated canvases to train on")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="from the pre-trained encoder")
    parser.add_argument("--random_learning_rate", type=float, help="from random initialisation; default: the same")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    start = time.time()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    rates = {"pre-trained": args.learning_rate, "random": args.random_learning_rate or args.learning_rate}
    with tempfile.TemporaryDirectory() as scratch:
        out = args.output_dir or Path(scratch)
        data = shapes.write(out / "canvases", train=4000, test=200, size=SIZE)
        encoder = args.encoder
        if encoder is None:
            encoder = out / "encoder"
            print("1. Pre-training on 4,000 canvases without annotations", flush=True)
            pretrain(data, encoder)
        print(f"2. Mask R-CNN, {args.images} annotated canvases, {args.steps} steps", flush=True)
        settings = f"--max_train_samples {args.images} --max_steps {args.steps}"
        figures = compare(encoder, data, out, settings, rates, args.seeds)
    print(f"\nAverage precision on 200 canvases, mean ± standard deviation of {args.seeds} seeds\n")
    for figure, values in figures.items():
        cells = (f"{name} {np.mean(v):.3f} ± {np.std(v, ddof=len(v) > 1):.3f}" for name, v in values.items())
        print(f"{figure:12}" + ", ".join(cells))
    record = {
        "command": " ".join(["python", "-m", "benchmarks.detection", *map(_nameless, sys.argv[1:])]),
        "images": args.images,
        "steps": args.steps,
        "learning_rates": rates,
        "detector": DETECTOR,
        "pretraining": PRETRAINING,
        "average_precision": figures,
        "seconds": round(time.time() - start),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision, timm, transformers, datasets)}
        | {"pycocotools": version("pycocotools"), "python": platform.python_version()},
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n")


def _nameless(argument: str) -> str:
    """An argument without the folders of this machine."""
    return Path(argument).name if "/" in argument else argument


if __name__ == "__main__":
    main()
