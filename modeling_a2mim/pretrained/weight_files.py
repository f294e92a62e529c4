"""Weights of a folder or repository."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .hub_files import find_file


WEIGHTS_FILES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)  # one file, or the index of several


def read_weights(source: str, subfolder: str = "", **hub_kwargs: Any) -> dict[str, torch.Tensor]:
    """The weights of a folder or repository, of one file or of several, under the names that are stored.

    Raises:
        ValueError: naming `model_name_or_path`, if there are none, or they cannot be read.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    place = f"{source}/{subfolder}" if subfolder else source
    files = [find_file(source, prefix + SAFE_WEIGHTS_NAME, **hub_kwargs)]
    if files == [None]:
        index = find_file(source, prefix + SAFE_WEIGHTS_INDEX_NAME, **hub_kwargs)
        if index is None:
            raise ValueError(
                f"model_name_or_path: {place} holds no weights, it has no {SAFE_WEIGHTS_NAME}; pytorch_model.bin and "
                "the like are pickles, which are not read"
            )
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{index.name}: names a file in another folder, {strange[0]!r}")
        files = [find_file(source, prefix + name, **hub_kwargs) for name in names]
        if None in files:
            raise ValueError(f"model_name_or_path: {place} has no {names[files.index(None)]}")
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model_name_or_path: the weights in {place} cannot be read: {error}") from error
