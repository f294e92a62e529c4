"""How sure a result is over several seeds, and a table of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and half the width of its confidence interval, which one value alone does not give (`None`)."""

    mean: float
    half_width: float | None

    def __str__(self):
        return f"{self.mean:.3f}" if self.half_width is None else f"{self.mean:.3f} ± {self.half_width:.3f}"


def mean_and_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of values that vary at random (seeds), and the half-width of its interval by Student's t.

    Raises:
        ValueError: if there are no values, or `confidence` is not in (0, 1).
    """
    if not len(values):
        raise ValueError("values: expected at least one")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: must be in (0, 1), got {confidence}")
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Interval(mean, None)
    return Interval(mean, float(stats.t.ppf((1 + confidence) / 2, count - 1) * stats.sem(values)))


def paired_difference(one: Sequence[float], other: Sequence[float], confidence: float = 0.95) -> Interval:
    """`other - one` where both have the same seeds in the same order: what the seeds do to both alike cancels, so the
    interval is narrower than that of either.

    Raises:
        ValueError: if there is not one value of each for each seed.
    """
    if len(one) != len(other):
        raise ValueError(f"other: expected {len(one)} values, one for each of the other side, got {len(other)}")
    return mean_and_interval(np.subtract(other, one), confidence)


def summarise(rows: Sequence[dict], confidence: float = 0.95) -> list[dict[str, str]]:
    """The rows of a table: one for each method, layer and subset, in the order in which they come, with the mean and
    its interval over seeds.

    Args:
        rows: one result each: `accuracy` in [0, 1] and, as far as there are any, `subset`, `method` and `layer`
            (`None`: the encoder's own pooled features).
    """
    groups: dict[tuple, list[float]] = {}
    keys = [key for key in ("subset", "method", "layer") if any(key in row for row in rows)]
    for row in rows:
        cells = tuple("" if key not in row else "pooled" if row[key] is None else str(row[key]) for key in keys)
        groups.setdefault(cells, []).append(row["accuracy"])
    names = {"subset": "labels"}
    return [
        {names.get(key, key): cell for key, cell in zip(keys, cells, strict=True)}
        | {"accuracy": str(mean_and_interval(values, confidence)), "seeds": str(len(values))}
        for cells, values in groups.items()
    ]


def results_table(rows: Sequence[dict], confidence: float = 0.95) -> str:
    """The same as a table in Markdown.

    Raises:
        ValueError: if there are no rows.
    """
    summary = summarise(rows, confidence)
    if not summary:
        raise ValueError("rows: expected at least one result")
    lines = [list(summary[0]), ["---"] * len(summary[0]), *(list(row.values()) for row in summary)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
