"""What pre-training is worth for semantic segmentation: the same small UperNet on a ViT, from a pre-trained encoder
and from random weights, for the same steps on the same annotated images. The images are canvases of Fashion-MNIST
items (`benchmarks/shapes.py`); the encoder is pre-trained on the bundled items without their labels, as by
`benchmarks/transfer.py`.

    python -m benchmarks.dense [--output benchmarks/results/dense.json]
"""

import argparse
import json
import logging
import os
import platform
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
import transformers

import run_pretraining
from modeling_a2mim import segmentation
from modeling_a2mim.arguments import parse

from . import shapes
from .demo import SMALL
from .transfer import commands


SIZE = 40  # of the canvases in pixels: one item each
ENCODER = ["--architecture", "vit_tiny_patch16_224", "--num_channels", "1", "--model_args"]
ENCODER += [json.dumps(SMALL["vit_tiny_patch16_224"]["model_args"])]
QUIET = ["--use_cpu", "--save_strategy", "no", "--eval_strategy", "no", "--disable_tqdm", "True"]
ARMS = ("random", "pre-trained")


def pretrain(out: Path):
    """An encoder that saw the bundled training items, but none of their labels."""
    _, (script, *argv) = next((o, c) for o, c in commands("ViT", out.parent) if o.name == "ViT-A2MIM")
    assert script == "run_pretraining.py"
    run_pretraining.main([*argv, "--output_dir", str(out)])


def segment(source: list[str], data: Path, out: Path, args, seed: int) -> dict:
    """The metrics of one run of `run_finetune.py --task semantic-segmentation`."""
    datasets.disable_progress_bars()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    flags = ["--image_size", str(SIZE), "--dataset_name", str(data), "--max_train_samples", str(args.annotated)]
    flags += ["--max_eval_samples", str(args.evaluated), "--max_steps", str(args.steps), "--logging_steps", "25"]
    flags += ["--per_device_train_batch_size", str(args.batch_size), "--learning_rate", str(args.learning_rate)]
    flags += ["--head_channels", "32", "--auxiliary_weight", "0", "--resize_scale", "0.9", "1.1"]
    kinds = segmentation.SegmentationModelArguments, segmentation.SegmentationArguments
    values = parse(
        *kinds,
        segmentation.SegmentationTrainingArguments,
        [*source, *flags, *QUIET, "--seed", str(seed), "--output_dir", str(out)],
        "run_finetune.py",
        "semantic-segmentation",
    )
    return segmentation.run(*values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="a JSON file")
    parser.add_argument("--output_dir", type=Path, default=Path("demo/dense"))
    parser.add_argument("--encoder", type=Path, help="an encoder that `pretrain` made earlier")
    parser.add_argument("--annotated", type=int, default=1000, help="training images with annotations")
    parser.add_argument("--evaluated", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    start, data = time.time(), shapes.write(args.output_dir / "data", train=1000, size=SIZE, most=1)
    encoder = args.encoder or args.output_dir / "encoder"
    if args.encoder is None:
        shutil.rmtree(encoder, ignore_errors=True)
        pretrain(encoder)
    trained, found = time.time(), {arm: [] for arm in ARMS}
    sources = dict(zip(ARMS, (ENCODER, ["--model_name_or_path", str(encoder)]), strict=True))
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:  # one run on each core
        jobs = {
            (seed, arm): pool.submit(segment, source, data, args.output_dir / f"{arm}-{seed}", args, seed)
            for seed in range(args.seeds)
            for arm, source in sources.items()
        }
        for (seed, arm), job in jobs.items():
            metrics = job.result()
            kept = ("eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy", "train_loss")
            found[arm].append({name.removeprefix("eval_"): round(metrics[name], 4) for name in kept})
            print(f"seed {seed}, {arm}: {found[arm][-1]}", flush=True)
            _write(args, found, start, trained)
    for arm in ARMS:
        values = [one["mean_iou"] for one in found[arm]]
        print(f"{arm:12} mean IoU {np.mean(values):.3f} ± {np.std(values, ddof=len(values) > 1):.3f}")


def _write(args, found: dict, start: float, trained: float):
    if args.output is None:
        return
    record = {
        "command": " ".join(["python", "-m", "benchmarks.dense", *sys.argv[1:]]),
        "task": "semantic-segmentation",
        "settings": {k: v for k, v in vars(args).items() if not isinstance(v, Path) and v is not None},
        "results": found,
        "seconds": {"pre-training": round(trained - start), "all": round(time.time() - start)},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {m.__name__: m.__version__ for m in (torch, timm, transformers, datasets)}
        | {"python": platform.python_version()},
    }
    args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
