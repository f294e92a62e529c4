"""Writing files: at once or not at all; and JSON that every reader takes (JSON has no NaN and no infinity)."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path


def finite(value):
    """`value` (dicts, lists and plain values) with `None` for NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_json(value, path: str | os.PathLike):
    """Write `value` to a file, as transformers writes its state."""
    text = json.dumps(finite(value), indent=2, sort_keys=True, allow_nan=False)
    Path(path).write_text(f"{text}\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A place to write a file to, which then takes the place of `path`: complete, or it stays as it was."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path):
    """Bring a file, or the names in a folder, to disk."""
    if path.is_dir() and os.name == "nt":  # has no such thing for folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_name(name: str) -> str:
    """A name as the name of a file."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "model"


def write_json(path: Path, record: dict):
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
