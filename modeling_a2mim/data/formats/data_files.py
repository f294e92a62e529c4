"""The files of a folder or repository that make up a split, by their names as `datasets` reads them."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import datasets
from datasets.data_files import DataFilesDict, DataFilesList, _get_data_files_patterns
from fsspec.utils import glob_translate

from ..reading import is_remote


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


def split_files(root: str, files: Sequence[str]) -> dict[str, list[str]]:
    """Files by the split that their names, or those of their folders below `root`, say, as `datasets` documents it;
    all of them are `train` where none says so."""
    names = {file[len(root) :].lstrip("/"): file for file in files}

    def resolve(pattern: str) -> list[str]:
        matches = re.compile(glob_translate(pattern)).match
        return [name for name in names if matches(name)]

    patterns = _get_data_files_patterns(resolve)
    found = {str(split): dict.fromkeys(n for p in own for n in resolve(p)) for split, own in patterns.items()}
    return {split: sorted(names[name] for name in own) for split, own in found.items()}
