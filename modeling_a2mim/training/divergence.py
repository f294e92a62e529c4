"""A run stops when its loss or gradient is not finite, before it spoils weights, checkpoints and results."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Diverged(ValueError):
    """Training has come to a loss, a gradient or weights that are not finite."""


def non_finite_weights(model: nn.Module) -> list[str]:
    """The names of parameters, and of statistics of BatchNorms, that hold NaN or infinity."""
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            tensors |= {f"{name}.{key}": value for key, value in module.named_buffers(recurse=False)}
    tensors = {name: value for name, value in tensors.items() if value.is_floating_point()}
    good = [torch.isfinite(value).all() for value in tensors.values()]
    return [name for name, fine in zip(tensors, good, strict=True) if not fine]


def check_weights(model: nn.Module, step: int, causes: str):
    """Refuse to write weights that are not finite.

    Raises:
        Diverged: naming the step and the first such weight.
    """
    if names := non_finite_weights(model):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise Diverged(f"learning_rate: after step {step}, {names[0]}{more} hold values that are not finite; {causes}")


def persists(loss: float, gradient: float, scale: float | None) -> bool:
    """Whether training cannot go on after a step with this loss and gradient norm.

    Without loss scaling, the first non-finite gradient would spoil the weights. With it (fp16), such steps are left
    out and the scale is halved, until one suits; a scale below 1 says that the scale is not to blame.

    Args:
        scale: what the loss is scaled by; `None` if it is not.
    """
    if math.isfinite(loss) and math.isfinite(gradient):
        return False
    return scale is None or scale < 1


def likely_causes(args, log: Iterable[dict]) -> str:
    """What a run of these arguments most likely diverged from, and what to do."""
    usual, causes = args.usual_learning_rate(), []
    if not args.optimizes_like_adam or args.learning_rate > 3 * usual:
        like = "usual" if args.optimizes_like_adam else "usual with AdamW"
        causes.append(f"a learning rate of {args.learning_rate:g} ({like}: {usual:g})")
    if not args.max_grad_norm:
        causes.append("gradients that are not clipped (--max_grad_norm 0)")
    if args.fp16:
        causes.append("numbers beyond the range of fp16 (--bf16 has a larger one)")
    if not args.get_warmup_steps(1000):
        causes.append("no warm-up (--warmup_steps)")
    losses = [entry["loss"] for entry in log if entry.get("loss") is not None]
    course = f"; the loss was {losses[0]:.4g} at first and {losses[-1]:.4g} in the last log" if losses else ""
    causes.append("images or labels with such values")
    return f"likely causes: {', '.join(causes)}{course}"
