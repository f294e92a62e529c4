"""The pages of files as images of their own: slices of a volume, frames of a series, fields of a scan."""

import zlib
from collections.abc import Sequence

import numpy as np
from transformers.utils.logging import tqdm

from .arrays import BrokenImage
from .decoding import count_images
from .sources import RowSource


class PagesSource(RowSource):
    """Each page of each image of a source as a row, in order, with the label of its file.

    Args:
        source: rows whose columns are selected.
        counts: (rows,) pages of each.
    """

    def __init__(self, source: RowSource, counts: Sequence[int] | np.ndarray):
        self.source, self.counts = source, np.asarray(counts, dtype=np.int64)
        ends = np.cumsum(source.chunks)
        before = np.concatenate([[0], np.cumsum(self.counts)])
        chunks = before[ends] - before[ends - source.chunks]
        super().__init__(source.name, source.features, chunks, source.storage_options, source.retries)
        self.firsts, self.columns = before[:-1], source.columns
        self.row_bytes, self.remote = source.row_bytes / max(1.0, float(self.counts.mean())), source.remote

    def keep_chunks(self, count: int):
        self.source.keep_chunks(count)

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}-pages-{zlib.crc32(self.counts.tobytes()):08x}"

    def _find(self, row: int) -> tuple[int, int]:
        """The row of the file, and the number of the page."""
        file = int(np.searchsorted(self.firsts, row, side="right")) - 1
        return file, int(row - self.firsts[file])

    def read(self, rows: Sequence[int] | np.ndarray) -> list[tuple]:
        places = [self._find(int(row)) for row in rows]
        files = sorted({file for file, _ in places})
        found = dict(zip(files, self.source.read(files), strict=True))
        return [(_page(found[file][0], page), found[file][1]) for file, page in places]

    def rows_of(self, files: Sequence[int]) -> list[int]:
        """The rows of all pages of files, which are rows of the source."""
        return [int(self.firsts[file]) + page for file in files for page in range(self.counts[file])]

    def describe(self, row: int) -> str:
        file, page = self._find(row)
        return f"page {page + 1} of {self.source.describe(file)}"

    def file_name(self, row: int) -> str | None:
        file, page = self._find(row)
        name = self.source.file_name(file) or f"row {file}"
        return name if self.counts[file] == 1 else f"{name}, page {page + 1}"

    def source_of(self, row: int) -> str:
        return self.source.source_of(self._find(row)[0])


def with_pages(source: RowSource, num_channels: int | None) -> RowSource:
    """The source itself, if no file has several pages; else each page as a row. The header of every file is read.

    Args:
        source: rows whose columns are selected.
        num_channels: that are expected in a file (see `decoding.count_images`).
    """
    counts = np.ones(len(source), dtype=np.int64)
    for row in tqdm(range(len(source)), desc="counting pages", unit=" files", delay=3):
        value = source.read([row])[0][0]
        if not isinstance(value, dict) or value.get("bytes") is None:
            continue
        try:
            counts[row] = count_images(bytes(value["bytes"]), value.get("path"), num_channels)
        except BrokenImage:
            continue  # which is counted when it is read
    return PagesSource(source, counts) if (counts > 1).any() else source


def _page(value, page: int):
    return {**value, "page": page} if isinstance(value, dict) else value
