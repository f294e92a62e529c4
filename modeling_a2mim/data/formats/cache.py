"""What the cache of `datasets` holds of the files of a user: downloads, decompressed tars, the rows of archives as
Arrow files, and links to files whose names `datasets` cannot take."""

import hashlib
import os
import shutil
import tempfile
import zlib
from bz2 import BZ2File
from collections.abc import Iterator, Sequence
from gzip import GzipFile
from lzma import LZMAError, LZMAFile
from pathlib import Path
from typing import Protocol

import datasets
from datasets import Dataset, DownloadConfig, DownloadManager, Features
from datasets.data_files import DataFilesDict, DataFilesList

from ..reading import describe, is_remote


CODECS = {b"\x1f\x8b": GzipFile, b"BZh": BZ2File, b"\xfd7zXZ\x00": LZMAFile}  # by how files begin


class Archive(Protocol):
    """A source of archives that gives all of its rows in turn: `TarSource` and `ZipSource`."""

    files: list[str]
    features: Features

    @property
    def fingerprint(self) -> str:
        """As in `RowSource`."""

    def rows(self) -> Iterator[dict]:
        """All rows with all their columns."""


def download(files: Sequence[str], token: str | None = None) -> list[str]:
    """Files on this machine, remote ones in the cache of `datasets`."""
    if not any(map(is_remote, files)):
        return list(files)
    return DownloadManager(download_config=DownloadConfig(token=token)).download(list(files))


def is_compressed(file: str) -> bool:
    """Whether a tar is compressed as a whole: a local one by how it begins, a remote one by its name."""
    if is_remote(file):
        return file.lower().endswith((".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz"))
    return _codec_of(file) is not None


def _codec_of(file: str) -> type | None:
    with open(file, "rb") as stream:
        first = stream.read(6)
    return next((codec for start, codec in CODECS.items() if first.startswith(start)), None)


def decompressed(files: Sequence[str]) -> list[str]:
    """Local tars as they are, and those that are compressed as a whole as files in the cache of `datasets`.

    Raises:
        ValueError: naming one that cannot be decompressed.
    """
    return [file if (codec := _codec_of(file)) is None else _decompressed(file, codec) for file in files]


def _decompressed(file: str, codec: type) -> str:
    state = os.stat(file)
    key = hashlib.sha256(f"{os.path.abspath(file)} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:32]
    place = Path(datasets.config.HF_DATASETS_CACHE, "a2mim_tars", key, os.path.basename(file))
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".part", delete=False) as part:
            try:
                with codec(file) as stream:
                    shutil.copyfileobj(stream, part, 2**20)
            except (OSError, EOFError, zlib.error, LZMAError) as error:
                os.unlink(part.name)
                raise ValueError(f"{file}: cannot be decompressed: {describe(error)}") from error
        os.replace(part.name, place)
    return str(place)


def prepare(source: Archive, split: str) -> Dataset:
    """The rows of a source as Arrow files in the cache of `datasets`, written once."""
    states = [] if any(map(is_remote, source.files)) else [os.stat(file).st_mtime_ns for file in source.files]
    told = f"{source.files} {states} {source.fingerprint} {source.features} {split}"
    key = hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:32]
    return Dataset.from_generator(source.rows, source.features, split=split, fingerprint=key)


def as_data_files(files: dict[str, Sequence[str]]) -> DataFilesDict:
    """Files by split for `datasets`, which would take the signs of patterns in their names for patterns."""
    return DataFilesDict(
        {split: DataFilesList([_plain(f) for f in own], [_origin(f) for f in own]) for split, own in files.items()}
    )


def _plain(file: str) -> str:
    """A file under a name that `datasets` does not take for chained URLs: a link in its cache, where need be."""
    if is_remote(file) or "::" not in os.path.abspath(file):
        return file
    key = hashlib.sha256(os.path.abspath(file).encode(errors="surrogateescape")).hexdigest()[:32]
    link = Path(datasets.config.HF_DATASETS_CACHE, "a2mim_links", key, os.path.basename(file).replace("::", "__"))
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.abspath(file))
    return str(link)


def _origin(file: str) -> tuple[str, ...]:
    """What changes when the file does, so that it is prepared anew."""
    return () if is_remote(file) else (str(os.stat(file).st_mtime),)
