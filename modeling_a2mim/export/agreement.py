"""Whether another runtime computes what PyTorch does."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .runtime_model import RuntimeModel, Traced, example


logger = logging.getLogger("a2mim")

TOLERANCE = 1e-4
LEAST_RESPONSE = 1e-3  # below, a runtime that ignored the image would hardly be told from one that is right
Run = Callable[[np.ndarray], dict[str, np.ndarray]]  # of another runtime: images to what it gives for them, by name


@dataclass(frozen=True)
class Agreement:
    """How another runtime compares with PyTorch.

    Args:
        error: the largest max |a - b| / max |a| over outputs and batches, a of PyTorch.
        errors: the largest of each output.
        response: the least over outputs of max |a - mean of a over the images| / max |a|: how much of the outputs
            depends on the image, without which the error would say nothing.
        batches: the shapes that were compared.
    """

    error: float
    errors: dict[str, float]
    response: float
    batches: list[list[int]]


def batches_of(traced: Traced, channels: int) -> list[torch.Tensor]:
    """Images to compare with: batches of 1 and 3, and where sizes are free, of other ones."""
    found = [example(channels, traced.size, batch, seed=batch) for batch in (1, 3)]
    if (other := traced.other_size()) is not None:
        found += [example(channels, other, 2, seed=4), example(channels, other[::-1], 1, seed=5)]
    return found


def check_agreement(
    model: RuntimeModel, run: Run, batches: Sequence[torch.Tensor], tolerance: float = TOLERANCE
) -> Agreement:
    """Compare another runtime with PyTorch in float32.

    Args:
        model: in PyTorch.
        run: the other runtime.
        batches: normalised images, (batch, channels, height, width) each.
        tolerance: the largest error that is right.

    Raises:
        ValueError: naming `tolerance`, if the error is larger; `model`, if it gives NaN or infinity, or nothing but
            zeros.
    """
    errors: dict[str, float] = {}
    by_shape: dict[tuple, list[np.ndarray]] = {}
    for images in batches:
        with torch.no_grad():
            expected = {name: value.numpy() for name, value in model(images).items()}
        found = run(images.numpy())
        if list(found) != list(expected):
            raise ValueError(f"format: the runtime gives {', '.join(found)}, PyTorch {', '.join(expected)}")
        for name, value in expected.items():
            largest = np.abs(value).max()
            if not np.isfinite(largest) or largest == 0:
                what = "nothing but zeros" if largest == 0 else "values that are not finite"
                raise ValueError(f"model: its {name} has {what}; there is nothing to compare")
            if found[name].shape != value.shape:
                raise ValueError(
                    f"format: {name} of images {tuple(images.shape)} has the shape {found[name].shape} in the "
                    f"runtime, {value.shape} in PyTorch"
                )
            error = float(np.abs(found[name] - value).max() / largest)  # NaN where the runtime gives one
            errors[name] = max(errors.get(name, 0.0), np.inf if np.isnan(error) else error)
            by_shape.setdefault((name, value.shape[1:]), []).append(value)
    response = min(
        _response(np.concatenate(values)) for values in by_shape.values() if len(np.concatenate(values)) > 1
    )
    result = Agreement(max(errors.values()), errors, response, [list(images.shape) for images in batches])
    if not result.error <= tolerance:
        worst = max(errors, key=errors.__getitem__)
        raise ValueError(
            f"tolerance: {worst} differs from PyTorch's by {result.error:.1e} of its largest value, more than "
            f"{tolerance:.1e}; PyTorch in float32 differs from float64 by {rounding(model, batches):.1e}"
        )
    if response < LEAST_RESPONSE:
        logger.warning(
            "the outputs of this model hardly depend on the image (by %.1e of their largest value): that both "
            "runtimes agree says little",
            response,
        )
    return result


def rounding(model: RuntimeModel, batches: Sequence[torch.Tensor]) -> float:
    """How much a model in PyTorch differs in float32 from itself in float64, measured as `Agreement.error`: what
    another runtime may differ by, too, without being wrong."""
    exact, largest = copy.deepcopy(model).double(), 0.0
    with torch.no_grad():
        for images in batches:
            values = exact(images.double())
            for name, value in model(images).items():
                largest = max(largest, float((value - values[name]).abs().max() / values[name].abs().max()))
    return largest


def _response(values: np.ndarray) -> float:
    return float(np.abs(values - values.mean(0)).max() / np.abs(values).max())
