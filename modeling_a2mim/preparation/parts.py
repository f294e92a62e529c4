"""Rows to parts of the shards, by several processes; a run that was killed goes on with those that are missing."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset as Rows
from datasets import Features, Image, Value
from torch.utils.data import DataLoader, Dataset
from transformers.utils.logging import tqdm

from ..data.arrays import BrokenImage
from ..utils.files import atomic_write, write_json
from .duplicates import hash_of, perceptual_hash
from .encoding import as_type, decode, encode
from .opening import Split
from .options import Options
from .pixels import pieces_of
from .statistics import Statistics


WORK = ".prepare"  # folder in OUT, hidden from whatever looks for images
MANIFEST = "manifest.json"
ROWS_IN_PART = 1000
ROWS_IN_GROUP = 100  # of parquet, as `datasets` writes images: what is read at once
GROUP_BYTES = 2**25
READ_ROWS = 50  # that are read at once
FILE = "file"
ROWS = {  # what is known of each piece, kept beside the images until all are there
    "file": pa.string(),  # of the image
    "piece": pa.string(),  # name of what was written, none if nothing was
    "error": pa.string(),  # why not
    "left_out": pa.int64(),  # tiles of the image without content, told with its first row
    "before": pa.int64(),  # bytes of the image, told with its first row
    "after": pa.int64(),
    "kept": pa.bool_(),  # a JPEG that is as it was
    "lost": pa.list_(pa.string()),  # what of the image is not written, told with its first row
    "unknown": pa.float64(),  # the value of pixels of which nothing is known
    "alpha": pa.bool_(),  # its last channel is transparency
    "hash": pa.binary(),
    "perceptual": pa.uint64(),
}


class Part(NamedTuple):
    """So many rows of a split.

    Attributes:
        number: among all parts.
        split: its name.
        rows: numbers of the rows.
    """

    number: int
    split: str
    rows: np.ndarray


def plan_parts(splits: dict[str, Split], orders: dict[str, np.ndarray], most: int = ROWS_IN_PART) -> list[Part]:
    """Parts of all splits: of at most `most` rows, and so many parts that several processes have some each, whatever
    their number is."""
    parts: list[Part] = []
    for name, split in splits.items():
        count = len(split.source)
        size = min(most, max(16, -(-count // 16)))
        order = orders.get(name, np.arange(count))
        parts += [Part(len(parts) + place, name, order[i : i + size]) for place, i in enumerate(range(0, count, size))]
    return parts


class PartFolder:
    """The parts in OUT, while not all of them are there.

    Args:
        out: the folder that is to be prepared.
        identity: what the parts depend on, as JSON.
        overwrite: discard parts of another identity.

    Raises:
        ValueError: naming `out`, if it holds parts of something else.
    """

    def __init__(self, out: Path, identity: dict[str, Any], overwrite: bool):
        self.path = out / WORK
        manifest, identity = self.path / MANIFEST, json.loads(json.dumps(identity))
        if manifest.exists():
            before = json.loads(manifest.read_text(encoding="utf-8"))
            if differing := sorted(k for k in identity | before if identity.get(k) != before.get(k)):
                if not overwrite:
                    raise ValueError(
                        f"out: {out} holds parts of another run (other {', '.join(differing)}); continue that one "
                        "with the same arguments, or give --overwrite, which discards them"
                    )
                shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(manifest, identity)

    def images(self, part: int) -> Path:
        """The file of the images of a part, which is the last one to be written."""
        return self.path / f"{part:06d}.part"

    def rows(self, part: int) -> Path:
        """What is known of each piece of a part (see `ROWS`)."""
        return self.path / f"{part:06d}.rows"

    def statistics(self, part: int) -> Path:
        """What was counted of the pixels of a part."""
        return self.path / f"{part:06d}.npz"

    def known(self, part: int) -> list[dict[str, Any]]:
        """The rows of `rows`."""
        return pq.read_table(self.rows(part)).to_pylist()


def features_of(columns: Features, source_file: str = FILE) -> Features:
    """The columns that are written: the image, where it is from, and those of the source."""
    return Features({"image": Image(), source_file: Value("string"), **columns})


def file_column(columns: Features) -> str:
    """The column that says where an image is from, whose name none of the source has."""
    return FILE if FILE not in columns else "source_file"


class PartWriter(Dataset):
    """Writes a part when its number is asked for, in whatever process that is."""

    def __init__(self, splits: dict[str, Split], parts: Sequence[Part], folder: PartFolder, options: Options):
        self.splits, self.parts, self.folder, self.options = splits, parts, folder, options

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> int:
        """Write a part. Returns how many rows of the source it is of."""
        part = self.parts[number]
        split = self.splits[part.split]
        column = file_column(split.columns)
        features = features_of(split.columns, column)
        known: list[dict[str, Any]] = []
        statistics = Statistics()
        with atomic_write(self.folder.images(number)) as temporary:
            with pq.ParquetWriter(temporary, features.arrow_schema, compression="zstd") as writer:
                group: list[dict[str, Any]] = []
                size = 0
                for first in range(0, len(part.rows), READ_ROWS):
                    for row, length in self._rows(
                        split, part.rows[first : first + READ_ROWS], column, known, statistics
                    ):
                        group.append(row)
                        size += length
                        if len(group) == ROWS_IN_GROUP or size >= GROUP_BYTES:
                            write_group(writer, group, features)
                            group, size = [], 0
                if group:
                    write_group(writer, group, features)
            with atomic_write(self.folder.statistics(number)) as place:
                statistics.save(place)
            with atomic_write(self.folder.rows(number)) as place:
                pq.write_table(pa.Table.from_pylist(known, pa.schema(list(ROWS.items()))), place)
        return len(part.rows)

    def _rows(self, split: Split, rows: np.ndarray, column: str, known: list, statistics: Statistics):
        """The rows that are written, and their bytes; fills `known` and `statistics`."""
        images = [image for image, _ in split.source.read(rows)]
        names, others = split.names(rows.tolist(), images), split.values(rows)
        for image, name, values in zip(images, names, others, strict=True):
            found: dict[str, Any] = {"file": name, "left_out": 0, "before": size_of(image)}
            first = True
            try:
                if isinstance(image, BrokenImage):
                    raise image
                for piece in pieces_of(image, self.options):
                    if piece is None:
                        found["left_out"] += 1
                        continue
                    piece.values = as_type(piece.values, self.options.dtype)
                    data, suffix = encode(piece, self.options)
                    path = os.path.splitext(name)[0] + piece.place + suffix
                    known.append(
                        {
                            **found,
                            "piece": path,
                            "after": len(data),
                            "kept": data is piece.original,
                            "lost": list(piece.lost) if first else [],
                            "unknown": piece.unknown,
                            "alpha": piece.alpha,
                            "hash": hash_of(piece.values),
                            "perceptual": self._perceptual(piece.values),
                        }
                    )
                    found["left_out"] = found["before"] = 0
                    first = False
                    written = decode(data, suffix) if suffix == ".jpg" else piece.values
                    statistics.add(written, piece.alpha, piece.unknown)
                    yield {"image": {"bytes": data, "path": path}, column: name, **values}, len(data)
                if found["left_out"]:
                    known.append(found)
            except BrokenImage as error:
                known.append({**found, "error": self._reason(split, error)})
            except ValueError as error:
                raise ValueError(f"{error} (found in {name})") from error

    def _perceptual(self, values: np.ndarray) -> int | None:
        return None if self.options.near_duplicates is None else perceptual_hash(values)

    def _reason(self, split: Split, error: BrokenImage) -> str:
        """Why an image cannot be used, without where it lies on this machine."""
        text = str(error)
        for root in (
            () if split.root is None else (os.path.join(os.path.abspath(split.root), ""), os.path.join(split.root, ""))
        ):
            text = text.replace(root, "")
        return text


def size_of(image: Any) -> int:
    """Bytes of a stored image."""
    if isinstance(image, np.ndarray):
        return image.nbytes
    data = image.get("bytes") if isinstance(image, dict) else None
    return len(data) if data else 0


def write_group(writer: pq.ParquetWriter, rows: list[dict[str, Any]], features: Features):
    """Write rows as a row group."""
    table = Rows.from_list(rows, features=features).data.table  # which knows the types of `datasets`
    writer.write_table(table.cast(features.arrow_schema), row_group_size=len(rows))


def write_parts(writer: PartWriter, num_workers: int) -> int:
    """Write the parts that are missing. Returns how many were there.

    Args:
        writer: of the parts.
        num_workers: processes; 0 for this one.
    """
    missing = [part.number for part in writer.parts if not writer.folder.images(part.number).exists()]
    total = sum(len(part.rows) for part in writer.parts)
    left = sum(len(writer.parts[number].rows) for number in missing)
    loader = DataLoader(
        writer,
        batch_size=None,
        sampler=missing,
        num_workers=min(num_workers, len(missing)),
        prefetch_factor=1 if min(num_workers, len(missing)) else None,
        in_order=False,
    )
    with tqdm(total=total, initial=total - left, unit=" images") as bar:
        for count in loader:
            bar.update(count)
    return len(writer.parts) - len(missing)
