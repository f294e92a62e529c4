"""What tells the images of one run from those of another, without reading them."""

import os
import zlib

from .pages import PagesSource
from .sources import LISTED, DatasetSource, RowSource, fingerprint_of


def fingerprint_of_images(source: RowSource, times: bool = False) -> str:
    """Changes when the images do, as far as can be seen without reading them: of files their names and sizes (and
    `times`: when they were changed), of a saved dataset what `datasets` tells it apart by, of shards their names and
    rows."""
    if isinstance(source, PagesSource):
        return f"{source.fingerprint}-{fingerprint_of_images(source.source, times)}"
    if not isinstance(source, DatasetSource):
        return source.fingerprint
    known = fingerprint_of(source.dataset)
    if not known.startswith(LISTED):
        return f"{len(source)}-{known}"
    checksum = 0
    for path in source.select("image").image_files():
        found = os.stat(path) if os.path.isfile(path) else None
        told = (-1, -1) if found is None else (found.st_size, found.st_mtime_ns if times else 0)
        checksum = zlib.crc32(b"%d %d;" % told, checksum)
    return f"{source.fingerprint}-{checksum:08x}"


def changed_after(source: RowSource, time: float) -> list[str]:
    """The files of the images, or the shards with them, that were changed after a time (seconds, as `os.stat`)."""
    if isinstance(source, PagesSource):
        return changed_after(source.source, time)
    files = source.image_files() or getattr(source, "files", [])
    return [file for file in files if os.path.isfile(file) and os.stat(file).st_mtime > time]
