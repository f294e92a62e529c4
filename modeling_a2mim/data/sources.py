"""Random access to the encoded images of a source: rows that are read by their numbers.

`datasets` gives files, features and prepared rows; what it lacks is reading a streamed row by its number, without
which there is no order that can be computed.
"""

import abc
import collections
import copy
import zlib
from collections.abc import Sequence
from typing import Any, Self

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets import Array2D, Array3D, Features, Image, List, Value

from .decoding import BrokenImage
from .reading import DEFINITE, describe, is_outage, is_refusal, is_remote, open_file, relative_name, with_retries


LISTED = "files-"  # how the fingerprint of a list of image files begins
MIXED_CHUNK = 100  # rows that are read together of a source that could be read singly, beside others that cannot


class RowSource(abc.ABC):
    """Rows with an encoded image each, any of which can be read by its number.

    Attributes:
        name: what the user called it.
        features: columns and their types.
        chunks: (number of chunks,) rows of each; a chunk is a run of rows that are read together.
        row_bytes: mean size in bytes of a row while its chunk is open; 0 if chunks need not be held.
        retries: further attempts to read what could not be read.
        storage_options: of fsspec, for remote files.
    """

    row_bytes = 0.0
    remote = False  # from another machine: rows may not name files of this one
    definite: tuple[type[Exception], ...] = DEFINITE  # errors of one image's file that no further attempt changes

    def __init__(
        self,
        name: str,
        features: Features,
        chunks: Sequence[int] | np.ndarray,
        storage_options: dict | None = None,
        retries: int = 5,
    ):
        self.name, self.features, self.retries = name, features, retries
        self.storage_options = storage_options or {}
        self.chunks = np.asarray(chunks, dtype=np.int64)
        self.columns: tuple[str, str | None] | None = None

    def __len__(self) -> int:
        return int(self.chunks.sum())

    def select(self, image_column: str, label_column: str | None = None) -> Self:
        """The same rows, of which `read` gives these columns; this source stays as it is."""
        source = copy.copy(self)
        source.columns = (image_column, label_column)
        return source

    def take(self, count: int) -> Self:
        """The first rows, all if there are no more; this source stays as it is."""
        source = copy.copy(self)
        ends = np.minimum(np.cumsum(self.chunks), count)
        chunks = np.diff(ends, prepend=0)
        source.chunks = chunks[chunks > 0]
        return source

    def keep_chunks(self, count: int):  # noqa: B027 - most sources keep none
        """Keep so many of the chunks read last in memory, where a row cannot be read without its chunk."""

    @abc.abstractmethod
    def read(self, rows: Sequence[int] | np.ndarray) -> list[tuple]:
        """(image, label) of rows, for a source whose columns are selected.

        Returns:
            Images as they are stored: `{"bytes": ..., "path": ...}` of an encoded one, or an array, or the BrokenImage
            that says why there is none. Labels as they are stored, None without a label column.

        Raises:
            ReadError: if they cannot be read.
            IndexError: if there is no such row.
        """

    def column(self, name: str) -> list | None:
        """All values of a column, where they can be read without the images; else `None`."""
        return None

    def image_files(self) -> list[str] | None:
        """The files of the images of all rows; `None` where not each is a file of its own. For a source whose columns
        are selected."""
        return None

    def values(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Other columns than the images of rows, as they are stored; raises as `read`. Sources that can read them
        without the images do so."""
        found: list[dict[str, Any]] = [{} for _ in rows]
        for column in columns:
            for cells, (_, value) in zip(found, self.select(self.columns[0], column).read(rows), strict=True):
                cells[column] = value
        return found

    def describe(self, row: int) -> str:
        """What to call a row in a message."""
        return f"row {row} of {self.name}"

    def file_name(self, row: int) -> str | None:
        """Where a row is stored, relative to the folder that the user named: nothing in it says where that is on this
        machine. `None` if it has no name."""
        return None

    def source_of(self, row: int) -> str:
        """The name of the source of a row."""
        return self.name

    @property
    def fingerprint(self) -> str:
        """Changes when the data does, as far as can be seen without reading it."""
        return f"{len(self)}"

    def _image(self, value: Any) -> Any:
        """A stored image with its bytes, which may lie in a file of their own."""
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": value, "path": None}
        if isinstance(value, list | np.ndarray):
            kind = array_type(self.features.get(self.columns[0]))
            return value if kind is None else np.asarray(value, dtype=kind)  # lists of other things are no images
        if isinstance(value, str):
            value = {"bytes": None, "path": value}
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            path = value["path"]
            if self.remote and not is_remote(path):
                return BrokenImage(f"it names a file of this machine, {path}, which is not read for remote data")
            try:
                data = with_retries(lambda: self._read_file(path), path, self.retries, final=self.definite)
            except self.definite as error:
                return BrokenImage(describe(error.__cause__ or error))
            return {"bytes": data, "path": path}
        return value

    def _read_file(self, path: str) -> bytes:
        try:
            with open_file(path, self.storage_options) as file:
                return file.read()
        except Exception as error:
            # fsspec says of a web server that is not reached, or is busy, that there is no such file.
            if isinstance(error, DEFINITE) and error.__cause__ is not None and is_outage(error.__cause__):
                raise error.__cause__ from None
            if not isinstance(error, DEFINITE) and is_refusal(error):
                raise FileNotFoundError(path) from error
            raise


class DatasetSource(RowSource):
    """A prepared `datasets.Dataset`, or one whose images are files: one chunk, as any row costs the same.

    Args:
        dataset: its rows.
        name, storage_options, retries: as `RowSource`.
        folders: beside `name`, what `file_name` may be relative to.
    """

    _rows: datasets.Dataset  # with the selected columns alone

    def __init__(
        self,
        dataset: datasets.Dataset,
        name: str = "the dataset",
        storage_options: dict | None = None,
        retries: int = 5,
        folders: Sequence[str] = (),
    ):
        super().__init__(name, dataset.features, [len(dataset)], storage_options, retries)
        self.dataset, self.folders = dataset, list(folders)

    @property
    def fingerprint(self) -> str:
        found = fingerprint_of(self.dataset)
        return f"{len(self)}-{found}" if found.startswith(LISTED) else f"{len(self)}"

    def select(self, image_column: str, label_column: str | None = None) -> Self:
        source = super().select(image_column, label_column)
        source._rows = self.dataset.select_columns([c for c in source.columns if c])
        for column in source._rows.column_names:  # a label may be a map of classes
            if isinstance(self.features.get(column), Image):
                source._rows = source._rows.cast_column(column, Image(decode=False))
        if (kind := array_type(self.features.get(image_column))) is not None:  # lists of numbers would take seconds
            source._rows = source._rows.with_format("numpy", [image_column], True, dtype=kind)
        return source

    def take(self, count: int) -> "DatasetSource":
        rows = self.dataset.take(min(count, len(self)))
        taken = DatasetSource(rows, self.name, self.storage_options, self.retries, self.folders)
        return taken.select(*self.columns) if self.columns else taken

    def read(self, rows: Sequence[int] | np.ndarray) -> list[tuple]:
        found = self._rows[[int(row) for row in rows]]
        image, label = self.columns
        labels = found[label] if label else [None] * len(rows)
        return list(zip(map(self._image, found[image]), labels, strict=True))

    def column(self, name: str) -> list | None:
        return self.dataset[name][:]

    def image_files(self) -> list[str] | None:
        column, first = self.columns[0], None if self._path(0) is None else self._rows[0][self.columns[0]]
        if first is None or (isinstance(first, dict) and first.get("bytes") is not None):
            return None
        values = self._rows.select_columns(column).with_format("arrow")[:][column]
        paths = (pc.struct_field(values, "path") if isinstance(first, dict) else values).to_pylist()
        return None if None in paths else paths

    def values(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        found = self.dataset.select_columns(list(columns))[[int(row) for row in rows]] if columns else {}
        return [{column: found[column][place] for column in columns} for place in range(len(rows))]

    def _path(self, row: int) -> str | None:
        value = self._rows[int(row)][self.columns[0]]
        return value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None

    def describe(self, row: int) -> str:
        path = self._path(row)
        return f"row {row} of {self.name}" + (f", {path}" if path else "")

    def file_name(self, row: int) -> str | None:
        path = self._path(row)
        return relative_name(path, [*self.folders, self.name]) if path else None


class MixedSource(RowSource):
    """The rows of several sources, one after the other.

    Args:
        sources: whose columns are selected.
        weights: how much of a batch each gives (see `order.MixedOrder`); None for every row once an epoch.
    """

    def __init__(self, sources: Sequence[RowSource], weights: Sequence[float] | None = None):
        self.sources, self.weights = list(sources), weights
        super().__init__(" + ".join(s.name for s in sources), sources[0].features, [], retries=sources[0].retries)
        # Rows that can be read singly are cut into chunks as well, to be spread among the others, unless all can.
        random = [source.row_bytes == 0 for source in sources]
        chunks = [cut(len(s), MIXED_CHUNK) if single else s.chunks for s, single in zip(sources, random, strict=True)]
        self.chunks = np.array([sum(map(len, sources))]) if all(random) else np.concatenate(chunks)
        self.row_bytes = max(s.row_bytes for s in sources)
        self.columns = sources[0].columns
        self.firsts = np.cumsum([0] + [len(s) for s in sources])

    def keep_chunks(self, count: int):
        for source in self.sources:
            source.keep_chunks(count)

    def take(self, count: int) -> "MixedSource":
        sources, left = [], count
        for source in self.sources:
            sources.append(source.take(left))
            left -= len(sources[-1])
        return MixedSource([source for source in sources if len(source)])

    @property
    def fingerprint(self) -> str:
        return "+".join(source.fingerprint for source in self.sources)

    def image_files(self) -> list[str] | None:
        parts = [source.image_files() for source in self.sources]
        return None if None in parts else [file for part in parts for file in part]

    def _find(self, row: int) -> tuple[int, int]:
        """Which source a row is of, and its number there."""
        index = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return index, int(row - self.firsts[index])

    def read(self, rows: Sequence[int] | np.ndarray) -> list[tuple]:
        found: list[Any] = [None] * len(rows)
        wanted = collections.defaultdict(list)
        for place, row in enumerate(rows):
            index, own = self._find(row)
            wanted[index].append((place, own))
        for index, pairs in wanted.items():
            values = self.sources[index].read([own for _, own in pairs])
            for (place, _), value in zip(pairs, values, strict=True):
                found[place] = value
        return found

    def describe(self, row: int) -> str:
        index, own = self._find(row)
        return self.sources[index].describe(own)

    def file_name(self, row: int) -> str | None:
        index, own = self._find(row)
        return self.sources[index].file_name(own)

    def source_of(self, row: int) -> str:
        return self.sources[self._find(row)[0]].name


class RowsOf(RowSource):
    """Some rows of a source, in its order.

    Args:
        source: whose rows.
        rows: their numbers, ascending.
    """

    def __init__(self, source: RowSource, rows: Sequence[int] | np.ndarray):
        self.source, self.rows = source, np.asarray(rows, dtype=np.int64)
        counts = np.histogram(self.rows, np.concatenate([[0], np.cumsum(source.chunks)]))[0]
        super().__init__(source.name, source.features, counts[counts > 0], source.storage_options, source.retries)
        self.row_bytes, self.remote, self.columns = source.row_bytes, source.remote, source.columns

    def keep_chunks(self, count: int):
        self.source.keep_chunks(count)

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}-rows-{zlib.crc32(self.rows.tobytes()):08x}"

    def select(self, image_column: str, label_column: str | None = None) -> "RowsOf":
        return RowsOf(self.source.select(image_column, label_column), self.rows)

    def take(self, count: int) -> "RowsOf":
        return RowsOf(self.source, self.rows[:count])

    def read(self, rows: Sequence[int] | np.ndarray) -> list[tuple]:
        return self.source.read(self.rows[np.asarray(rows, dtype=np.int64)])

    def column(self, name: str) -> list | None:
        values = self.source.column(name)
        return None if values is None else [values[row] for row in self.rows]

    def image_files(self) -> list[str] | None:
        files = self.source.image_files()
        return None if files is None else [files[row] for row in self.rows]

    def describe(self, row: int) -> str:
        return self.source.describe(int(self.rows[row]))

    def file_name(self, row: int) -> str | None:
        own = int(self.rows[row])
        return self.source.file_name(own) or f"row {own}"  # of the data, not of the sample

    def source_of(self, row: int) -> str:
        return self.source.source_of(int(self.rows[row]))


def array_type(feature: Any) -> np.dtype | None:
    """The type of the values of a column of arrays, or of lists of lists of numbers; `None` of any other."""
    if isinstance(feature, Array2D | Array3D):
        return np.dtype(feature.dtype)
    depth = 0
    while isinstance(feature, List):
        feature, depth = feature.feature, depth + 1
    return np.dtype(feature.dtype) if depth in (2, 3) and isinstance(feature, Value) else None


def fingerprint_of(dataset: datasets.Dataset) -> str:
    """What `datasets` tells the contents of datasets apart by. It is private there, and there is no public way to it;
    checkpoints hold that of listed files, which is ours (`list_images`), and must be found again by it."""
    return dataset._fingerprint


def cut(rows: int, size: int) -> np.ndarray:
    """So many rows in chunks of this size, and what is left."""
    return np.array([size] * (rows // size) + [rows % size] * (rows % size > 0), dtype=np.int64)
