"""Random access to the encoded images of a source: prepared datasets, parquet shards, WebDataset tars, and mixes.

`datasets` gives files, features and prepared rows; what it lacks is reading a streamed row by its number, without
which there is no order that can be computed. Remote files are read through fsspec.
"""

import abc
import asyncio
import collections
import copy
import logging
import os
import time
from collections.abc import Callable, Sequence

import aiohttp
import datasets
import fsspec
import numpy as np
from datasets import Features, Image

from .decoding import BrokenImage


logger = logging.getLogger("a2mim")

LISTED = "files-"  # how the fingerprint of a list of image files begins
MIXED_UNIT = 100  # rows that are read together of a source that could be read singly, beside others that cannot
FIRST_WAIT = 1.0  # seconds before the first retry; each further wait is twice as long
# A file system that answers so will not change its mind, and one file is not worth a run.
DEFINITE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


# Answers of a server that may be others when it is asked again; all others from 400 to 499 are about this one file.
BUSY = (408, 425, 429)


class ReadError(OSError):
    """Data that could not be read, however often it was tried."""


def with_retries(action: Callable, what: str, retries: int, final: tuple = ()):
    """The result of `action()`, which is tried again after 1, 2, 4, ... seconds: whatever goes wrong with a remote
    file, and what the operating system reports of a local one. Errors of the classes `final` are raised at once.

    Raises:
        ReadError: naming `what`, when `retries` further attempts failed as well.
    """
    for attempt in range(retries + 1):
        try:
            return action()
        except final:
            raise
        # File systems have error classes of their own (aiohttp's, httpx's, botocore's); the last is raised.
        except Exception as error:
            if attempt == retries or not (is_remote(what) or isinstance(error, OSError)):
                raise ReadError(f"{what}: cannot be read (attempt {attempt + 1}): {describe(error)}") from error
            logger.warning("%s: %s; trying again (%d of %d)", what, describe(error), attempt + 1, retries)
            time.sleep(FIRST_WAIT * 2**attempt)


def describe(error: Exception) -> str:
    """An error in one line, with its class where its message alone does not say much."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def status_of(error: BaseException) -> int | None:
    """What a web server answered, if an error tells."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_refusal(error: BaseException) -> bool:
    """Whether a server said that it does not give this one file."""
    status = status_of(error)
    return status is not None and 400 <= status < 500 and status not in BUSY


def is_outage(error: BaseException) -> bool:
    """Whether a server could not be asked, or had no time to answer."""
    if status_of(error) is not None:
        return not is_refusal(error)
    unreachable = OSError, asyncio.TimeoutError, aiohttp.ClientError  # of the last, some say that a URL is none
    return isinstance(error, unreachable) and not isinstance(error, (*DEFINITE, ValueError))


def is_remote(path: str) -> bool:
    """Whether it is a URL, also one chained by "::" as fsspec's are; names of files may have such signs, too."""
    return ("://" in path or "::" in path) and not os.path.isabs(path)


def relative_name(path: str, folders: Sequence[str]) -> str:
    """A path or URL without what only this machine knows of it: relative to the first of these folders that it is in,
    else its last folder and name."""
    if not is_remote(path):
        for folder in folders:
            root, place = (os.path.abspath(os.path.expanduser(p)) for p in (folder, path))
            if place.startswith(root.rstrip(os.sep) + os.sep):
                return os.path.relpath(place, root)
        if not os.path.isabs(path):  # as a dataset stores it
            return path
    return "/".join(path.split("/")[-2:])


def open_file(path: str, storage_options: dict):
    """A binary file, local or remote. Opened by each process for itself: remote file systems do not survive a fork."""
    if not is_remote(path):
        return open(path, "rb")
    filesystem, inside = fsspec.core.url_to_fs(path, **storage_options)
    return filesystem.open(inside, "rb")


class RowSource(abc.ABC):
    """Rows with an encoded image each, any of which can be read by its number.

    Attributes:
        name: what the user called it.
        features: columns and their types.
        units: (number of units,) rows of each run of rows that is read together.
        row_bytes: mean size of a row while its unit is open; 0 if units need not be held.
        units_open: how many units are kept in memory.
        retries: further attempts to read what could not be read.
        storage_options: of fsspec, for remote files.
        folders: beside `name`, what `file_name` may be relative to.
    """

    folders: Sequence[str] = ()
    row_bytes = 0.0
    remote = False  # from another machine: rows may not name files of this one
    definite: tuple = DEFINITE  # errors of one image's file that no further attempt changes

    def __init__(
        self,
        name: str,
        features: Features,
        units: Sequence[int],
        storage_options: dict | None = None,
        retries: int = 5,
    ):
        self.name, self.features, self.retries = name, features, retries
        self.storage_options = storage_options or {}
        self.units = np.asarray(units, dtype=np.int64)
        self.units_open = 1
        self.columns: tuple[str, str | None] | None = None

    def __len__(self) -> int:
        return int(self.units.sum())

    def select(self, image_column: str, label_column: str | None = None) -> "RowSource":
        """The same rows, of which `read` gives these columns."""
        source = copy.copy(self)
        source.columns = (image_column, label_column)
        return source

    def take(self, count: int) -> "RowSource":
        """The first rows."""
        source = copy.copy(self)
        ends = np.minimum(np.cumsum(self.units), count)
        units = np.diff(ends, prepend=0)
        source.units = units[units > 0]
        return source

    @abc.abstractmethod
    def read(self, rows: Sequence[int]) -> list[tuple]:
        """(image, label) of rows: the image as stored, encoded where it was encoded, or the BrokenImage that says why
        it cannot be had; the label is None without a label column.

        Raises:
            ReadError: if they cannot be read.
        """

    def column(self, name: str) -> list | None:
        """All values of a column, where they can be read without the images; else `None`."""
        return None

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

    def _image(self, value):
        """A stored image with its bytes, which may lie in a file of their own."""
        if isinstance(value, (bytes, bytearray)):
            return {"bytes": value, "path": None}
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
    """A prepared `datasets.Dataset`, or one whose images are files: one unit, as any row costs the same."""

    def __init__(self, dataset: datasets.Dataset, name: str = "the dataset", *args, **kwargs):
        super().__init__(name, dataset.features, [len(dataset)], *args, **kwargs)
        self.dataset = dataset

    @property
    def fingerprint(self):
        listed = self.dataset._fingerprint.startswith(LISTED)
        return f"{len(self)}-{self.dataset._fingerprint}" if listed else f"{len(self)}"

    def select(self, image_column, label_column=None):
        source = super().select(image_column, label_column)
        source._rows = self.dataset.select_columns([c for c in source.columns if c])
        for column in source._rows.column_names:  # a label may be a map of classes
            if isinstance(self.features.get(column), Image):
                source._rows = source._rows.cast_column(column, Image(decode=False))
        return source

    def take(self, count):
        rows = self.dataset.take(min(count, len(self)))
        taken = DatasetSource(rows, self.name, self.storage_options, retries=self.retries)
        taken.folders = self.folders
        return taken.select(*self.columns) if self.columns else taken

    def read(self, rows):
        found = self._rows[[int(row) for row in rows]]
        image, label = self.columns
        labels = found[label] if label else [None] * len(rows)
        return list(zip(map(self._image, found[image]), labels, strict=True))

    def column(self, name):
        return list(self.dataset[name])

    def _path(self, row: int) -> str | None:
        value = self._rows[int(row)][self.columns[0]]
        return value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None

    def describe(self, row):
        path = self._path(row)
        return f"row {row} of {self.name}" + (f", {path}" if path else "")

    def file_name(self, row):
        path = self._path(row)
        return relative_name(path, [*self.folders, self.name]) if path else None


class MixedSource(RowSource):
    """The rows of several sources, one after the other.

    Args:
        sources: whose columns are selected.
        weights: how much of a batch each gives (see `order.MixedOrder`); None for every row once a pass.
    """

    def __init__(self, sources: Sequence[RowSource], weights: Sequence[float] | None = None):
        self.sources, self.weights = list(sources), weights
        super().__init__(" + ".join(s.name for s in sources), sources[0].features, [], retries=sources[0].retries)
        # Rows that can be read singly are cut into units as well, to be dealt among the others, unless all can.
        random = [source.row_bytes == 0 for source in sources]
        units = [cut(len(s), MIXED_UNIT) if single else s.units for s, single in zip(sources, random, strict=True)]
        self.units = np.array([sum(map(len, sources))]) if all(random) else np.concatenate(units)
        self.row_bytes = max(s.row_bytes for s in sources)
        self.columns = sources[0].columns
        self.firsts = np.cumsum([0] + [len(s) for s in sources])

    @property
    def units_open(self) -> int:
        return self._units_open

    @units_open.setter
    def units_open(self, count: int):
        self._units_open = count
        for source in self.sources:
            source.units_open = count

    def take(self, count):
        sources, left = [], count
        for source in self.sources:
            sources.append(source.take(left))
            left -= len(sources[-1])
        return MixedSource([source for source in sources if len(source)])

    @property
    def fingerprint(self):
        return "+".join(source.fingerprint for source in self.sources)

    def _find(self, row: int) -> tuple[int, int]:
        """Which source a row is of, and its number there."""
        index = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return index, int(row - self.firsts[index])

    def read(self, rows):
        found = [None] * len(rows)
        wanted = collections.defaultdict(list)
        for place, row in enumerate(rows):
            index, own = self._find(row)
            wanted[index].append((place, own))
        for index, pairs in wanted.items():
            values = self.sources[index].read([own for _, own in pairs])
            for (place, _), value in zip(pairs, values, strict=True):
                found[place] = value
        return found

    def describe(self, row):
        index, own = self._find(row)
        return self.sources[index].describe(own)

    def file_name(self, row):
        index, own = self._find(row)
        return self.sources[index].file_name(own)

    def source_of(self, row):
        return self.sources[self._find(row)[0]].name


def cut(rows: int, size: int) -> np.ndarray:
    """So many rows in units of this size, and what is left."""
    return np.array([size] * (rows // size) + [rows % size] * (rows % size > 0), dtype=np.int64)
