"""What pre-training is worth for segmentation and detection: a small UperNet or Mask R-CNN on a small ViT, from a
pre-trained encoder and from random weights, for the same steps on the same annotated images. The images are canvases
of Fashion-MNIST items (`benchmarks/shapes.py`): many without annotations, on which the encoder is pre-trained, and few
with.

    python -m benchmarks.dense [--tasks instance-segmentation] [--output benchmarks/results/dense.json]

An hour and a quarter on 2 cores, half of it pre-training, which is not done again while its encoder is there.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import shlex
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import datasets
import torch
from matplotlib.figure import Figure

import run_finetune
import run_pretraining
from modeling_a2mim.evaluation.summary import mean_and_interval, paired_difference
from modeling_a2mim.export.record import versions

from . import shapes


SIZE = 40  # of the canvases, pixels
ENCODER = ["--architecture", "vit_tiny_patch16_224", "--num_channels", "1", "--image_size", str(SIZE), "--model_args"]
ENCODER += [json.dumps({"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3})]
PRETRAINING = ["--mask_patch_size", "8", "--per_device_train_batch_size", "128", "--learning_rate", "2e-3"]
QUIET = ["--use_cpu", "--save_strategy", "no", "--eval_strategy", "no", "--disable_tqdm", "True"]
ARMS = ("random", "pre-trained")
SHOWN = {"mean_iou": "mean IoU", "map": "AP of boxes", "mask_map": "AP of masks"}  # in the picture
RECORDED = ("seeds", "passes", "unlabelled", "evaluated")


class Setting(NamedTuple):
    """Of a task: training images with annotations, steps, images in a step, learning rate, other flags, and what is
    measured, the most telling first."""

    annotated: int
    steps: int
    batch_size: int
    learning_rate: float
    flags: str
    figures: tuple[str, ...]


# Pilots of one or two seeds: for random weights 3e-3 is the best rate of 1e-3, 3e-3 and 6e-3 (detection) or 1e-2.
SETTINGS = {
    "semantic-segmentation": Setting(
        annotated=100,
        steps=1000,
        batch_size=16,
        learning_rate=3e-3,
        flags="--head_channels 32 --auxiliary_weight 0 --resize_scale 0.9 1.1",
        figures=("mean_iou", "mean_accuracy", "overall_accuracy"),
    ),
    # Anchors of 16 px and more, for items of 21 to 35 px, few regions, and small heads, to leave much to the
    # encoder. With 100 annotated images, or 600 steps, detectors gained nothing from a shorter pre-trained one.
    "instance-segmentation": Setting(
        annotated=1000,
        steps=1500,
        batch_size=16,
        learning_rate=3e-3,
        flags="--anchor_scale 4 --fpn_channels 16 --box_channels 32 --head_norm --proposals_per_image 20 "
        "--rois_per_image 16 --detections_per_image 10",
        figures=("mask_map", "mask_map_50", "map", "map_50"),
    ),
}


def pretrain(out: Path, canvases: int, passes: int):
    """An encoder that saw so many canvases so many times, and no annotations. They are others than the annotated ones,
    composed of the same items."""
    shutil.rmtree(out, ignore_errors=True)
    data = out.parent / "unlabelled"
    (data / "data").mkdir(parents=True, exist_ok=True)
    rows = shapes.compose("train", canvases, SIZE, seed=1, most=1).select_columns("image")
    rows.to_parquet(str(data / "data" / "train-00000-of-00001.parquet"))
    flags = ["--dataset_name", str(data), "--num_train_epochs", str(passes), "--output_dir", str(out)]
    run_pretraining.main([*ENCODER, *PRETRAINING, *QUIET, *flags])


def setting_of(task: str, args) -> Setting:
    """Of a task, with the learning rate of the command line if that names one."""
    setting = SETTINGS[task]
    return setting if args.learning_rate is None else setting._replace(learning_rate=args.learning_rate)


def fine_tune(task: str, source: list[str], data: Path, out: Path, args, seed: int) -> dict[str, float]:
    """The figures of one run of `run_finetune.py --task`."""
    datasets.disable_progress_bars()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    setting = setting_of(task, args)
    flags = ["--dataset_name", str(data), *setting.flags.split()]
    flags += ["--max_train_samples", str(setting.annotated), "--max_eval_samples", str(args.evaluated)]
    flags += ["--max_steps", str(setting.steps), "--per_device_train_batch_size", str(setting.batch_size)]
    flags += ["--learning_rate", str(setting.learning_rate), "--logging_steps", "25", "--seed", str(seed)]
    argv = [*source, *flags, *QUIET, "--output_dir", str(out)]
    with contextlib.redirect_stdout(io.StringIO()):  # the logs of training
        metrics = run_finetune.main(["--task", task, *argv])
    return {name: round(metrics[f"eval_{name}"], 4) for name in setting.figures}


def compare(task: str, encoder: Path, args) -> dict:
    """Both arms of a task for all seeds, one run on each core: settings, figures of each seed, mean and difference."""
    setting, start = setting_of(task, args), time.time()
    folder, found = args.output_dir / task, {arm: [] for arm in ARMS}
    data = shapes.write(folder / "data", train=setting.annotated, test=args.evaluated, size=SIZE, most=1)
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
    summary = {}
    for figure in setting.figures:
        random, pretrained = ([one[figure] for one in found[arm]] for arm in ARMS)
        arms = {arm: str(mean_and_interval(v)) for arm, v in zip(ARMS, (random, pretrained), strict=True)}
        summary[figure] = arms | {"difference": str(paired_difference(random, pretrained))}
        print(f"{task}, {figure}: " + ", ".join(f"{k} {v}" for k, v in summary[figure].items()), flush=True)
    return {
        "command": " ".join(["python", "-m", "benchmarks.dense", *sys.argv[1:]]),
        "pretraining": shlex.join(["python", "run_pretraining.py", *ENCODER, *PRETRAINING]),
        "settings": setting._asdict() | {name: getattr(args, name) for name in RECORDED},
        "results": found,
        "summary": summary,
        "seconds": round(time.time() - start),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions(),
    }


def draw(records: dict[str, dict], path: Path):
    """Each figure of each seed, from random weights at the left and pre-trained ones at the right."""
    panels = [(name, figure) for name, record in records.items() for figure in record["summary"] if figure in SHOWN]
    canvas = Figure(figsize=(3 * len(panels), 3.2), layout="constrained")
    for axes, (name, figure) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for row in zip(*(records[name]["results"][arm] for arm in ARMS), strict=True):
            axes.plot(ARMS, [one[figure] for one in row], "o-", color="C0", alpha=0.7)
        axes.set_xlim(-0.3, 1.3)
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
        axes.set_ylabel(SHOWN[figure])
        setting = records[name]["settings"]
        title = f"{name.split(',')[0]},\n{setting['steps']} steps, rate {setting['learning_rate']:g}"
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    canvas.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--output", type=Path, help="a JSON file, beside which goes a PNG; its other tasks stay")
    parser.add_argument("--output_dir", type=Path, default=Path("demo/dense"))
    parser.add_argument("--passes", type=int, default=80, help="of pre-training over the unlabelled images")
    parser.add_argument("--unlabelled", type=int, default=20_000, help="images to pre-train on")
    parser.add_argument(
        "--learning_rate", type=float, help="another one; its results go beside those of the usual one"
    )
    parser.add_argument("--evaluated", type=int, default=1000, help="test images with annotations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    encoder = args.output_dir / f"encoder-{args.unlabelled}x{args.passes}"
    if not (encoder / "model.safetensors").is_file():
        pretrain(encoder, args.unlabelled, args.passes)
    for task in args.tasks:
        record = compare(task, encoder, args)
        if args.output is not None:
            records = json.loads(args.output.read_text()) if args.output.is_file() else {}
            records[task if args.learning_rate is None else f"{task}, {args.learning_rate:g}"] = record
            args.output.write_text(json.dumps(records, indent=2) + "\n")
            draw(records, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
