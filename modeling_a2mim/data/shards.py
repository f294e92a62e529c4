"""Sources of rows that lie in shards: files of many rows, of which neighbouring ones are read together."""

import abc
import collections
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
from datasets import Features
from transformers.utils.logging import tqdm

from .sources import RowSource, is_remote, open_file, relative_name, with_retries


class ShardedSource(RowSource):
    """Rows in shards that are read a unit at a time; the units read last are kept."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._units: collections.OrderedDict = collections.OrderedDict()

    def __getstate__(self):
        return self.__dict__ | {"_units": collections.OrderedDict()}

    def select(self, image_column, label_column=None):
        source = super().select(image_column, label_column)
        source._units = collections.OrderedDict()
        return source

    def read(self, rows):
        return [self._row(self._unit(unit), place) for unit, place in self._find(rows)]

    def _find(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """The unit of each row, and its place there."""
        ends = np.cumsum(self.units)
        units = np.searchsorted(ends, rows, side="right")
        return list(zip(units.tolist(), (rows - ends[units] + self.units[units]).tolist(), strict=True))

    @property
    def fingerprint(self):
        names = "\n".join(os.path.basename(file) for file in self.files)
        return f"{len(self)}-{zlib.crc32(names.encode(), zlib.crc32(self.units.tobytes())):08x}"

    def _unit(self, unit: int):
        if unit in self._units:
            self._units.move_to_end(unit)
            return self._units[unit]
        while len(self._units) >= self.units_open:
            self._units.popitem(last=False)
        self._units[unit] = with_retries(lambda: self._read_unit(unit), self._describe_unit(unit), self.retries)
        return self._units[unit]

    @abc.abstractmethod
    def _read_unit(self, unit: int):
        """A unit in memory, as `_row` takes it."""

    @abc.abstractmethod
    def _row(self, opened, place: int) -> tuple:
        """(image, label) of the row at a place of a unit."""

    @abc.abstractmethod
    def _describe_unit(self, unit: int) -> str:
        """What to call a unit in a message."""


class ParquetSource(ShardedSource):
    """Parquet shards; a unit is a row group, of which only the columns asked for are read.

    Args:
        files: paths or URLs.
        features: columns and their types; found in the first file if not given.

    Raises:
        ReadError: naming a shard whose footer cannot be read.
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

    def _read_unit(self, unit):
        index, group = self.groups[unit]
        with open_file(self.files[index], self.storage_options) as file:
            shard = pq.ParquetFile(file, metadata=self.footers[index], pre_buffer=True)
            return shard.read_row_group(group, columns=[c for c in self.columns if c], use_threads=False)

    def column(self, name):
        own = self.select(name)
        return [value for unit, rows in enumerate(self.units) for value in own._unit(unit)[name].to_pylist()[:rows]]

    def _row(self, opened, place):
        image, label = self.columns
        return self._image(opened[image][place].as_py()), opened[label][place].as_py() if label else None

    def _describe_unit(self, unit):
        file, group = self.groups[unit]
        return f"{self.files[file]}, row group {group}"

    def describe(self, row):
        [(unit, place)] = self._find([row])
        return f"row {place} of {self._describe_unit(unit)}"

    def file_name(self, row):
        [(unit, place)] = self._find([row])
        file, group = self.groups[unit]
        return f"row {place} of {relative_name(self.files[file], [self.name])}, row group {group}"


def map_shards(action: Callable, files: Sequence[str], retries: int) -> list:
    """`action` of every file, several at a time, in order, with a progress bar when it takes long."""
    if not files:
        raise ValueError("there are no files to read")
    with ThreadPoolExecutor(min(16, len(files))) as pool:
        work = pool.map(lambda path: with_retries(lambda: action(path), path, retries), files)
        return list(tqdm(work, total=len(files), desc="reading what the shards hold", unit=" shards", delay=3))
