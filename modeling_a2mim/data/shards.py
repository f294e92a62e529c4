"""Sources of rows that lie in shards: files of many rows, of which neighbouring ones are read together as a chunk."""

import abc
import collections
import copy
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
from datasets import Features
from transformers.utils.logging import tqdm

from .reading import is_remote, open_file, relative_name, with_retries
from .sources import RowSource


class ShardedSource(RowSource):
    """Rows in shards that are read a chunk at a time; the chunks read last are kept (see `keep_chunks`)."""

    files: list[str]  # paths or URLs of the shards

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._chunks: collections.OrderedDict = collections.OrderedDict()
        self.chunks_open = 1

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_chunks": collections.OrderedDict()}

    def select(self, image_column: str, label_column: str | None = None) -> Self:
        source = super().select(image_column, label_column)
        source._chunks = collections.OrderedDict()
        return source

    def keep_chunks(self, count: int):
        self.chunks_open = count

    def read(self, rows: Sequence[int] | np.ndarray) -> list[tuple]:
        return [self._row(self._chunk(chunk), place) for chunk, place in self._find(rows)]

    def values(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        own = copy.copy(self)
        own.columns, own._chunks = tuple(columns), collections.OrderedDict()  # type: ignore[assignment]  # of any number
        if not columns:
            return [{} for _ in rows]
        return [own._cells(own._chunk(chunk), place) for chunk, place in self._find(np.asarray(rows))]

    @abc.abstractmethod
    def _cells(self, opened: Any, place: int) -> dict[str, Any]:
        """The selected columns of the row at a place in a chunk, as they are stored."""

    def _find(self, rows: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
        """The chunk of each row, and its place there."""
        ends = np.cumsum(self.chunks)
        chunks = np.searchsorted(ends, rows, side="right")
        return list(zip(chunks.tolist(), (rows - ends[chunks] + self.chunks[chunks]).tolist(), strict=True))

    @property
    def fingerprint(self) -> str:
        names = "\n".join(os.path.basename(file) for file in self.files)
        return f"{len(self)}-{zlib.crc32(names.encode(), zlib.crc32(self.chunks.tobytes())):08x}"

    def _chunk(self, chunk: int) -> Any:
        if chunk in self._chunks:
            self._chunks.move_to_end(chunk)
            return self._chunks[chunk]
        while len(self._chunks) >= self.chunks_open:
            self._chunks.popitem(last=False)
        self._chunks[chunk] = with_retries(lambda: self._read_chunk(chunk), self._describe_chunk(chunk), self.retries)
        return self._chunks[chunk]

    @abc.abstractmethod
    def _read_chunk(self, chunk: int) -> Any:
        """A chunk in memory, as `_row` takes it."""

    @abc.abstractmethod
    def _row(self, opened: Any, place: int) -> tuple:
        """(image, label) of the row at a place in a chunk, as `RowSource.read` gives them."""

    @abc.abstractmethod
    def _describe_chunk(self, chunk: int) -> str:
        """What to call a chunk in a message."""


class ParquetSource(ShardedSource):
    """Parquet shards; a chunk is a row group, of which only the columns asked for are read.

    Args:
        name, storage_options, retries: as `RowSource`.
        files: paths or URLs.
        features: columns and their types; found in the first file if not given.

    Raises:
        ReadError: naming a shard whose footer cannot be read.
        ValueError: if there are no files.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[str],
        features: Features | None = None,
        storage_options: dict | None = None,
        retries: int = 5,
    ):
        self.files, self.storage_options = list(files), storage_options or {}
        self.footers = footers = map_shards(self._read_footer, self.files, retries)
        features = features or Features.from_arrow_schema(footers[0].schema.to_arrow_schema())
        groups = [
            (f, g, footer.row_group(g)) for f, footer in enumerate(footers) for g in range(footer.num_row_groups)
        ]
        groups = [group for group in groups if group[2].num_rows]
        self.remote = any(map(is_remote, self.files))
        super().__init__(name, features, [g.num_rows for _, _, g in groups], self.storage_options, retries)
        self.groups = [(file, group) for file, group, _ in groups]
        self.row_bytes = sum(g.total_byte_size for _, _, g in groups) / max(1, len(self))

    def _read_footer(self, path: str) -> pq.FileMetaData:
        with open_file(path, self.storage_options) as file:
            return pq.read_metadata(file)

    def _read_chunk(self, chunk: int) -> Any:
        index, group = self.groups[chunk]
        with open_file(self.files[index], self.storage_options) as file:
            shard = pq.ParquetFile(file, metadata=self.footers[index], pre_buffer=True)
            return shard.read_row_group(group, columns=[c for c in self.columns if c], use_threads=False)

    def column(self, name: str) -> list | None:
        own, values = self.select(name), []
        for chunk, rows in enumerate(self.chunks):
            values += own._chunk(chunk)[name].to_pylist()[:rows]
        return values

    def _row(self, opened: Any, place: int) -> tuple:
        image, label = self.columns
        return self._image(opened[image][place].as_py()), opened[label][place].as_py() if label else None

    def _cells(self, opened: Any, place: int) -> dict[str, Any]:
        return {column: opened[column][place].as_py() for column in self.columns}

    def _describe_chunk(self, chunk: int) -> str:
        file, group = self.groups[chunk]
        return f"{self.files[file]}, row group {group}"

    def describe(self, row: int) -> str:
        [(chunk, place)] = self._find([row])
        return f"row {place} of {self._describe_chunk(chunk)}"

    def file_name(self, row: int) -> str | None:
        [(chunk, place)] = self._find([row])
        file, group = self.groups[chunk]
        return f"row {place} of {relative_name(self.files[file], [self.name])}, row group {group}"


def map_shards(action: Callable, files: Sequence[str], retries: int) -> list:
    """`action` of every file, several at a time, in order, with a progress bar when it takes long.

    Raises:
        ReadError: naming a file of which it failed `retries` further times, too.
        ValueError: if there are no files.
    """
    if not files:
        raise ValueError("there are no files to read")
    with ThreadPoolExecutor(min(16, len(files))) as pool:
        work = pool.map(lambda path: with_retries(lambda: action(path), path, retries), files)
        return list(tqdm(work, total=len(files), desc="reading what the shards hold", unit=" shards", delay=3))
