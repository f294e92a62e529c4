"""Several runtimes of one model on the same images: accuracy side by side, and how often they say the same."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from .agreement import Run
from .runtime_model import LOGITS, POOLED, RuntimeModel


PYTORCH = "pytorch"


def pytorch(model: RuntimeModel) -> Run:
    """PyTorch as a runtime."""

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {name: value.numpy() for name, value in model(torch.from_numpy(images)).items()}

    return run


def evaluate_runtimes(
    runtimes: Mapping[str, Run], batches: Iterable[tuple[np.ndarray, np.ndarray | None]]
) -> dict[str, dict[str, Any]]:
    """What the runtimes make of images.

    Args:
        runtimes: by name; the first is what the others are compared with.
        batches: images, float32 (batch, channels, height, width), and their classes (batch,), or `None` for all.

    Returns:
        For each runtime `images`, how many there were; with classes `accuracy`, in [0, 1]; and for each but the first,
        of a classifier `agreement`, the share of images of which it names the same class, and of an encoder `cosine`,
        the mean cosine of its features (`pooler_output`, or its only output) to those of the first.

    Raises:
        ValueError: if there are no images.
    """
    first = next(iter(runtimes))
    sums: dict[str, dict[str, float]] = {name: {} for name in runtimes}
    count = 0
    for images, labels in batches:
        count += len(images)
        outputs = {name: _compared(run(images)) for name, run in runtimes.items()}
        classifies, reference = outputs[first]
        for name, (_, values) in outputs.items():
            figures = {}
            if labels is not None:
                figures["accuracy"] = (values.argmax(1) == labels).sum()
            if name != first:
                key = "agreement" if classifies else "cosine"
                same = values.argmax(1) == reference.argmax(1) if classifies else _cosine(values, reference)
                figures[key] = same.sum()
            for key, value in figures.items():
                sums[name][key] = sums[name].get(key, 0.0) + float(value)
    if not count:
        raise ValueError("there are no images")
    return {
        name: {"images": count, **{key: value / count for key, value in found.items()}} for name, found in sums.items()
    }


def _compared(outputs: dict[str, np.ndarray]) -> tuple[bool, np.ndarray]:
    """Whether these are logits, and what is compared: (batch, values)."""
    if LOGITS in outputs:
        return True, outputs[LOGITS]
    values = outputs.get(POOLED, next(iter(outputs.values())))
    return False, values.reshape(len(values), -1)


def _cosine(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return (one * two).sum(1) / np.maximum(norms, np.finfo(np.float32).tiny)
