"""Modules on the meta device, where tensors have shapes but no values: how they are built, and how they get values."""

from collections.abc import Callable
from typing import Any, TypeAlias

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode


# An nn.Module with what timm gives its models: `forward_features`, `feature_info`, ...; not all have all of it.
TimmEncoder: TypeAlias = Any


class NoValues(TorchFunctionMode):
    """Skips what fills tensors of the meta device with values, which takes most of the time to build there."""

    fills = frozenset(["uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "zero_", "fill_", "copy_"])

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        skip = getattr(func, "__name__", None) in self.fills and args and args[0].is_meta
        return args[0] if skip else func(*args, **(kwargs or {}))


def build_on_meta(args: dict[str, Any]) -> TimmEncoder:
    """A timm encoder without a classifier and without values.

    Args:
        args: keyword arguments of `timm.create_model`.

    Raises:
        ValueError: naming `model_args`, if timm cannot build it.
    """
    try:
        with torch.device("meta"), NoValues():
            return timm.create_model(**args, pretrained=False, num_classes=0).eval()
    except Exception as error:
        given = {k: v for k, v in args.items() if k != "model_name"}
        raise ValueError(f"model_args: timm cannot build {args['model_name']} with {given}: {error}") from error


def fill_holes(module: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Give the parameters and buffers that transformers' `from_pretrained` found no weights for the values of a new
    module: it builds models on the meta device, and drops the buffers that are not saved (relative positions of a
    Swin, ...). The global random state stays as it is. While the module is still on the meta device, nothing happens.

    Args:
        module: a part of the model that transformers has loaded.
        make: builds the same part anew.
    """
    holes: dict[str, Any] = {  # tensors, which transformers marks
        name: tensor
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if not getattr(tensor, "_is_hf_initialized", False)
    }
    if not holes or next(iter(holes.values())).is_meta:
        return
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        new = make()
    values = dict([*new.named_parameters(), *new.named_buffers()])
    for name, tensor in holes.items():
        tensor.data.copy_(values[name])
        tensor._is_hf_initialized = True
