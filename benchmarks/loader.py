"""Images per second on one core: JPEGs to normalised batches with masks, beside what others offer for that.

All variants read the same files, take turns in one process in a new order each round, a batch at a time; ratios are
taken within a round. Printed are medians over the rounds, with the 10th and 90th percentile. The photographs are those
of scikit-learn, scaled, mirrored, brightened and tiled, each in another way, and saved as JPEG of quality 90.

    python benchmarks/loader.py [--sizes 500x375 4000x3000]
"""

import argparse
import itertools
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import PIL
import torch
import torchvision
from datasets.utils.logging import disable_progress_bar
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomHorizontalFlip, RandomResizedCrop
from torchvision.transforms import ToTensor as ToFloat
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim import A2MIMConfig  # noqa: E402
from modeling_a2mim.data.dataset import REPORT, ImageSamples, collate  # noqa: E402
from modeling_a2mim.data.decoding import MIN_REDUCTION, open_image, resized_crop, upright_size  # noqa: E402
from modeling_a2mim.data.loading import load_images  # noqa: E402
from modeling_a2mim.data.pixel_spec import PixelSpec  # noqa: E402
from modeling_a2mim.data.progress import TrainingData  # noqa: E402
from modeling_a2mim.data.transforms import PreTrainTransform  # noqa: E402


FLOOR, ALONE = "JPEG decoder alone, at the scale used", "decode + resize alone"
OURS, BYTES = "ours: parquet to normalised batches", "ours: parquet to batches of bytes, as workers give them"
FOLDER, SAME = "ImageFolder + RandomResizedCrop", "ImageFolder, our crops and bicubic"
STREAM = "datasets streaming, the same transforms"
CONFIG = A2MIMConfig.resnet("resnet50")  # 224 px


def photograph(number: int, size: tuple[int, int]) -> Image.Image:
    """Always the same for a number: a piece of a photograph, scaled, and tiled if that does not fill the size."""
    generator = np.random.default_rng(number)
    source = Image.fromarray(load_sample_images().images[number % 2])
    scale = generator.uniform(1, 2) if size[0] > 1000 else generator.uniform(0.9, 1.2)
    source = source.resize([round(side * scale) for side in source.size], Image.Resampling.BICUBIC)
    source = ImageEnhance.Brightness(source).enhance(generator.uniform(0.8, 1.2))
    tile = np.asarray(source)[:, :: generator.choice([-1, 1])]
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]])
    left, top = generator.integers(0, 100, 2)
    repeats = -(-(size[1] + top) // tile.shape[0]), -(-(size[0] + left) // tile.shape[1]), 1
    return Image.fromarray(np.tile(tile, repeats)[top : top + size[1], left : left + size[0]])


def write_images(folder: Path, size: tuple[int, int], count: int) -> None:
    """`folder/images/photos/*.jpg`, and the same bytes in `folder/images.parquet`."""
    paths = [folder / "images" / "photos" / f"{number:05}.jpg" for number in range(count)]
    paths[0].parent.mkdir(parents=True)
    for number, path in enumerate(tqdm(paths, desc="photographs", unit="file", leave=False)):
        photograph(number, size).save(path, quality=90)
    rows = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "images.parquet", batch_size=100)


def files(folder: Path) -> Iterator[Path]:
    return itertools.cycle(sorted((folder / "images" / "photos").iterdir()))


def decoder_alone(folder: Path, batch_size: int) -> Iterator:
    paths = files(folder)
    while True:
        for path in itertools.islice(paths, batch_size):
            image = Image.open(path)
            scale = int(min(image.width / CONFIG.input_size[1], image.height / CONFIG.input_size[0]) / MIN_REDUCTION)
            image.draft(None, (image.width // max(scale, 1), image.height // max(scale, 1)))
            image.load()
        yield


def decode_and_resize(folder: Path, batch_size: int) -> Iterator:
    paths = files(folder)
    while True:
        for path in itertools.islice(paths, batch_size):
            image = open_image(path)
            resized_crop(image, (0, 0, *upright_size(image)), CONFIG.input_size, PixelSpec(3))
        yield


def batches(folder: Path, batch_size: int) -> Iterator:
    """As a data worker makes them: reading, order, crops, flips, masks, and what is reported of broken images."""
    source = load_images(folder / "images.parquet", streaming=True)
    samples = ImageSamples(source, PreTrainTransform(CONFIG), "image")
    data = TrainingData(samples, batch_size, drop_last=True)
    for number in itertools.count():
        data.begin(number)
        for batch in DataLoader(samples, batch_sampler=data.batches, collate_fn=collate):
            data.trained(batch[REPORT])
            yield batch


def ours(folder: Path, batch_size: int) -> Iterator:
    transform, pixels = PreTrainTransform(CONFIG), None
    for batch in batches(folder, batch_size):
        pixels = transform.normalize(batch["pixel_values"], out=pixels)  # as the trainer does
        yield pixels


def plain_transforms(**options) -> Compose:
    normalize = Normalize(CONFIG.image_mean, CONFIG.image_std)
    return Compose([RandomResizedCrop(CONFIG.input_size, **options), RandomHorizontalFlip(), ToFloat(), normalize])


def image_folder(folder: Path, batch_size: int, **options) -> Iterator:
    dataset = ImageFolder(folder / "images", plain_transforms(**options))
    loader = DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=0)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def same_crops(folder: Path, batch_size: int) -> Iterator:
    return image_folder(folder, batch_size, scale=(0.8, 1.0), interpolation=InterpolationMode.BICUBIC)


def streaming(folder: Path, batch_size: int) -> Iterator:
    transform = plain_transforms()
    rows = datasets.load_dataset("parquet", data_files=str(folder / "images.parquet"), split="train", streaming=True)
    rows = rows.shuffle(seed=0, buffer_size=1000).map(lambda row: {"image": transform(row["image"].convert("RGB"))})
    loader = DataLoader(rows, batch_size, drop_last=True, num_workers=0)
    return itertools.chain.from_iterable(itertools.repeat(loader))


VARIANTS: dict[str, Callable[[Path, int], Iterator]] = {
    FLOOR: decoder_alone,
    ALONE: decode_and_resize,
    BYTES: batches,
    OURS: ours,
    FOLDER: image_folder,
    SAME: same_crops,
    STREAM: streaming,
}


def measure(folder: Path, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds an image, for each variant and round."""
    loaders = {name: variant(folder, batch_size) for name, variant in VARIANTS.items()}
    for loader in loaders.values():
        next(loader)
    seconds = {name: [] for name in loaders}
    order = list(loaders)
    for _ in tqdm(range(rounds), unit="round", leave=False):
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            next(loaders[name])
            seconds[name].append((time.perf_counter() - start) / batch_size)
    return seconds


def ratios(seconds: dict[str, list[float]], name: str, base: str) -> dict[str, float]:
    """How many times as fast as `base`: median, 10th and 90th percentile."""
    low, median, high = np.percentile(np.array(seconds[base]) / np.array(seconds[name]), [10, 50, 90])
    return {"median": round(float(median), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["500x375", "4000x3000"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which every variant takes its turn")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    disable_progress_bar()

    table = {}
    for name in args.sizes:
        size = tuple(int(side) for side in name.split("x"))
        large = size[0] * size[1] > 1_000_000
        batch_size, count = (16, 48) if large else (64, 1280)
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), size, count)
            seconds = measure(Path(folder), batch_size, args.rounds)
            kilobytes = sum(path.stat().st_size for path in Path(folder).rglob("*.jpg")) / count / 1000
        rows = {
            variant: {"images_per_second": round(1 / float(np.median(seconds[variant])), 1)}
            | {base: ratios(seconds, variant, base) for base in (FOLDER, SAME, STREAM, ALONE)}
            for variant in seconds
        }
        table[name] = {"batch_size": batch_size, "files": count, "mean_kilobytes": round(kilobytes), "variants": rows}
        print(f"\n{name}, {kilobytes:.0f} kB a file, batches of {batch_size}\n")
        print(f"| one core | images/s | x {FOLDER} | x {SAME} | x {STREAM} | x {ALONE} |\n|---|---|---|---|---|---|")
        for variant, row in rows.items():
            cells = [f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in list(row.values())[1:]]
            print(f"| {variant} | {row['images_per_second']:.1f} | {' | '.join(cells)} |", flush=True)

    if args.output:
        record = {
            "command": " ".join(["python", "benchmarks/loader.py", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, {platform.system()}",
            "versions": {m.__name__: m.__version__ for m in (torch, torchvision, datasets, PIL)}
            | {"python": platform.python_version()},
            "spread": f"median, 10th and 90th percentile of {args.rounds} rounds of one batch",
            "sizes": table,
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
