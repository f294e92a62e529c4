"""Weights under other names: renamed, fused, and held against what the encoder has."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch


Weights = dict[str, torch.Tensor]
Rename = tuple[str, str | Callable[[re.Match], str]]  # a regular expression and what replaces it
# Norms after pooling, which no feature map passes. Where a checkpoint has none, they are as new.
POOLED_NORMS = ("fc_norm.weight", "fc_norm.bias", "head.norm.weight", "head.norm.bias")


def rename(name: str, renames: Iterable[Rename]) -> str:
    """Apply all renames to a name, in their order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def rename_all(names: Iterable[str], renames: Sequence[Rename]) -> dict[str, str]:
    """The stored name of each new name.

    Raises:
        ValueError: naming `model_name_or_path`, if two weights get the same name.
    """
    stored: dict[str, str] = {}
    for name in names:
        new = rename(name, renames)
        if new in stored:
            raise ValueError(
                f"model_name_or_path: it holds {new} of the encoder twice, as {stored[new]} and as {name}"
            )
        stored[new] = name
    return stored


def fuse_qkv(weights: Weights, separate_biases: bool) -> Weights:
    """Make timm's `qkv` of `attn.q`, `attn.k` and `attn.v`.

    Args:
        weights: `weight` of shape (features, width) and `bias` of shape (features) of each.
        separate_biases: whether timm keeps biases as `q_bias` and `v_bias` (BEiT, EVA, Swin V2: keys have none), or as
            one `qkv.bias`.

    Returns:
        The same with `attn.qkv.weight` of shape (3 * features, width).
    """
    fused = {}
    for name, tensor in weights.items():
        block, found, kind = name.rpartition(".attn.")
        letter, _, part = kind.partition(".")
        if not found or letter not in ("q", "k", "v"):
            fused[name] = tensor
        elif separate_biases and part == "bias":
            # Of keys there is none: the encoder does not know it by its name.
            fused[f"{block}.attn.{letter}_bias" if letter != "k" else name] = tensor
        else:
            parts = [weights[one] for one in (f"{block}.attn.{each}.{part}" for each in "qkv") if one in weights]
            if len(parts) < 3:
                fused[name] = tensor  # which the encoder does not know by its name
            elif letter == "q":
                fused[f"{block}.attn.qkv.{part}"] = torch.cat(parts)
    return fused


def fit(weights: Weights, shapes: Mapping[str, torch.Size], stored: Mapping[str, str], what: str) -> Weights:
    """Weights as the encoder takes them: in its shapes, which differ from transformers' by dimensions of size 1 alone,
    and with new norms after pooling where there are none.

    Args:
        weights: under timm's names.
        shapes: what the encoder has.
        stored: the name in the checkpoint of names that were changed, for messages.
        what: the model, in words.

    Raises:
        ValueError: naming `model_name_or_path` and the weight, if one is missing, unknown or of another shape.
    """
    for name, tensor in weights.items():
        key = stored.get(name, name)
        if name not in shapes:
            raise ValueError(f"model_name_or_path: it holds {key}, which is not known as a weight of {what}")
        if _without_ones(tensor.shape) != _without_ones(shapes[name]):
            raise ValueError(
                f"model_name_or_path: {key} is of shape {tuple(tensor.shape)}, by its config.json {what} has "
                f"{tuple(shapes[name])}"
            )
    like = next(iter(weights.values()), torch.empty(0))
    new = {
        name: (torch.ones if name.endswith("weight") else torch.zeros)(shapes[name], dtype=like.dtype).to(like.device)
        for name in POOLED_NORMS
        if name in shapes and name not in weights
    }
    if missing := [name for name in shapes if name not in weights and name not in new]:
        raise ValueError(
            f"model_name_or_path: it has no weights for {', '.join(missing[:3])} (timm's names) of {what}"
        )
    return {name: weights[name].reshape(shapes[name]) if name in weights else new[name] for name in shapes}


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]
