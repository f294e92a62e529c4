"""What tells the images of one run from those of another, without reading them."""

import os
import zlib
from collections.abc import Iterable

from .pages import PagesSource
from .sources import LISTED, DatasetSource, MixedSource, RowSource, fingerprint_of


MOST_FILES = 10_000  # or twice as many, whose sizes are looked at each time that a run begins


def fingerprint_of_images(source: RowSource, times: bool = False) -> str:
    """Changes when the images do, as far as can be seen without reading them: of files, or shards that hold them, by
    names and sizes (and `times`: when they were changed), of a saved dataset by what `datasets` tells it apart by."""
    if isinstance(source, PagesSource):
        return f"{source.fingerprint}-{fingerprint_of_images(source.source, times)}"
    if isinstance(source, DatasetSource) and not fingerprint_of(source.dataset).startswith(LISTED):
        return f"{len(source)}-{fingerprint_of(source.dataset)}"
    return f"{source.fingerprint}-{_checksum(files_of(source), times)}"


def fingerprint_of_files(source: RowSource) -> str | None:
    """Changes with the sizes of the files of the images, or of the shards that hold them; of very many, with those of
    some. `None` if there are none on this machine."""
    files = files_of(source)
    files = files[:: max(1, len(files) // MOST_FILES)]
    return _checksum(files) if any(map(os.path.isfile, files)) else None


def changed_after(source: RowSource, time: float) -> list[str]:
    """The files of the images, or the shards with them, that were changed after a time (seconds, as `os.stat`)."""
    return [file for file in files_of(source) if os.path.isfile(file) and os.stat(file).st_mtime > time]


def files_of(source: RowSource) -> list[str]:
    """The files of the images of a source, or of the shards that hold them."""
    if (files := source.image_files()) is not None:
        return files
    if isinstance(source, MixedSource):
        return [file for part in source.sources for file in files_of(part)]
    inner = getattr(source, "source", None)  # of pages, or of some of the rows
    return list(getattr(source, "files", ())) if inner is None else files_of(inner)


def _checksum(files: Iterable[str], times: bool = False) -> str:
    checksum = 0
    for path in files:
        found = os.stat(path) if os.path.isfile(path) else None
        told = (-1, -1) if found is None else (found.st_size, found.st_mtime_ns if times else 0)
        checksum = zlib.crc32(b"%d %d;" % told, checksum)
    return f"{checksum:08x}"
