"""Files of images in every format, and what is read of them."""

import contextlib
import functools
import http.server
import io
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from modeling_a2mim.arguments.data import ClassificationArguments, PreTrainingDataArguments
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.sources import DatasetSource
from modeling_a2mim.data.splits import (
    class_names,
    find_evaluation_split,
    image_samples,
    load_labelled_split,
    load_training_split,
)
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})


def encoded(number, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), number, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def number_of(value):
    return int(np.asarray(Image.open(io.BytesIO(value["bytes"])))[0, 0, 0])


def write_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(number))
    return folder


def write_parquet(path, count, columns=("image",)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {c: [{"bytes": encoded(n + 100 * k)} for n in range(count)] for k, c in enumerate(columns)}
    rows = datasets.Dataset.from_dict(values, datasets.Features({c: datasets.Image() for c in columns}))
    with open(path, "wb") as file:  # a name is no pattern or URL here
        rows.to_parquet(file)
    return path


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def numbers(labels=False, **arguments):
    """The images that a script would train on; with labels, (names of the classes, (image, label) of each)."""
    args = (ClassificationArguments if labels else PreTrainingDataArguments)(read_retries=0, **arguments)
    dataset = load_labelled_split(args, True) if labels else load_training_split(args, needs="images")
    column, names = class_names(dataset) if labels else (None, None)
    source = image_samples(args, dataset, None, 0, column).source
    rows = source.read(list(range(len(source))))
    return (names, [(number_of(image), label) for image, label in rows]) if labels else [number_of(i) for i, _ in rows]


def lines(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def write_shards(folder, shards=3, rows=40, group=7):
    """Parquet files whose images and labels are their numbers, and whether these are odd."""
    folder.mkdir()
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        table = datasets.Dataset.from_dict(
            {"image": [{"bytes": encoded(n), "path": None} for n in numbers], "label": [n % 2 for n in numbers]},
            features=FEATURES,
        )
        table.to_parquet(folder / f"train-{shard}.parquet", batch_size=group)
    return folder


def write_tars(folder, shards=3, rows=40):
    """The same as WebDataset tars."""
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        pairs = [(f"images/{n:04d}", encoded(n), str(n % 2).encode()) for n in numbers]
        files = [file for name, png, cls in pairs for file in ((f"{name}.png", png), (f"{name}.cls", cls))]
        write_tar(folder / f"train-{shard}.tar", files)
    return folder


def check_rows(source, count=120, label=None):
    """Every row alone, all backwards, and some in between are what was written."""
    assert len(source) == int(source.chunks.sum()) == count
    column = next(c for c, kind in source.features.items() if isinstance(kind, datasets.Image))
    source = source.select(column, label)
    assert [number_of(source.read([row])[0][0]) for row in range(count)] == list(range(count))
    rows = [count - 1, 0, 30, 31, 7]
    assert [number_of(image) for image, _ in source.read(rows)] == rows
    assert [found for _, found in source.read(rows)] == [None if label is None else row % 2 for row in rows]
    first = source.take(25)
    assert len(first) == 25
    assert number_of(first.read([24])[0][0]) == 24
    with pytest.raises(IndexError):
        first.read([25])


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that knows ranges, and fails as often as it is told."""

    failures: list[int] = []
    requests: list[tuple[str, str | None]] = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.failures:
            self.send_error(self.failures.pop())
            return
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        if wanted is None:
            self.send_response(200)
        else:
            first, last = wanted.removeprefix("bytes=").split("-")
            total, first = len(data), int(first)
            data = data[first : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serving(folder):
    """The URL of a server of the files in a folder; see `Ranges`."""
    Ranges.failures, Ranges.requests = [], []
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Ranges, directory=str(folder))
    ) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def make_images(folder: Path, *names: str, root: str = "images") -> Path:
    """Images by their names below a folder, each of its own grey."""
    for number, name in enumerate(names):
        path = folder / root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(path, "PNG")
    return folder / root


def names(root: Path, dataset) -> list[str]:
    """The images of what was loaded, relative to its folder, sorted."""
    rows = (dataset.dataset if isinstance(dataset, DatasetSource) else dataset).data["image"]
    indices = getattr(dataset.dataset if isinstance(dataset, DatasetSource) else dataset, "_indices", None)
    rows = rows.take(indices.column(0)) if indices is not None else rows
    return sorted(os.path.relpath(row["path"], root) for row in rows.to_pylist())


def both(root: Path, **options) -> Dataset:
    """What is loaded, which is the same streamed."""
    prepared, streamed = (load_images(root, streaming=streaming, **options) for streaming in (False, True))
    assert isinstance(streamed, DatasetSource)
    assert names(root, prepared) == names(root, streamed)
    assert prepared.features == streamed.dataset.features
    others = [column for column in prepared.column_names if column != "image"]
    assert [prepared[c] for c in others] == [streamed.dataset[c] for c in others]
    return prepared


def classes(root: Path, streaming: bool = False, **options) -> dict[str, int]:
    """The classes that are trained on, and how many images each has."""
    arguments = ClassificationArguments(streaming=streaming, **options)
    dataset = load_labelled_split(arguments, True)
    column, found = class_names(dataset)
    return dict(zip(found, LabelledImages(dataset, None, column, found).counts(dataset), strict=True))


def metadata(folder: Path, *rows: str, name: str = "metadata.csv"):
    (folder / name).write_text("\n".join(rows) + "\n")


def evaluated(**arguments):
    """The images that a classifier would be evaluated on."""
    args = ClassificationArguments(**arguments)
    return load_labelled_split(args, False, split=find_evaluation_split(args))
