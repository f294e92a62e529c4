"""What pre-training is worth for segmentation and detection: a small UperNet or Mask R-CNN on a small ViT, from a
pre-trained encoder and from random weights, for the same steps on the same annotated images. The images are canvases
of Fashion-MNIST items (`benchmarks/shapes.py`); the encoder is pre-trained on the bundled items without their labels,
as by `benchmarks/transfer.py`.

    python -m benchmarks.dense [--tasks instance-segmentation] [--output benchmarks/results/dense.json]
"""

import argparse
import contextlib
import io
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
from typing import NamedTuple

import datasets
import torch

import run_pretraining
from modeling_a2mim.arguments import parse
from modeling_a2mim.metrics import mean_and_interval, paired_difference
from modeling_a2mim.records import versions
from modeling_a2mim.tasks import load_task

from . import shapes
from .demo import SMALL
from .transfer import commands


ENCODER = ["--architecture", "vit_tiny_patch16_224", "--num_channels", "1", "--model_args"]
ENCODER += [json.dumps(SMALL["vit_tiny_patch16_224"]["model_args"])]
QUIET = ["--use_cpu", "--save_strategy", "no", "--eval_strategy", "no", "--disable_tqdm", "True"]
ARMS = ("random", "pre-trained")


class Setting(NamedTuple):
    """Of a task: size of the canvases in pixels, the most items in one, steps, images in a step, learning rate, other
    flags, and the figures that are kept, of which the first is the one to look at."""

    size: int
    most: int
    steps: int
    batch_size: int
    learning_rate: float
    flags: str
    figures: tuple[str, ...]


SETTINGS = {
    "semantic-segmentation": Setting(
        40,
        1,
        1000,
        16,
        1e-3,
        "--head_channels 32 --auxiliary_weight 0 --resize_scale 0.9 1.1",
        ("mean_iou", "mean_accuracy", "overall_accuracy"),
    ),
    # Anchors of 16 px and more, for items of 21 to 35 px, and as few regions as there is room for.
    "instance-segmentation": Setting(
        40,
        1,
        150,
        16,
        1e-3,
        "--anchor_scale 4 --fpn_channels 32 --box_channels 128 --proposals_per_image 20 --rois_per_image 16 "
        "--detections_per_image 10",
        ("mask_map", "mask_map_50", "map", "map_50"),
    ),
}


def pretrain(out: Path, passes: int):
    """An encoder that saw the bundled training items so many times, but none of their labels."""
    _, (script, *argv) = next((o, c) for o, c in commands("ViT", out.parent) if o.name == "ViT-A2MIM")
    assert script == "run_pretraining.py"
    run_pretraining.main([*argv, "--num_train_epochs", str(passes), "--output_dir", str(out)])


def fine_tune(task: str, source: list[str], data: Path, out: Path, args, seed: int) -> dict[str, float]:
    """The figures of one run of `run_finetune.py --task`."""
    datasets.disable_progress_bars()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    setting, (arguments, run) = SETTINGS[task], load_task(task)
    flags = ["--image_size", str(setting.size), "--dataset_name", str(data), *setting.flags.split()]
    flags += ["--max_train_samples", str(args.annotated), "--max_eval_samples", str(args.evaluated)]
    flags += ["--max_steps", str(setting.steps), "--per_device_train_batch_size", str(setting.batch_size)]
    flags += ["--learning_rate", str(setting.learning_rate), "--logging_steps", "25", "--seed", str(seed)]
    argv = [*source, *flags, *QUIET, "--output_dir", str(out)]
    with contextlib.redirect_stdout(io.StringIO()):  # the logs of training
        metrics = run(*parse(*arguments, argv, "run_finetune.py", task))
    return {name: round(metrics[f"eval_{name}"], 4) for name in setting.figures}


def compare(task: str, encoder: Path, args) -> dict:
    """Both arms of a task for all seeds, one run on each core: settings, figures of each seed, mean and difference."""
    setting, start = SETTINGS[task], time.time()
    folder, found = args.output_dir / task, {arm: [] for arm in ARMS}
    data = shapes.write(folder / "data", train=args.annotated, size=setting.size, most=setting.most)
    sources = dict(zip(ARMS, (ENCODER, ["--model_name_or_path", str(encoder)]), strict=True))
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs = {
            (seed, arm): pool.submit(fine_tune, task, source, data, folder / f"{arm}-{seed}", args, seed)
            for seed in args.seeds
            for arm, source in sources.items()
        }
        for (seed, arm), job in jobs.items():
            found[arm].append(job.result())
            print(f"{task}, seed {seed}, {arm}: {found[arm][-1]}", flush=True)
    figure = setting.figures[0]
    random, pretrained = ([one[figure] for one in found[arm]] for arm in ARMS)
    summary = {arm: str(mean_and_interval(v)) for arm, v in zip(ARMS, (random, pretrained), strict=True)}
    summary["difference"] = str(paired_difference(random, pretrained))
    print(f"{task}, {figure}: " + ", ".join(f"{name} {value}" for name, value in summary.items()), flush=True)
    return {
        "command": " ".join(["python", "-m", "benchmarks.dense", *sys.argv[1:]]),
        "settings": setting._asdict() | {name: getattr(args, name) for name in ("seeds", "annotated", "evaluated")},
        "results": found,
        figure: summary,
        "seconds": round(time.time() - start),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--output", type=Path, help="a JSON file; what it holds of other tasks stays")
    parser.add_argument("--output_dir", type=Path, default=Path("demo/dense"))
    parser.add_argument("--encoder", type=Path, help="an encoder that `pretrain` made earlier")
    parser.add_argument("--passes", type=int, default=6, help="of pre-training, if an encoder has to be made")
    parser.add_argument("--annotated", type=int, default=1000, help="training images with annotations")
    parser.add_argument("--evaluated", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    encoder = args.encoder or args.output_dir / "encoder"
    if args.encoder is None:
        shutil.rmtree(encoder, ignore_errors=True)
        pretrain(encoder, args.passes)
    for task in args.tasks:
        record = compare(task, encoder, args)
        if args.output is not None:
            records = json.loads(args.output.read_text()) if args.output.is_file() else {}
            args.output.write_text(json.dumps(records | {task: record}, indent=2) + "\n")


if __name__ == "__main__":
    main()
