"""Files of weights, read without running code from them: safetensors, and the pickles of torch."""

import _codecs
import contextlib
import json
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from .hub_files import find_file


SAFE_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)  # one file, or the index of several
WEIGHTS_FILES = (SAFE_FILES, (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
# Training code keeps its settings beside the weights: what is in a checkpoint of these packages is left out.
SETTINGS: tuple[str, ...] = (
    "argparse",
    "pathlib",
    "yacs",
    "omegaconf",
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
    "mmengine",
)
SETTINGS += ("mmcv", "addict", "typing", "torch.torch_version")
COMMON = ["argparse.Namespace", "pathlib.PosixPath", "numpy.core.multiarray.scalar"]  # in files of before torch 1.6
GIT_LFS = b"version https://git-lfs"
NUMBERS = [np.dtype, np.ndarray, _codecs.encode, *(getattr(np.dtypes, name) for name in np.dtypes.__all__)]


class Unread:
    """Takes the place of an object of foreign code: an empty dict, which keeps what it is given."""

    def __new__(cls, *args: Any, **kwargs: Any):
        return OrderedDict()


# Files


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file, under the names that are stored; those of nested dicts (`{"model": {...}}`) are joined by
    dots. Nothing in the file is run.

    Args:
        path: a safetensors file, or one of `torch.save`.

    Raises:
        ValueError: beginning with the path, if it cannot be read or holds no weights.
        OSError: if it cannot be opened.
    """
    with path.open("rb") as file:
        first = file.read(len(GIT_LFS))
    if first == GIT_LFS:
        raise ValueError(f"{path}: is a pointer of Git LFS to the file, not the file; `git lfs pull` fetches it")
    if path.suffix == ".safetensors" or first[8:9] == b"{":  # after the length of the header
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    found = dict(_tensors(read_pickle(path, ignore=SETTINGS)))
    if not found:
        raise ValueError(f"{path}: holds no weights (tensors by their names)")
    for name, tensor in found.items():  # a few bytes can call themselves a tensor of any size
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: {name} calls itself more bytes than are stored")
    return found


def _tensors(content: Any, prefix: str = "") -> Iterable[tuple[str, torch.Tensor]]:
    if isinstance(content, torch.Tensor):
        if content.layout == torch.strided and prefix:
            yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping) and all(isinstance(key, str) for key in content):  # an optimiser counts
        for name, value in content.items():
            yield from _tensors(value, f"{prefix}{name}.")


def read_pickle(path: Path, ignore: Iterable[str] = ()) -> Any:
    """What is in a file of `torch.save`, read with `weights_only=True`.

    Args:
        path: the file.
        ignore: packages whose objects may be in it: they are not made, an empty dict takes their place.

    Raises:
        ValueError: beginning with the path, if there is no such file, or it cannot be read so.
        OSError: if it cannot be opened.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if _unpacked_size(path) <= path.stat().st_size + 2**20:
            with _ignoring(path, tuple(ignore)):
                return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many kinds
        with path.open("rb") as file:
            is_pickle = file.read(1) in (b"\x80", b"P")  # or the zip that one is in
        reason = _first_sentence(str(error))
        if "weights_only" in str(error) and (is_pickle or "operand" not in reason):
            raise ValueError(
                f"{path}: refused, and nothing in it was run: beside weights it holds code or objects, which torch "
                f"does not read with weights_only=True ({reason})"
            ) from error
        raise ValueError(f"{path}: not a checkpoint, or a damaged one ({reason or type(error).__name__})") from error
    raise ValueError(f"{path}: refused: unpacked, it would have many more bytes than it has")


def _ignoring(path: Path, packages: tuple[str, ...]) -> contextlib.AbstractContextManager:
    """A context in which torch reads numbers of NumPy, and nothing of the objects of these packages."""
    if not packages:
        return contextlib.nullcontext()
    names = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else COMMON
    ignored: list[Any] = [(Unread, name) for name in names if name.startswith(tuple(f"{one}." for one in packages))]
    # NumPy has moved what makes its numbers, and old files name the old place.
    makers: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    moved = [(maker, name) for name in names for maker in makers if name.endswith(f".multiarray.{maker.__name__}")]
    return safe_globals([*NUMBERS, *moved, *ignored])


def _unpacked_size(path: Path) -> int:
    """Torch does not compress, but reads what is compressed: a small file could fill the memory."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _first_sentence(message: str) -> str:
    """What torch found, without its advice to read the file unsafely."""
    message = message.rsplit("WeightsUnpickler error: ", maxsplit=1)[-1].split(
        "\n\nCheck the documentation", maxsplit=1
    )[0]
    return message.rpartition("\n\n")[2].strip().split(". ")[0]


# Folders and repositories


def read_weights(source: str, subfolder: str = "", **hub_kwargs: Any) -> dict[str, torch.Tensor]:
    """The weights of a folder or repository, of one file or of several, under the names that are stored; of
    `pytorch_model.bin` where there is no safetensors.

    Raises:
        ValueError: naming `model_name_or_path`, if there are none, or they cannot be read.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    place = f"{source}/{subfolder}" if subfolder else source
    for name, index_name in WEIGHTS_FILES:
        if (file := find_file(source, prefix + name, **hub_kwargs)) is not None:
            files = [file]
        elif (index := find_file(source, prefix + index_name, **hub_kwargs)) is not None:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if strange := [name for name in names if Path(name).name != name]:
                raise ValueError(f"{index.name}: names a file in another folder, {strange[0]!r}")
            shards = [find_file(source, prefix + name, **hub_kwargs) for name in names]
            if None in shards:
                raise ValueError(f"model_name_or_path: {place} has no {names[shards.index(None)]}")
            files = [file for file in shards if file is not None]
        else:
            continue
        try:
            return {name: tensor for file in files for name, tensor in read_file(file).items()}
        except (ValueError, OSError) as error:
            raise ValueError(f"model_name_or_path: the weights in {place} cannot be read: {error}") from error
    raise ValueError(
        f"model_name_or_path: {place} holds no weights, it has no {SAFE_WEIGHTS_NAME} and no {WEIGHTS_NAME}"
    )
