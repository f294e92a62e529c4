"""Files of embeddings: `.parquet`, or `.npy` with the names of the images beside it."""

import csv
import json
import os
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap

from ..utils.files import atomic_write, write_json
from .parts import PartedTable, check_out, parts_of
from .running import ERROR, FILE


EMBEDDING, VECTOR = "embedding", "vector"  # columns: the vector itself, and its row in a .npy
METADATA = "a2mim"  # key of a parquet file's schema
CHECKSUM = "checksum"  # in the metadata beside a .npy: of that and of the names beside it, which belong together
FORMATS = (".parquet", ".npy")
STORES = {"float32": pa.float32(), "float16": pa.float16()}


class Embeddings(NamedTuple):
    """Embeddings of the images of a file that could be read, in its order.

    Attributes:
        files: (images,) what they are called.
        vectors: (images, features) float32 or float16; of a .npy a memory map.
        metadata: what they depend on, see `embedding.Embedder.description`.
    """

    files: list[str]
    vectors: np.ndarray
    metadata: dict[str, Any]


def read_embeddings(path: str | os.PathLike) -> Embeddings:
    """What `a2mim embed` wrote: (files, vectors, metadata) of the images that could be read.

    Raises:
        ValueError: naming the file, if it is missing, was not written by `a2mim embed`, or is not the .npy that
            belongs to what is beside it.
    """
    return read_rows(path)[0]


def read_rows(path: str | os.PathLike) -> tuple[Embeddings, np.ndarray]:
    """As `read_embeddings`, and (images,) the number of each among all images, the broken ones counted."""
    path = Path(path)
    metadata = read_metadata(path)
    if path.suffix == ".npy":
        before = json.loads(metadata_file(path).read_text(encoding="utf-8")).get(CHECKSUM)
        if before not in (None, _checksum(path, names_file(path))):  # files of earlier releases have none
            raise ValueError(
                f"{path}: does not belong to {names_file(path).name} and {metadata_file(path).name} beside it (other "
                "checksum); embed anew with --overwrite"
            )
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        with open(names_file(path), newline="", encoding="utf-8") as file:
            named = [(row, line) for row, line in enumerate(csv.DictReader(file)) if line[VECTOR]]
        files, rows = [line[FILE] for _, line in named], [row for row, _ in named]
        if vectors.shape != (len(files), metadata["dim"]):
            raise ValueError(
                f"{path}: has {vectors.shape}, expected {(len(files), metadata['dim'])} by the names beside"
            )
        return Embeddings(files, vectors, metadata), np.array(rows, dtype=np.int64)
    parquet = pq.ParquetFile(path)
    count = parquet.metadata.num_rows
    kind = parquet.schema_arrow.field(EMBEDDING).type
    vectors = np.empty((count, metadata["dim"]), dtype=kind.value_type.to_pandas_dtype())
    files, found, first = [], [], 0
    for part in parquet.iter_batches(columns=[FILE, EMBEDDING]):  # so that nothing is there twice
        good = np.asarray(part[EMBEDDING].is_valid())
        vectors[len(files) : len(files) + good.sum()] = _as_array(part[EMBEDDING])
        files += part[FILE].filter(part[EMBEDDING].is_valid()).to_pylist()
        found.append(first + np.flatnonzero(good))
        first += len(part)
    return Embeddings(files, vectors[: len(files)], metadata), np.concatenate([np.empty(0, np.int64), *found])


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What the vectors in a file depend on.

    Raises:
        ValueError: naming the file, if it is missing or was not written by `a2mim embed`.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: must end in {' or '.join(FORMATS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    text: str | bytes | None = None
    try:
        if path.suffix == ".parquet":
            text = (pq.read_schema(path).metadata or {}).get(METADATA.encode())
        elif metadata_file(path).is_file() and names_file(path).is_file():
            text = metadata_file(path).read_text(encoding="utf-8")
        found = json.loads(text) if text else None
    except (pa.ArrowInvalid, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or "dim" not in found:
        missing = "" if path.suffix == ".parquet" else f" (with {metadata_file(path).name}, {names_file(path).name})"
        raise ValueError(f"{path}: was not written by a2mim embed{missing}")
    return {name: value for name, value in found.items() if name != CHECKSUM}


def names_file(path: Path) -> Path:
    """The names of the images of a .npy: `file`, `vector` (its row in the .npy, empty if broken) and `error`."""
    return path.with_suffix(".files.csv")


def metadata_file(path: Path) -> Path:
    """What the vectors of a .npy depend on."""
    return path.with_suffix(".metadata.json")


def check_beside(path: Path, overwrite: bool):
    """Refuse files that cannot be written.

    Raises:
        ValueError: naming `out`, if the file or what would be beside it is there and not to be overwritten.
    """
    check_out(path, FORMATS, overwrite)
    overwrite = overwrite or parts_of(path).exists()  # a run was killed while it joined them
    for other in (names_file(path), metadata_file(path)) if path.suffix == ".npy" else ():
        check_out(other, (other.suffix,), overwrite)


def write_file(table: PartedTable, metadata: dict[str, Any]) -> tuple[list[Path], int]:
    """Join the parts of a table to the file at its path, and remove them.

    Args:
        table: whose parts are all there.
        metadata: of a .npy, kept beside it; that of a .parquet is in the schema of the parts.

    Returns:
        What was written, and how many images have no vector.
    """
    if table.path.suffix == ".npy":
        return _write_npy(table, metadata)
    path = table.finish()
    errors = pq.read_table(path, columns=[ERROR])[ERROR]
    return [path], len(errors) - errors.null_count


def _write_npy(table: PartedTable, metadata: dict[str, Any]) -> tuple[list[Path], int]:
    path, total = table.path, sum(len(part) - part[EMBEDDING].null_count for part in table)
    with ExitStack() as stack:  # of which the last to get its name, the first entered, is the .npy
        paths = [path, names_file(path), metadata_file(path)]
        array, names, described = [stack.enter_context(atomic_write(place)) for place in paths]
        text = stack.enter_context(open(names, "w", newline="", encoding="utf-8"))
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow([FILE, VECTOR, ERROR])
        kind = STORES[metadata["store"]].to_pandas_dtype()
        vectors = open_memmap(array, "w+", kind, (total, metadata["dim"])) if total else None
        row = 0
        for part in table:
            for batch in part.to_batches():
                found = _as_array(batch[EMBEDDING])
                if vectors is not None:
                    vectors[row : row + len(found)] = found
                for name, error in zip(batch[FILE].to_pylist(), batch[ERROR].to_pylist(), strict=True):
                    lines.writerow([name, "" if error else row, error or ""])
                    row += not error
        assert row == total
        if vectors is None:  # which no memory map can be
            with open(array, "wb") as file:
                np.save(file, np.empty((0, metadata["dim"]), kind))
        else:
            vectors.flush()
        text.flush()
        write_json(described, {**metadata, CHECKSUM: _checksum(array, names)})
        # From here on, until all three have their names, there is no .npy: a kill leaves the parts to go on with.
        path.unlink(missing_ok=True)
    table.remove()
    return paths, table.num_rows - total


def _checksum(*files: Path) -> str:
    found = 0
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found = zlib.crc32(block, found)
    return f"{found:08x}"


def stored_as(vectors: np.ndarray, store: str) -> np.ndarray:
    """Vectors in the type that a file is to have.

    Raises:
        ValueError: naming `store`, if some are too large for it.
    """
    with np.errstate(over="ignore"):
        result = vectors.astype(store)
    if not np.isfinite(result).all():
        raise ValueError(f"store: features up to {np.abs(vectors).max():.3g} do not fit in {store}; use float32")
    return result


def columns(dim: int, store: str) -> dict[str, pa.DataType]:
    """The column of vectors that a table of embeddings has beside those of every table."""
    return {EMBEDDING: pa.list_(STORES[store], dim)}


def _as_array(column: pa.FixedSizeListArray) -> np.ndarray:
    """The vectors of a column that are there, (vectors, features)."""
    size = column.type.list_size
    return column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
