"""Reading files, local or remote (through fsspec): with further attempts, and told apart whether a server was not
reached or does not give the file."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import aiohttp
import fsspec


logger = logging.getLogger("a2mim")

FIRST_WAIT = 1.0  # seconds before the first retry; each further wait is twice as long
# A file system that answers so will not change its mind, and one file is not worth a run.
DEFINITE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# Answers of a server that may be others when it is asked again; all others from 400 to 499 are about this one file.
BUSY = (408, 425, 429)


class ReadError(OSError):
    """Data that could not be read, however often it was tried."""


def with_retries(action: Callable, what: str, retries: int, final: tuple[type[Exception], ...] = ()) -> Any:
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


def describe(error: BaseException) -> str:
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
    """Whether it is a URL, also one chained by "::" as fsspec's are. Names of files may have such signs, too: what is
    here is no URL."""
    return ("://" in path or "::" in path) and not os.path.isabs(path) and not os.path.lexists(path)


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


def open_file(path: str, storage_options: dict) -> BinaryIO:
    """A binary file, local or remote. Opened by each process for itself: remote file systems do not survive a fork."""
    if not is_remote(path):
        return open(path, "rb")
    filesystem, inside = fsspec.core.url_to_fs(path, **storage_options)
    return filesystem.open(inside, "rb")
