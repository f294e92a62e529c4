"""Images with several things in them: items of the bundled Fashion-MNIST sample on grey canvases, with exact masks and
boxes, in the layouts of the Hub. Tests and benchmarks of segmentation and detection use them; nothing is downloaded.

    python -m benchmarks.shapes OUT [--train 2000] [--test 400] [--size 64] [--channels 1]

writes OUT/data/{train,test}-00000-of-00001.parquet (`datasets.load_dataset("OUT")`) and OUT/id2label.json. Columns:

image       canvas (size x size), grey or RGB, PNG
annotation  map of classes, PNG: 0 is background, class c of Fashion-MNIST is c + 1
image_id    number
objects     lists of the items in an image: id, category (ClassLabel), bbox (COCO: x, y, width, height in pixels),
            area (visible pixels), iscrowd (0), segmentation (COCO polygons around the visible pixels)

Training canvases are made of training images, test canvases of test images. A canvas follows from the seed, its split
and its number alone.
"""

import argparse
import io
import json
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from data.make_sample import LABEL_NAMES


CLASSES = tuple(LABEL_NAMES)
BACKGROUND = "background"
ITEM = 28  # pixels of an image of Fashion-MNIST
THRESHOLD = 32  # grey values above belong to the item
LEAST_VISIBLE = 0.4  # share of an item that must not be covered by later ones


def id2label() -> dict[int, str]:
    """Names of the classes in the maps."""
    return dict(enumerate((BACKGROUND, *CLASSES)))


def texture(generator: np.random.Generator, size: int) -> np.ndarray:
    """Smooth noise with a little grain, (size, size) of floats around 0.35."""
    coarse = generator.uniform(0, 255, (4, 4)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)) / 255
    return 0.15 + 0.4 * smooth + generator.normal(0, 0.04, (size, size))


def canvas(
    generator: np.random.Generator,
    images: np.ndarray,
    labels: np.ndarray,
    size: int = 64,
    channels: int = 1,
    most: int = 4,
) -> tuple[np.ndarray, list[dict]]:
    """One image of 1 to `most` items and what is in it.

    Args:
        generator: draws everything.
        images, labels: (items, 28, 28) uint8, and their classes.
        size: of the canvas in pixels, at least 35, the largest size of an item.
        channels: 1 (grey) or 3 (each item and the background tinted).

    Returns:
        The canvas, uint8 (size, size) or (size, size, 3), and for each item its `category`, `mask` (size, size), True
        where it is to be seen, and `bbox` (x, y, width, height) of that. Items that others cover almost wholly are not
        painted.
    """
    tint = (lambda: generator.uniform(0.5, 1, channels)) if channels == 3 else (lambda: np.ones(1))
    picture = texture(generator, size)[..., None] * tint()
    items: list[dict] = []
    for _ in range(generator.integers(1, most + 1)):
        index = generator.integers(len(images))
        scale = round(ITEM * generator.uniform(0.75, 1.25))
        item = np.asarray(Image.fromarray(images[index]).resize((scale, scale), Image.Resampling.BILINEAR))
        if generator.random() < 0.5:
            item = item[:, ::-1]
        row, column = generator.integers(0, size - scale + 1, 2)
        mask = np.zeros((size, size), dtype=bool)
        mask[row : row + scale, column : column + scale] = item > THRESHOLD
        tinted = tint()
        left = [other["mask"] & ~mask for other in items]
        if not mask.any() or any(m.sum() < LEAST_VISIBLE * o["whole"] for m, o in zip(left, items, strict=True)):
            continue
        for other, visible in zip(items, left, strict=True):
            other["mask"] = visible
        painted = np.zeros((size, size))
        painted[row : row + scale, column : column + scale] = item / 255
        picture = np.where(mask[..., None], painted[..., None] * tinted, picture)
        items.append({"category": int(labels[index]), "mask": mask, "whole": int(mask.sum())})
    for item in items:
        rows, columns = np.flatnonzero(item["mask"].any(1)), np.flatnonzero(item["mask"].any(0))
        x, y = int(columns[0]), int(rows[0])
        item["bbox"] = [float(v) for v in (x, y, columns[-1] - x + 1, rows[-1] - y + 1)]
    pixels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    return (pixels if channels == 3 else pixels[..., 0]), items


def class_map(items: list[dict], size: int) -> np.ndarray:
    """uint8 (size, size): 0 is background, class c is c + 1."""
    result = np.zeros((size, size), dtype=np.uint8)
    for item in items:
        result[item["mask"]] = item["category"] + 1
    return result


def polygons(mask: np.ndarray) -> list[list[float]]:
    """COCO polygons [x1, y1, x2, y2, ...] whose union is exactly `mask`: one rectangle for each run of equal rows."""
    found, open_runs = [], {}
    for y, row in enumerate([*mask, np.zeros(mask.shape[1], dtype=bool)]):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.view(np.int8), [0]])))
        runs = {(int(a), int(b)) for a, b in edges.reshape(-1, 2)}
        for run in [run for run in open_runs if run not in runs]:
            (left, right), top = run, open_runs.pop(run)
            found.append([float(v) for v in (left, top, right, top, right, y, left, y)])
        for run in runs:
            open_runs.setdefault(run, y)
    return found


def features() -> datasets.Features:
    item = {
        "id": datasets.Value("int64"),
        "area": datasets.Value("int64"),
        "bbox": datasets.List(datasets.Value("float32"), length=4),
        "category": datasets.ClassLabel(names=list(CLASSES)),
        "iscrowd": datasets.Value("int64"),
        "segmentation": datasets.List(datasets.List(datasets.Value("float32"))),
    }
    return datasets.Features(
        {
            "image": datasets.Image(),
            "annotation": datasets.Image(),
            "image_id": datasets.Value("int64"),
            "objects": {name: datasets.List(kind) for name, kind in item.items()},
        }
    )


def compose(split: str, count: int, size: int = 64, channels: int = 1, seed: int = 0, most: int = 4):
    """A dataset of `count` canvases with the columns above; `split` is train or test, of the bundled sample too."""
    data = Path(__file__).resolve().parent.parent / "data"
    sample = datasets.Dataset.from_parquet(str(next(data.glob(f"{split}-*.parquet"))), keep_in_memory=True)
    images, labels = np.stack([np.asarray(image) for image in sample["image"]]), np.asarray(sample["label"])
    rows, number = [], 0
    for index in range(count):
        generator = np.random.default_rng([seed, split == "test", index])
        picture, items = canvas(generator, images, labels, size, channels, most)
        objects = {name: [] for name in ("id", "area", "bbox", "category", "iscrowd", "segmentation")}
        for item in items:
            values = (number, int(item["mask"].sum()), item["bbox"], item["category"], 0, polygons(item["mask"]))
            for name, value in zip(objects, values, strict=True):
                objects[name].append(value)
            number += 1
        maps = class_map(items, size)
        rows.append({"image": _png(picture), "annotation": _png(maps), "image_id": index, "objects": objects})
    return datasets.Dataset.from_list(rows, features=features())


def _png(pixels: np.ndarray) -> dict:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def write(
    out: str | Path, train: int = 2000, test: int = 400, size: int = 64, channels: int = 1, seed: int = 0, most=4
):
    """Write a dataset as described at the top. Returns its folder."""
    out = Path(out)
    (out / "data").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        rows = compose(split, count, size, channels, seed, most)
        rows.to_parquet(str(out / "data" / f"{split}-00000-of-00001.parquet"))
    (out / "id2label.json").write_text(json.dumps(id2label(), indent=1) + "\n")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    for name, default in {"train": 2000, "test": 400, "size": 64, "channels": 1, "seed": 0, "most": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    print(write(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
