"""An encoder's weights in a file that others wrote: the prefix of their names, and what timm makes of them."""

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import timm
import torch
from timm.models import adapt_input_conv

from .meta import NoValues, TimmEncoder


Weights = dict[str, torch.Tensor]

COUNTER = "num_batches_tracked"  # of BatchNorm, which old files lack
POOLED_NORM = "fc_norm."
# Of several copies the one that is evaluated, as their authors do: one of these, or what has EMA in its name ...
AVERAGED = {"teacher", "swa", "avg", "average", "averaged"}
EMA = re.compile("(model|net|network|encoder|backbone|weights|params|state)?ema(model|net|weights|params|state)?")
# ... and not one of these.
BEHIND = ("encoder_k", "momentum", "target", "student")
JEPA = "target_encoder"  # is the average, where no copy is called online as in BYOL
PLAIN = ("", "model", "state_dict", "module", "net", "network", "backbone", "encoder", "params", "weights")
# Of an optimiser, or from before training: taken last.
NO_WEIGHTS = {"grad", "grads", "exp", "m", "v", "opt", "optim", "optimizer", "buffer", "init", "initial", "ref"}
MMENGINE_AVERAGE = "ema_state_dict.steps"  # how often mmengine has averaged
MOST_TRIED = 12  # prefixes
NAMED = 5  # names in a message


@dataclass(frozen=True)
class FoundEncoder:
    """What was found of an encoder.

    Args:
        weights: under timm's names, with as many channels as are stored, and at the size of the encoder that they were
            found for.
        prefix: of their names in the file.
        left_over: names in the file that are not used.
        adapted: what timm changed for the size of the images, in words.
        others: prefixes of further copies of the encoder.
        doubtful: whether one of these may be meant as well: it is called nothing that tells them apart, and differs.
    """

    weights: Weights
    prefix: str = ""
    left_over: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    doubtful: bool = False


def find_encoder(stored: Weights, encoder: TimmEncoder, create_args: dict[str, Any]) -> FoundEncoder:
    """The weights of an encoder among those of a file: under timm's names with any prefix (`module.`, `teacher.`,
    `model.encoder.`), or under names that timm's loading of this architecture knows (those of its authors).

    Args:
        stored: all weights of the file.
        encoder: without a classifier; of its weights only the shapes are looked at, it may be on the meta device.
        create_args: keyword arguments of `timm.create_model` that it was made with.

    Raises:
        ValueError: if they are not there; the message tells the first names of both.
    """
    own_values = encoder.state_dict()
    shapes = {name: value.shape for name, value in own_values.items()}
    # A norm after pooling is new where the weights have one before it (MAE, BEiT).
    needed = {name for name in shapes if not name.endswith(COUNTER) and not name.startswith(POOLED_NORM)}
    translate, inputs = timm_filter(create_args), input_weights(encoder)
    hits = _prefixes_of(needed, stored)
    whole = [prefix for prefix, count in hits.items() if count == len(needed)]
    averaged = {prefix for prefix in whole if JEPA in prefix and not any("online" in other for other in whole)}
    preference = functools.partial(_preference, averaged=averaged, swapped=MMENGINE_AVERAGE in stored)
    whole.sort(key=preference)
    if whole:
        prefix = whole[0]
        own = {name: stored[prefix + name] for name in shapes if prefix + name in stored}
        found = own
        if translate is not None and _unfit(own, shapes, inputs):  # for images of another size
            found = {name: value for name, value in _translated(translate, own, encoder).items() if name in shapes}
        left_over = [name for name in stored if name.removeprefix(prefix) not in own or not name.startswith(prefix)]
    else:
        prefix, every = _find_translated(stored, encoder, translate, shapes, needed)
        found = {name: value for name, value in every.items() if name in shapes}
        left_over = [name for name in stored if not name.startswith(prefix)]
        left_over += [f"{prefix}{name}" for name in every if name not in shapes]
    unfit = {name: found[name].shape for name in _unfit(found, shapes, inputs)}
    # timm would resample the patches of another size as well: that is another encoder.
    ours = {name: stored[prefix + name].shape for name in found if prefix + name in stored}
    unfit |= {name: shape for name, shape in ours.items() if len(shape) == 4 and shape[2:] != shapes[name][2:]}
    if unfit or needed - found.keys():
        best = whole[0] if whole else max(hits, key=lambda one: (hits[one], -len(one)), default="")
        raise ValueError(_misfit(stored, shapes, best, unfit))
    for name, value in found.items():
        if value.is_floating_point() != own_values[name].is_floating_point():
            raise ValueError(f"{name} is of {value.dtype}, this encoder has {own_values[name].dtype}")
        if value.is_floating_point() and value.dtype.itemsize < 2:
            raise ValueError(
                f"{name} is of {value.dtype}, quantised weights, which are not read; store them in 16 bits"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite")
    if strange := _of_another_network([n.removeprefix(prefix) for n in left_over if n.startswith(prefix)], encoder):
        raise ValueError(
            f"it holds weights that have no place in this encoder, so it is of another one: {_first(strange)}"
        )
    same_names = [name for name in found if prefix + name in stored and (whole or "pos" in name)]
    changed = [name for name in same_names if stored[prefix + name].shape != found[name].shape]
    adapted = [f"{name} {_sides(stored[prefix + name])} -> {_sides(found[name])}" for name in changed]
    equals = [other for other in whole[1:] if preference(other)[0] == preference(prefix)[0]]
    equals += whole[1:] if prefix in averaged else []  # BYOL without "online" in a name looks the same
    doubtful = any(not torch.equal(stored[prefix + name], stored[other + name]) for other in equals for name in needed)
    return FoundEncoder(found, prefix, left_over, adapted, whole[1:], doubtful)


def timm_filter(create_args: dict[str, Any]) -> Callable[..., Weights] | None:
    """What timm brings the names of other code to its own with when it loads this architecture; `None` if it does
    not."""
    seen: list[Callable[..., Weights] | None] = []

    def record(model, filter_fn=None, **kwargs):
        seen.append(filter_fn)

    # timm hands it from the function that builds the model to the one that loads, and has no other way to it.
    with mock.patch("timm.models._builder.load_pretrained", record), torch.device("meta"), NoValues():
        timm.create_model(**create_args, pretrained=True, num_classes=0)
    return seen[0] if seen else None


def input_weights(encoder: TimmEncoder) -> list[str]:
    """Names of the weights whose shapes depend on the channels of the images."""
    modules = encoder.pretrained_cfg.get("first_conv") or ()
    return [f"{module}.weight" for module in ([modules] if isinstance(modules, str) else modules)]


def with_channels(weights: Weights, encoder: TimmEncoder, channels: int) -> tuple[Weights, list[str]]:
    """Weights with a first convolution for images of so many channels, as timm adapts it (of one channel it gets the
    sum, of more a repetition), and what changed, in words.

    Raises:
        ValueError: naming `num_channels`, if timm cannot.
    """
    changed, words, shapes = {}, [], {name: value.shape for name, value in encoder.state_dict().items()}
    for name in input_weights(encoder):
        if name not in weights or name not in shapes or weights[name].shape == shapes[name]:
            continue
        value, expected = weights[name], shapes[name]
        before = value.shape[1] * channels // expected[1] if value.ndim == len(expected) == 4 else 0  # of images
        try:
            value = adapt_input_conv(channels, value, base_chans=before)
        except (NotImplementedError, AssertionError, ValueError) as error:  # of timm, for what is no plain convolution
            raise ValueError(f"num_channels: timm cannot bring {name} to {channels} channels: {error}") from error
        changed[name] = value
        words.append(f"{name} {before} -> {channels} channels")
    return {**weights, **changed}, words


def _prefixes_of(needed: Collection[str], stored: Collection[str]) -> Counter[str]:
    """How many of the needed names there are under each prefix."""
    hits: Counter[str] = Counter()
    for name in stored:
        parts = name.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts)))
        hits.update(name[: len(name) - len(end)] for end in ends if end in needed)
    return hits


def _preference(prefix: str, averaged: Collection[str] = (), swapped: bool = False) -> tuple[int, bool, int, str]:
    """Of several copies the one that is evaluated, as its authors do, comes first.

    Args:
        prefix: of one of them.
        averaged: those that are averages, whatever they are called.
        swapped: whether mmengine wrote the file, which keeps the averages in `state_dict` and calls the others EMA.
    """
    lower = prefix.lower()
    words = lower.replace("_", ".").split(".")
    unusual = not any(lower in ("", name) or lower.startswith(f"{name}.") for name in PLAIN)
    if swapped and prefix.startswith("ema_state_dict."):
        rank = 2
    elif NO_WEIGHTS & set(words):
        rank = 3
    elif prefix in averaged or AVERAGED & set(words) or any(EMA.fullmatch(word) for word in words):
        rank = 0
    else:
        rank = 2 if any(word in lower for word in BEHIND) else 1
    return rank, unusual, len(prefix), prefix


def _unfit(weights: Weights, shapes: dict[str, torch.Size], inputs: Collection[str]) -> list[str]:
    """Of another shape, but for the channels of the images, which are adapted later."""

    def same(name: str) -> bool:
        pair = [list(weights[name].shape), list(shapes[name])]
        if name in inputs and all(len(shape) == 4 for shape in pair):
            del pair[0][1], pair[1][1]
        return pair[0] == pair[1]

    return [name for name in weights if name in shapes and not same(name)]


def _translated(translate: Callable[..., Weights], weights: Weights, encoder: TimmEncoder) -> Weights:
    """What timm makes of weights; nothing if its code is not for such names."""
    try:
        try:
            return translate(dict(weights), encoder)
        except TypeError:  # as in timm: some take weights alone
            return translate(dict(weights))
    except (KeyError, RuntimeError, AttributeError, ValueError, IndexError, AssertionError, TypeError):
        return {}


def _find_translated(
    stored: Weights,
    encoder: TimmEncoder,
    translate: Callable[..., Weights] | None,
    shapes: dict[str, torch.Size],
    needed: set[str],
) -> tuple[str, Weights]:
    """The prefix under which timm's loading finds most of the encoder, and what it makes of the names there."""
    counts: Counter[str] = Counter()
    for name in stored:
        parts = name.split(".")
        counts.update(".".join([*parts[:i], ""]) for i in range(1, len(parts)))
    counts[""] = len(stored)
    large = [prefix for prefix, count in counts.items() if 2 * count >= len(needed)]
    best: tuple[str, Weights] = ("", {})
    for prefix in sorted(large, key=_preference)[:MOST_TRIED] if translate is not None else ():
        part = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        found = _translated(translate, part, encoder)
        if len(needed & found.keys()) > len(needed & best[1].keys()):
            best = prefix, found
    return best


def _of_another_network(left_over: list[str], encoder: TimmEncoder) -> list[str]:
    """Which of the weights beside an encoder, all under its prefix, belong to one like it that is deeper or has more
    tokens: without them it would compute something else."""
    classifier = encoder.pretrained_cfg.get("classifier") or ()
    heads = {name.partition(".")[0] for name in ([classifier] if isinstance(classifier, str) else classifier)}
    modules = {name for name, module in encoder.named_children() if any(True for _ in module.parameters())} - heads
    buffers = {name.rpartition(".")[2] for name, _ in encoder.named_buffers()} | {
        "relative_position_index",
        "attn_mask",
    }
    strange = []
    for name in left_over:
        first, dot, _ = name.partition(".")
        is_position = not dot and ("token" in name or "pos" in name) and not name.startswith(("mask", "decoder"))
        if name.rpartition(".")[2] not in buffers and (is_position or (dot and first in modules)):
            strange.append(name)
    return strange


def _misfit(stored: Weights, shapes: dict[str, torch.Size], prefix: str, unfit: dict[str, torch.Size]) -> str:
    if unfit:
        name = next(iter(unfit))
        return f"{name} is of shape {tuple(unfit[name])}, this encoder has {tuple(shapes[name])}"
    missing = [name for name in shapes if f"{prefix}{name}" not in stored and not name.startswith(POOLED_NORM)]
    if set(missing) == {"norm.weight", "norm.bias"} and f"{prefix}{POOLED_NORM}weight" in stored:
        return 'it has a norm after pooling; give --model_args with "global_pool": "avg" among its arguments'
    under = f" under {prefix!r}" if prefix else ""
    some = f"{len(missing)} of its {len(shapes)} weights are missing{under}: {_first(missing)}; "
    return (
        f"{some if len(missing) < len(shapes) else ''}it begins with {_first(stored)}, expected were {_first(shapes)}"
    )


def _first(names: Collection[str]) -> str:
    return ", ".join(list(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _sides(value: torch.Tensor) -> str:
    return " x ".join(map(str, value.shape))
