"""How a run that cannot go on ends: with one line that names the folder, or says how to resume."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants
from safetensors import SafetensorError

from .checkpoints import newest_first, verify


INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended
LITTLE = 2**20  # bytes: a disk with no more is full
FULL = (errno.ENOSPC, errno.EDQUOT)
# What torch and safetensors say of a file that could not be written, whose errors tell no more.
UNWRITTEN = ("inline_container", "PytorchStreamWriter", "iostream error", "No space left", "StorageFull", "IoError")


class WriteError(OSError):
    """A folder that cannot be written to."""


@contextlib.contextmanager
def writing(folder: str | os.PathLike) -> Iterator[None]:
    """Turn the errors of libraries that write to `folder` meanwhile into `WriteError`.

    Raises:
        WriteError: in one line that names the folder and why it cannot be written to.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        known = isinstance(error, OSError) and error.errno is not None
        if not known and not any(text in str(error) for text in UNWRITTEN):
            raise
        raise WriteError(f"output_dir: {folder} cannot be written to: {_reason(error, folder)}") from error


def check_writable(folder: str | os.PathLike):
    """Refuse a folder that cannot be made or written to, before anything is read.

    Raises:
        ValueError: naming `output_dir`.
    """
    place = _existing(folder)
    if place != Path(folder).absolute() and not place.is_dir():
        raise ValueError(f"output_dir: {place} is a file; name a folder that is in none")
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir: {place} cannot be written to; name a folder that can")
    if place.is_dir() and shutil.disk_usage(place).free < LITTLE:
        raise ValueError(f"output_dir: the disk of {place} is full; make room or name a folder on another")


def describe_os_error(error: OSError) -> str:
    """An error of the operating system in one line, with the file."""
    if error.filename is None or error.strerror is None:
        return str(error)
    line = f"{error.filename}: {_reason(error, error.filename)}"
    caches = {"HF_HOME": constants.HF_HOME, "HF_DATASETS_CACHE": os.environ.get("HF_DATASETS_CACHE")}
    for name, folder in caches.items():
        if folder and Path(error.filename).absolute().is_relative_to(Path(folder).absolute()):
            return f"{line}; set {name} to a folder that can be written to"
    return line


def how_to_resume(output_dir: str | None) -> str:
    """What a run that was interrupted has left in its folder, and how it goes on."""
    found = newest_first(output_dir) if output_dir else []
    last = next((folder.name for folder in found if not verify(folder, checksums=False)), None)
    if last is None:
        return "interrupted, before there was a checkpoint (--save_steps): the run can only begin anew"
    return f"interrupted; the same command with --resume_from_checkpoint last goes on from {last} in {output_dir}"


def interrupted(output_dir: str | None):
    """End the program as Ctrl-C does, and say how to go on; of several processes, the first says it."""
    if os.environ.get("RANK", "0") == "0":
        print(how_to_resume(output_dir), file=sys.stderr)
    sys.exit(INTERRUPTED)


def _reason(error: Exception, folder: str | os.PathLike) -> str:
    free = _free(folder)
    if getattr(error, "errno", None) in FULL or (free is not None and free < LITTLE):
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error).strip().splitlines()[0]


def _existing(folder: str | os.PathLike) -> Path:
    """The folder, or the nearest one above it that there is."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _free(folder: str | os.PathLike) -> int | None:
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None
