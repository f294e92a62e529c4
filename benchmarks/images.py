"""The real images that the benchmarks learn from, written to benchmarks/data/ (which git ignores): as .npz files, all
images of a set in one array, or with --folders as files in a folder for each class, as users have them.

    python benchmarks/images.py [--folders] [--sets ...]

- solar_cells: 2,624 photographs of 300 x 300 px, grey, from `pip install elpv-dataset` (Buerhop-Lutz et al., 2018;
  CC BY-NC-SA 4.0: for measuring only, never part of this repository). 75% for training, 25% for testing, stratified by
  probability of a defect and type of cell; a cell counts as defective above a probability of 0.5. In the .npz 128 px.
- fashion_mnist: the bundled sample, 10,000 images for training and 2,000 for testing, 28 x 28 px, grey, MIT.
- fashion_mnist_60000: all of it, 60,000 and 10,000 images, if asked for; from Debian's dataset-fashion-mnist.
- stamps: 713 photographs and drawings of things in colour, in 8 classes (animals, food, ...), from Debian's
  tuxpaint-stamps-default (GPL 2), if asked for; 75% for training, stratified by class. In the .npz 128 px.
- photographs: 2,212 tiles of 128 px of 12 photographs in colour, without labels (those in the file say which
  photograph), from Debian's mate-backgrounds, if asked for. The last two photographs are for testing.
"""

import argparse
import gzip
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image


FOLDER = Path(__file__).resolve().parent / "data"
SAMPLE = FOLDER.parent.parent / "data"
WHOLE = Path("/usr/share/datasets/fashion-mnist")
NAMES = ("T-shirt-top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SOLAR_SIZE = 128
SOLAR_CLASSES = ("functional", "defective")
STAMPS, LEAST_STAMPS, STAMP_SIZE = Path("/usr/share/tuxpaint/stamps"), 30, 128  # of a class
PHOTOGRAPHS, TILE = Path("/usr/share/backgrounds/mate/nature"), 128  # pixels


def solar_cells() -> dict[str, tuple[list[Image.Image], np.ndarray, list[str]]]:
    """{split: (images, labels, names of the classes)}"""
    from elpv_dataset.utils import load_dataset
    from sklearn.model_selection import train_test_split

    images, probability, kinds = load_dataset()
    strata = [f"{kind} {value:.2f}" for kind, value in zip(kinds, probability, strict=True)]
    labels = (probability > 0.5).astype(np.int64)
    train, test = train_test_split(np.arange(len(images)), test_size=0.25, stratify=strata, random_state=0)
    return {
        split: ([Image.fromarray(images[i]) for i in sorted(rows)], labels[sorted(rows)], list(SOLAR_CLASSES))
        for split, rows in (("train", train), ("test", test))
    }


def fashion_mnist() -> dict[str, tuple[list[Image.Image], np.ndarray, list[str]]]:
    """{split: (images, labels, names of the classes)}"""
    import json

    import pyarrow.parquet as pq

    found = {}
    for split in ("train", "test"):
        table = pq.read_table(next(SAMPLE.glob(f"{split}-*.parquet")))
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        images = [Image.open(io.BytesIO(row["bytes"])) for row in table["image"].to_pylist()]
        names = [name.replace("/", "-") for name in features["label"]["names"]]
        found[split] = (images, table["label"].to_numpy(), names)
    return found


def whole_fashion_mnist(folder: Path = WHOLE) -> dict[str, tuple[list[Image.Image], np.ndarray, list[str]]]:
    """{split: (images, labels, names of the classes)}"""
    if not folder.is_dir():
        sys.exit("--sets fashion_mnist_60000: needs `apt-get install dataset-fashion-mnist`, or that package unpacked")
    found = {}
    for split, name in (("train", "train"), ("test", "t10k")):
        pixels, labels = (
            np.frombuffer(gzip.decompress((folder / f"{name}-{kind}-ubyte.gz").read_bytes())[start:], np.uint8)
            for kind, start in (("images-idx3", 16), ("labels-idx1", 8))
        )
        images = [Image.fromarray(image) for image in pixels.reshape(-1, 28, 28)]
        found[split] = (images, labels.astype(np.int64), list(NAMES))
    return found


def stamps(folder: Path = STAMPS) -> dict[str, tuple[list[Image.Image], np.ndarray, list[str]]]:
    """{split: (images, labels, names of the classes)}"""
    from sklearn.model_selection import train_test_split

    if not folder.is_dir():
        sys.exit("--sets stamps: needs `apt-get install tuxpaint-stamps-default`, or that package unpacked")
    found = {place.name: sorted(place.rglob("*.png")) for place in sorted(folder.iterdir())}
    found = {name: files for name, files in found.items() if len(files) >= LEAST_STAMPS}
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found.values()])
    images = [on_white(Image.open(file)) for files in found.values() for file in files]
    train, test = train_test_split(np.arange(len(images)), test_size=0.25, stratify=labels, random_state=0)
    return {
        split: ([images[i] for i in sorted(rows)], labels[sorted(rows)], list(found))
        for split, rows in (("train", train), ("test", test))
    }


def on_white(image: Image.Image) -> Image.Image:
    """A square RGB image with this one in the middle; white is where it is transparent, and beside it."""
    image, side = image.convert("RGBA"), max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.convert("RGB")


def photographs(folder: Path = PHOTOGRAPHS) -> dict[str, tuple[list[Image.Image], np.ndarray, list[str]]]:
    """{split: (tiles, number of the photograph of each, names of the photographs)}"""
    if not folder.is_dir():
        sys.exit("--sets photographs: needs `apt-get install mate-backgrounds`, or that package unpacked")
    files, tiles, labels = sorted(folder.glob("*.jpg")), [], []
    for number, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        for top in range(0, image.height - TILE + 1, TILE):
            for left in range(0, image.width - TILE + 1, TILE):
                tiles.append(image.crop((left, top, left + TILE, top + TILE)))
                labels.append(number)
    of, held_out = np.array(labels), np.array(labels) >= len(files) - 2
    return {
        split: ([tiles[i] for i in np.flatnonzero(rows)], of[rows], [file.stem for file in files])
        for split, rows in (("train", ~held_out), ("test", held_out))
    }


SETS = {
    "solar_cells": (solar_cells, SOLAR_SIZE),
    "fashion_mnist": (fashion_mnist, None),
    "fashion_mnist_60000": (whole_fashion_mnist, None),
    "stamps": (stamps, STAMP_SIZE),
    "photographs": (photographs, None),
}


def write_arrays(name: str, folder: Path = FOLDER) -> Path:
    """Write NAME.npz: `train`, `test` uint8, (images, height, width) of grey ones and (images, height, width, 3) of
    those in colour, and `train_labels`, `test_labels`."""
    load, size = SETS[name]
    arrays = {}
    for split, (images, labels, _) in load().items():
        small = [i if size is None else i.resize((size, size), Image.Resampling.BOX) for i in images]
        arrays |= {split: np.stack([np.asarray(i) for i in small]), f"{split}_labels": labels}
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


def write_folders(name: str, folder: Path = FOLDER) -> Path:
    """Write NAME/SPLIT/CLASS/00001.png."""
    for split, (images, labels, names) in SETS[name][0]().items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / name / split / names[label] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder / name


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS)[:2])
    parser.add_argument("--folders", action="store_true", help="write files as well")
    args = parser.parse_args()
    for name in args.sets:
        print(write_arrays(name))
        if args.folders:
            print(write_folders(name))


if __name__ == "__main__":
    main()
