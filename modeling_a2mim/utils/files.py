"""Writing files: complete or not at all; and JSON that every reader takes (JSON has no NaN and no infinity).

Three ways to write, which differ on purpose:

- `atomic_write`, `write_json`: one file of results. Not brought to disk: what a power cut takes can be computed again.
- `atomic_files`: several files that belong together and are published. Brought to disk before they get their names.
- `training.checkpoints`: a whole folder with the size and checksum of every file, since a run resumes from it.
"""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


RUN_FILE = "run.yaml"  # in the output folder, with which `--config` repeats the run
TEMPORARY = ".export-"  # how the names of the temporary folders of `atomic_files` begin


def finite(value):
    """`value` (dicts, lists and plain values) with `None` for NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | os.PathLike, value, indent: int = 1, sort_keys: bool = False):
    """Write `value` to a file as JSON, with `null` for NaN and infinity."""
    text = json.dumps(finite(value), indent=indent, sort_keys=sort_keys, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def save_json(value, path: str | os.PathLike):
    """Write `value` to a file as transformers writes the state of its Trainer."""
    write_json(path, value, indent=2, sort_keys=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file, which is renamed to `path` when the block ends; after an error `path` is as it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_files(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder, whose files are moved to `folder` when the block ends; after an error all are as they were.
    Other files of `folder` stay. A kill leaves each file as it was or as it will be.

    Args:
        folder: made if missing. The temporary folder is in it, and so are those of killed processes, which are
            removed.

    Raises:
        ValueError: if `folder` is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder to export to")
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as path:
        temporary = Path(path)
        yield temporary
        new = files_in(temporary)
        for name in new:
            sync(temporary / name)
        for name in new:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(temporary / name, folder / name)


def files_in(folder: Path) -> list[str]:
    """The files in a folder and the folders in it, relative to it with forward slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def sync(path: Path):
    """Bring a file, or the names in a folder, to disk."""
    if path.is_dir() and os.name == "nt":  # has no such thing for folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_there(path: Path) -> ValueError:
    """What to say of a file that is not to be replaced."""
    return ValueError(f"out: {path} is there already; give --overwrite to replace it")


def folder_around(path: str | os.PathLike, folder: str | os.PathLike) -> Path | None:
    """The folder, or one that a link in it leads to, in which a path lies (or which it is), however they are spelled;
    `None` if it lies in none of them, or there is no such folder."""
    place, folder = Path(path).expanduser().resolve(), Path(folder).expanduser()
    if not folder.is_dir():
        return None
    links = [Path(entry.path) for entry in os.scandir(folder) if entry.is_symlink() and entry.is_dir()]
    above = (place, *place.parents)
    return next((one for one in (folder, *links) if any(_same(one, parent) for parent in above)), None)


def _same(one: Path, two: Path) -> bool:
    return two.exists() and os.path.samefile(one, two)


def safe_name(name: str) -> str:
    """A name as the name of a file."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "model"
