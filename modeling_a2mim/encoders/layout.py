"""How the output of a module holds a feature map: in which tensor, and where the map's cells are in it."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F


BATCH = 2  # of the run on the meta device: a tensor that holds a map has this many images
MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class FeatureLayout:
    """How the output of a module holds a feature map: `kind` is "NCHW", "NHWC", "NLC" or "NCL" (N: batch, C: channels,
    L: tokens, `prefix` of them before the map's). `path` leads to it in an output of nested tuples, lists or dicts."""

    kind: str
    channels: int
    grid: tuple[int, int]
    prefix: int = 0
    path: tuple = ()

    def pick(self, output: Any) -> torch.Tensor:
        """The tensor that holds the map."""
        for key in self.path:
            output = output[key]
        return output

    def put(self, output: Any, x: torch.Tensor, depth: int = 0) -> Any:
        """`output` with `x` in the place of that tensor."""
        if depth == len(self.path):
            return x
        key = self.path[depth]
        new = self.put(output[key], x, depth + 1)
        if isinstance(output, dict):
            return {**output, key: new}
        items = [new if i == key else item for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)

    def to_map(self, output: Any, grid: tuple[int, int]) -> torch.Tensor:
        """The feature map as (batch, channels, rows, columns); prefix tokens are dropped."""
        x = self.pick(output)
        if self.kind == "NCHW":
            return x
        if self.kind == "NHWC":
            return x.permute(0, 3, 1, 2)
        x = x if self.kind == "NCL" else x.transpose(1, 2)
        return x[..., self.prefix :].unflatten(2, grid)

    def spread(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask (batch, rows, columns), shaped so that it broadcasts over the tensor that holds the map."""
        if self.kind == "NCHW":
            return mask[:, None]
        if self.kind == "NHWC":
            return mask[..., None]
        tokens = F.pad(mask.flatten(1), (self.prefix, 0))
        return tokens[:, None] if self.kind == "NCL" else tokens[..., None]


def tensors_in(output: Any, path: tuple = ()) -> Iterator[tuple[tuple, torch.Tensor]]:
    """All tensors in nested tuples, lists and dicts, each with the keys that lead to it (`FeatureLayout.path`)."""
    if isinstance(output, torch.Tensor):
        yield path, output
    elif isinstance(output, (list, tuple, dict)):
        for key, item in output.items() if isinstance(output, dict) else enumerate(output):
            yield from tensors_in(item, (*path, key))


class Site(NamedTuple):
    """A place where the mask token can enter: a module of the encoder, and the layout of its output."""

    module: str
    layout: FeatureLayout


class OutputTensor(NamedTuple):
    """A tensor in the output of a module: where in it, its shape, and what computed it."""

    path: tuple
    shape: tuple[int, ...]
    node: Any


def output_tensors(output: Any) -> list[OutputTensor]:
    """All tensors in nested tuples, lists and dicts."""
    return [OutputTensor(path, tuple(tensor.shape), tensor.grad_fn) for path, tensor in tensors_in(output)]


def copy_output(output: Any) -> Any:
    """The same nested output with copies of its tensors."""
    if isinstance(output, torch.Tensor):
        return output.clone()
    if isinstance(output, dict):
        return {key: copy_output(item) for key, item in output.items()}
    if isinstance(output, (list, tuple)):
        items = [copy_output(item) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output


def possible_layouts(
    output: OutputTensor,
    size: tuple[int, int],
    strides: Sequence[int],
    channels: Collection[int | None] = (),
    nhwc: bool = False,
) -> list[FeatureLayout]:
    """How a tensor may hold a feature map of one of the given strides, the likeliest layout first. Maps of unpadded
    convolutions, a little smaller than their stride says, are known by their `channels`."""
    path, shape, _ = output
    if len(shape) not in (3, 4) or shape[0] != BATCH:
        return []
    grids = possible_grids(size, strides)
    if len(shape) == 4:
        _, a, b, c = shape
        found = [FeatureLayout("NCHW", a, (b, c), path=path), FeatureLayout("NHWC", c, (a, b), path=path)]
        if nhwc:  # only to decide where rows = columns = channels
            found.reverse()
        exact = [layout for layout in found if layout.grid in grids]
        return exact or [
            layout
            for layout in found
            if layout.channels in channels
            and any(
                all(0.8 * s / stride <= g <= s / stride for g, s in zip(layout.grid, size, strict=True))
                for stride in strides
            )
        ]
    _, a, b = shape
    spare = sorted((a - rows * columns, (rows, columns)) for rows, columns in grids)
    spare = [(prefix, grid) for prefix, grid in spare if 0 <= prefix <= MOST_PREFIX_TOKENS]
    found = [FeatureLayout("NLC", b, grid, prefix, path) for prefix, grid in spare]
    channels_first = [FeatureLayout("NCL", a, grid, path=path) for grid in grids if math.prod(grid) == b]
    # Few channels before the tokens look like tokens with a long prefix.
    return sorted(found + channels_first, key=lambda layout: layout.prefix)


def possible_grids(size: tuple[int, int], strides: Sequence[int]) -> set[tuple[int, int]]:
    """The grids that maps of these strides may have: the image divided by the stride, rounded either way."""
    return {(f(size[0] / s), f(size[1] / s)) for s in strides for f in (math.floor, math.ceil)}
