"""Images per second on one core: files to normalised batches with masks, beside what others offer for that.

All variants of a set of images read the same files, take turns in one process in a new order each round, a batch at a
time; ratios are taken within a round. Time is that of the processor, over all threads, as the machine may be shared.
Printed are medians over the rounds, with the 10th and 90th percentile. The photographs are those of scikit-learn,
scaled, mirrored, brightened and tiled, each in another way, and saved as JPEG of quality 90.

    python benchmarks/loader.py [--sets photographs-500x375 tiff]
"""

import argparse
import functools
import itertools
import json
import os
import platform
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import tifffile
import torch
import torchvision
from datasets.utils.logging import disable_progress_bar
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomHorizontalFlip, RandomResizedCrop, v2
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
from modeling_a2mim.data.transforms import PreTrainTransform, random_crop  # noqa: E402
from modeling_a2mim.preparation.running import prepare  # noqa: E402
from modeling_a2mim.utils.value_range import ValueRange  # noqa: E402


FLOOR, ALONE = "decoder alone, at the scale used", "decode + resize alone"
SAMPLES = "ours, samples that are not put into batches"
BYTES, OURS = "ours, not normalised (what workers give)", "ours, normalised"
READY = "ours, prepared, normalised"
TORCHVISION = "torchvision v2, the same job"
FOLDER, SAME = "ImageFolder, its own crops", "ImageFolder, the same job"
STREAM = "datasets streaming, torchvision v2, the same job"
OTHERS = (TORCHVISION, SAME, FOLDER, STREAM)
CONFIG = A2MIMConfig.resnet("resnet50")  # 224 px
CROP = {"scale": (0.8, 1.0), "interpolation": InterpolationMode.BICUBIC}
SETS = {  # images, batch size and files; of TIFF, the shape and how it is compressed
    "photographs-500x375": (64, 256),
    "photographs-4000x3000": (6, 24),
    "tiff-1024x1024": (16, 32),
    "tiff-1024x1024-deflate": (16, 32),
    "tiff-256x256x13": (16, 32),
}
TITLES = {
    "photographs-500x375": "photographs, 500x375, JPEG",
    "photographs-4000x3000": "photographs, 4000x3000, JPEG",
    "tiff-1024x1024": "uint16 TIFF, 1024x1024",
    "tiff-1024x1024-deflate": "the same, deflate",
    "tiff-256x256x13": "uint16 TIFF, 256x256, 13 bands",
}
PREPARED_BATCHES = 8  # in a turn, as they take so little time


# Images


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


def write_tiffs(folder: Path, shape: tuple[int, ...], deflate: bool, count: int) -> None:
    """`folder/images/scans/*.tif` of 12 bits in uint16: smooth with noise; channels are interleaved."""
    (folder / "images" / "scans").mkdir(parents=True)
    options: dict[str, Any] = {"compression": "deflate", "predictor": True} if deflate else {}
    height, width, channels = (*shape, 1)[:3]
    for number in range(count):
        generator = np.random.default_rng(number)
        coarse = torch.from_numpy(generator.normal(size=(1, channels, height // 16, width // 16)))
        smooth = interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
        noise = generator.normal(size=smooth.shape)
        values = np.clip(2000 + 900 * smooth + 20 * noise, 16, 4059).astype(np.uint16).reshape(shape)
        path = folder / "images" / "scans" / f"{number:05}.tif"
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", **options)


def tiff_config(channels: int) -> A2MIMConfig:
    known = ValueRange((16.0,), (4059.0,)).to_config()
    mean, std = [0.5] * channels, [0.25] * channels
    return A2MIMConfig.resnet("resnet50", num_channels=channels, value_range=known, image_mean=mean, image_std=std)


def files(folder: Path) -> Iterator[Path]:
    return itertools.cycle(sorted((folder / "images").glob("*/*")))


# What is compared: each gives a batch at a time


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


def tifffile_and_resize(folder: Path, batch_size: int) -> Iterator:
    """The same crops, antialiased in float32; values are not scaled."""
    paths = files(folder)
    while True:
        for path in itertools.islice(paths, batch_size):
            values = tifffile.imread(path)
            values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
            top, left, height, width = random_crop(*values.shape[1:], CROP["scale"])
            crop = torch.from_numpy(values[:, top : top + height, left : left + width].astype(np.float32))
            interpolate(crop[None], CONFIG.input_size, mode="bicubic", antialias=True)
        yield


def batches(folder: Path, batch_size: int, config: A2MIMConfig = CONFIG, name: str = "images") -> Iterator:
    """As a data worker makes them: reading, order, crops, flips, masks, and what is reported of broken images."""
    source = load_images(str(folder / name), streaming=True, every_file=True)
    samples = ImageSamples(source, PreTrainTransform(config), "image")
    data = TrainingData(samples, batch_size, drop_last=True)
    for number in itertools.count():
        data.begin(number)
        for batch in DataLoader(samples, batch_sampler=data.batches, collate_fn=collate):
            data.trained(batch[REPORT])
            yield batch


def ours(folder: Path, batch_size: int, config: A2MIMConfig = CONFIG, name: str = "images") -> Iterator:
    transform, pixels = PreTrainTransform(config), None
    for batch in batches(folder, batch_size, config, name):
        pixels = transform.normalize(batch["pixel_values"], out=pixels)  # as the trainer does
        yield pixels


def samples_alone(folder: Path, batch_size: int, config: A2MIMConfig = CONFIG) -> Iterator:
    """Crop, flip and mask, without order, seeds and batches."""
    paths, transform = files(folder), PreTrainTransform(config)
    while True:
        for path in itertools.islice(paths, batch_size):
            transform.draw(path)
        yield


def several(variant: Callable, count: int) -> Callable:
    """So many batches at a time."""

    def batches_at_once(folder: Path, batch_size: int) -> Iterator:
        given = variant(folder, batch_size)
        while True:
            yield list(itertools.islice(given, count))

    return batches_at_once


def endless(loader: DataLoader) -> Iterator:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def image_folder(folder: Path, batch_size: int, **options) -> Iterator:
    normalize = Normalize(CONFIG.image_mean, CONFIG.image_std)
    crop = RandomResizedCrop(CONFIG.input_size, **options)
    dataset = ImageFolder(folder / "images", Compose([crop, RandomHorizontalFlip(), ToFloat(), normalize]))
    return endless(DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=0))


def same_crops(folder: Path, batch_size: int) -> Iterator:
    return image_folder(folder, batch_size, **CROP)


def v2_transforms() -> v2.Compose:
    """Of uint8 tensors, which torchvision recommends for speed."""
    crop = v2.RandomResizedCrop(CONFIG.input_size, antialias=True, **CROP)
    to_float, normalize = v2.ToDtype(torch.float32, scale=True), v2.Normalize(CONFIG.image_mean, CONFIG.image_std)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), to_float, normalize])


class JpegFiles(torch.utils.data.Dataset):
    """Decoded by torchvision."""

    def __init__(self, folder: Path):
        self.paths, self.transform = sorted((folder / "images").glob("*/*")), v2_transforms()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(decode_jpeg(read_file(str(self.paths[index])), torchvision.io.ImageReadMode.RGB))


def torchvision_v2(folder: Path, batch_size: int) -> Iterator:
    return endless(DataLoader(JpegFiles(folder), batch_size, shuffle=True, drop_last=True, num_workers=0))


def streaming(folder: Path, batch_size: int) -> Iterator:
    transform = v2.Compose([v2.PILToTensor(), v2_transforms()])
    rows = datasets.load_dataset("parquet", data_files=str(folder / "images.parquet"), split="train", streaming=True)
    rows = rows.shuffle(seed=0, buffer_size=1000).map(lambda row: {"image": transform(row["image"].convert("RGB"))})
    return endless(DataLoader(rows, batch_size, drop_last=True, num_workers=0))


PHOTOGRAPHS: dict[str, Callable[[Path, int], Iterator]] = {
    FLOOR: decoder_alone,
    ALONE: decode_and_resize,
    SAMPLES: samples_alone,
    BYTES: batches,
    OURS: ours,
    TORCHVISION: torchvision_v2,
    SAME: same_crops,
    FOLDER: image_folder,
    STREAM: streaming,
}


# Measuring


def measure(variants: dict[str, tuple[Callable, int]], folder: Path, batch_size: int, rounds: int) -> dict[str, list]:
    """Seconds of the processor an image, for each variant (with how many batches it gives at a time) and round."""
    loaders = {name: variant(folder, batch_size) for name, (variant, _) in variants.items()}
    for loader in loaders.values():
        next(loader)
    seconds: dict[str, list] = {name: [] for name in loaders}
    order = list(loaders)
    for _ in tqdm(range(rounds), unit="round", leave=False):
        random.shuffle(order)
        for name in order:
            start = time.process_time()
            next(loaders[name])
            seconds[name].append((time.process_time() - start) / batch_size / variants[name][1])
    return seconds


def ratios(seconds: dict[str, list], name: str, base: str) -> dict[str, float]:
    """How many times as fast as `base`: median, 10th and 90th percentile."""
    low, median, high = np.percentile(np.array(seconds[base]) / np.array(seconds[name]), [10, 50, 90])
    return {"median": round(float(median), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def measure_set(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Write the images of a set and measure all variants of it."""
    batch_size, count = SETS[name]
    kind, size, *more = name.split("-")
    sides = tuple(int(side) for side in size.split("x"))
    if kind == "photographs":
        write_images(folder, sides[:2], count)
        variants = {key: (variant, 1) for key, variant in PHOTOGRAPHS.items()}
        if sides[0] > 1000:
            prepare([folder / "images"], folder / "prepared")
            prepared = several(functools.partial(ours, name="prepared"), PREPARED_BATCHES)
            variants[READY] = (prepared, PREPARED_BATCHES)
    else:
        write_tiffs(folder, sides, bool(more), count)
        config = tiff_config((*sides, 1)[2])
        variants = {ALONE: (tifffile_and_resize, 1)}
        own = {SAMPLES: samples_alone, BYTES: batches, OURS: ours}
        variants |= {key: (functools.partial(variant, config=config), 1) for key, variant in own.items()}
    seconds = measure(variants, folder, batch_size, rounds)
    bases = [base for base in (ALONE, *OTHERS) if base in seconds]
    rows = {
        variant: {"images_per_second": round(1 / float(np.median(seconds[variant])), 1)}
        | {base: ratios(seconds, variant, base) for base in bases}
        for variant in seconds
    }
    sizes = [path.stat().st_size for path in (folder / "images").glob("*/*")]
    return {"batch_size": batch_size, "files": count, "mean_kilobytes": round(np.mean(sizes) / 1000), "variants": rows}


# Tables


HEAD = """\
| one core | images/s | of decode + resize alone: samples | in batches | normalised | times torchvision v2 \
| times `ImageFolder`, the same job | times `ImageFolder`, its own crops | times `datasets` streaming |
|---|---|---|---|---|---|---|---|---|"""


def table(sets: dict[str, Any]) -> str:
    """Ours beside the others, a set or what is prepared of it in a row."""
    rows = [HEAD]
    for name, found in sets.items():
        for suffix, done in (("", OURS), (", prepared", READY)):
            if done not in found["variants"]:
                continue
            last = found["variants"][done]
            steps = [None] * 3 if suffix else [found["variants"][step][ALONE] for step in (SAMPLES, BYTES, OURS)]
            cells = [_cell(ratio) for ratio in (*steps, *(last.get(base) for base in OTHERS))]
            rows.append(f"| {TITLES[name]}{suffix} | {last['images_per_second']:.0f} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _cell(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return ""
    digits = 2 if ratio["median"] < 10 else 0
    return "{median:.{d}f} ({low:.{d}f}-{high:.{d}f})".format(**ratio, d=digits)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rounds", type=int, default=11, help="rounds in which every variant takes its turn")
    parser.add_argument("--output", type=Path, help="write the results there as JSON, and the table beside it")
    args = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    disable_progress_bar()
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")

    sets = {}
    for name in args.sets:
        with tempfile.TemporaryDirectory() as folder:
            sets[name] = measure_set(name, Path(folder), args.rounds)
        print(f"\n{name}, {sets[name]['mean_kilobytes']} kB a file, batches of {sets[name]['batch_size']}", flush=True)
        for variant, row in sets[name]["variants"].items():
            shown = [f"{base} {_cell(ratio)}" for base, ratio in list(row.items())[1:]]
            print(f"  {variant}: {row['images_per_second']:.1f} images/s; x {'; x '.join(shown)}", flush=True)
    print("\n" + table(sets))

    if args.output:
        record = {
            "command": " ".join(["python", "benchmarks/loader.py", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores (shared), 1 thread, {platform.system()}",
            "versions": {m.__name__: m.__version__ for m in (torch, torchvision, datasets, PIL, tifffile)}
            | {"python": platform.python_version()},
            "spread": f"median, 10th and 90th percentile of {args.rounds} rounds of a batch; seconds of the processor",
            "sets": sets,
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(table(sets))


if __name__ == "__main__":
    main()
