"""What `a2mim prepare` costs and saves: time and bytes, and images per second of one core before and after, beside
torchvision's ImageFolder on the original files. The photographs are those of `loader.py`; the variants take turns.

    python benchmarks/prepare.py [--size 4000x3000] [--count 60]
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import PIL
import torch
import torchvision
from loader import CONFIG, image_folder, write_images
from torch.utils.data import DataLoader


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim.data.dataset import ImageSamples, collate  # noqa: E402
from modeling_a2mim.data.loading import load_images  # noqa: E402
from modeling_a2mim.data.progress import TrainingData  # noqa: E402
from modeling_a2mim.data.transforms import PreTrainTransform  # noqa: E402
from modeling_a2mim.preparation.running import prepare  # noqa: E402


BEFORE, AFTER, FOLDER = "ours, the files", "ours, prepared", "ImageFolder, the files"


def ours(source: str, batch_size: int, count: int) -> float:
    """Images per second of one process, normalised."""
    transform = PreTrainTransform(CONFIG)
    samples = ImageSamples(load_images(source, streaming=True, every_file=True), transform, "image")
    data = TrainingData(samples, batch_size, drop_last=True)
    data.begin(0)
    started, seen = time.perf_counter(), 0
    for batch in DataLoader(samples, batch_sampler=data.batches, collate_fn=collate):
        transform.normalize(batch["pixel_values"])
        seen += len(batch["pixel_values"])
        if seen >= count:
            break
    return seen / (time.perf_counter() - started)


def folder(root: Path, batch_size: int, count: int) -> float:
    """Images per second of ImageFolder with its own RandomResizedCrop."""
    batches = image_folder(root, batch_size)
    started, seen = time.perf_counter(), 0
    while seen < count:
        next(batches)
        seen += batch_size
    return seen / (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="4000x3000")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "prepare.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_images(root, (width, height), args.count)
        images, out = root / "images", root / "prepared"
        started = time.perf_counter()
        report = prepare([images], out)
        seconds = time.perf_counter() - started
        rounds: dict[str, list[float]] = {BEFORE: [], AFTER: [], FOLDER: []}
        runs = {
            BEFORE: lambda: ours(str(images), args.batch_size, args.count),
            AFTER: lambda: ours(str(out), args.batch_size, args.count),
            FOLDER: lambda: folder(root, args.batch_size, args.count),
        }
        for _ in range(args.rounds):
            for name in np.random.permutation(list(runs)):
                rounds[name].append(runs[name]())
    rates = {name: float(np.median(values)) for name, values in rounds.items()}
    ratio = [after / before for after, before in zip(rounds[AFTER], rounds[FOLDER], strict=True)]
    result = {
        "command": f"python benchmarks/prepare.py --size {args.size} --count {args.count}",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, shared",
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision, datasets, PIL)},
        "size": args.size,
        "images": args.count,
        "seconds": round(seconds, 2),
        "bytes_before": report["bytes_before"],
        "bytes_after": report["bytes_after"],
        "images_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "prepared_by_image_folder": round(float(np.median(ratio)), 1),
    }
    print(json.dumps(result, indent=1))
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
