"""A segmenter or detector as the start of another one: the weights of its head, told apart by the names of classes."""

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from ..pretrained import Pretrained


logger = logging.getLogger("a2mim")


def kept_as_it_is(name: str, start: Pretrained, theirs: Any, given: Any) -> ValueError:
    """What to say of an argument that contradicts the model from which a run starts."""
    return ValueError(
        f"{name}: the {start.kind} in {start.place} has {theirs}, not {given}; leave --{name} out, or start from an "
        "encoder"
    )


@torch.no_grad()
def load_head(
    module: nn.Module,
    start: Pretrained,
    prefix: str,
    by_class: Collection[str] = (),
    names: Sequence[str] = (),
    first: int = 0,
) -> None:
    """Give a part of a model the weights of the same part of another one.

    Args:
        module: the part.
        start: the other model.
        prefix: before the names of its weights there.
        by_class: the layers of the part that have rows for each class, which are told apart by their names; of a class
            that the other model does not know, they stay new.
        names: of the classes.
        first: how many classes without a name come before those with one (the background).

    Raises:
        ValueError: if another weight is missing or of another shape.
    """
    own = module.state_dict()
    place = {name: i for i, name in enumerate(start.names)}
    rows = [(i + first, place[name] + first) for i, name in enumerate(names) if name in place]
    rows += [(i, i) for i in range(first)]
    for name, tensor in own.items():
        stored = start.weights.get(f"{prefix}{name}")
        if stored is not None and name.rpartition(".")[0] in by_class:
            ours, theirs = tensor.unflatten(0, (len(names) + first, -1)), stored.unflatten(0, (len(place) + first, -1))
            if ours.shape[1:] == theirs.shape[1:]:
                for row, other in rows:
                    ours[row] = theirs[other]
                continue
        if stored is None or stored.shape != tensor.shape:
            raise ValueError(
                f"model_name_or_path: the weights of the {start.kind} in {start.place} do not fit: {prefix}{name}"
            )
        tensor.copy_(stored)


def say_start(start: Pretrained | None, whole: bool, names: Sequence[str], note: str = "") -> None:
    """Say in the log what weights a run starts from."""
    if start is None:
        return
    head = None
    if whole:
        kept = len(set(names) & set(start.names))
        head = f"with its head: {kept} of its {len(start.names)} classes are kept, {len(names) - kept} are new"
    logger.info("weights: %s%s", start.describe(head), note)


def places_of(names: Sequence[str], start: Pretrained) -> list[int]:
    """For each class of the images the class of a model that has that name.

    Raises:
        ValueError: naming `model_name_or_path`, if it has none.
    """
    place = {name: i for i, name in enumerate(start.names)}
    if missing := [name for name in names if name not in place]:
        raise ValueError(
            f"model_name_or_path: the {start.kind} in {start.place} knows no class {missing[0]!r}, as the images do; "
            f"its classes are {', '.join(start.names[:10])}{', ...' if len(start.names) > 10 else ''}"
        )
    return [place[name] for name in names]
