"""Make the bundled Fashion-MNIST sample from the idx files of Debian's package `dataset-fashion-mnist`.

    apt-get install dataset-fashion-mnist
    python data/make_sample.py

The same versions of datasets, pyarrow, numpy and Pillow write the same bytes again.
"""

import argparse
import gzip
import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


SOURCE = Path("/usr/share/datasets/fashion-mnist")
LABEL_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=LABEL_NAMES)})


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of unsigned bytes: 0, 0, type (8), rank, one big-endian uint32 per dimension, data."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    if raw[:3] != b"\0\0\x08" or rank == 0:
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = np.frombuffer(raw, ">u4", count=rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def pick_balanced(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `per_class` items of every class, in shuffled order."""
    picked = [rng.choice(np.flatnonzero(labels == i), per_class, replace=False) for i in range(len(LABEL_NAMES))]
    return rng.permutation(np.concatenate(picked))


def encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_split(source: Path, prefix: str, per_class: int, seed: int, target: Path) -> None:
    images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
    if len(images) != len(labels):
        raise ValueError(f"{prefix}: {len(images)} images but {len(labels)} labels")
    indices = pick_balanced(labels, per_class, np.random.default_rng(seed))
    columns = {
        "image": [{"bytes": encode_png(images[i]), "path": None} for i in indices],
        "label": labels[indices].tolist(),
    }
    datasets.Dataset.from_dict(columns, features=FEATURES).to_parquet(target)
    print(f"{target}: {len(indices)} images, {target.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the bundled class-balanced Fashion-MNIST sample.")
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the four idx .gz files")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--train-per-class", type=int, default=1000, help="training images of each class")
    parser.add_argument("--test-per-class", type=int, default=200, help="test images of each class")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice and the order")
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    write_split(args.source, "train", args.train_per_class, args.seed, args.output / "train-00000-of-00001.parquet")
    write_split(args.source, "t10k", args.test_per_class, args.seed, args.output / "test-00000-of-00001.parquet")


if __name__ == "__main__":
    main()
