"""How sure a result is over several seeds, and a table of it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..utils.tables import markdown_table
from .class_figures import BY_CLASS


# The figures that tables have, and what they are called there.
SUMMARY = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mean_average_precision": "mean average precision",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "precision": "precision",
    "recall": "recall",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "subset_accuracy": "subset accuracy",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
}
UNBOUNDED = ("mae", "rmse", "r2")  # figures that are not in [0, 1]


def layer_name(layer: int | str | None) -> str:
    """A layer (`models.pooled_features`) as tables and messages have it, by the name that `--probe_layers` has."""
    return "pooled" if layer is None else "last" if layer == -1 else str(layer)


class Interval(NamedTuple):
    """A mean and half the width of its confidence interval, which one value alone does not give (`None`)."""

    mean: float
    half_width: float | None

    def __str__(self):
        return f"{self.mean:.3f}" if self.half_width is None else f"{self.mean:.3f} ± {self.half_width:.3f}"


def mean_and_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
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
    its interval over seeds of each figure.

    Args:
        rows: one result each: figures by the names in `SUMMARY`, those that are not in all of them left out, and, as
            far as there are any, `subset`, `method` and `layer` (`None`: the encoder's own pooled features).
    """
    figures = [name for name in SUMMARY if rows and all(name in row for row in rows)]
    return [
        cells
        | {SUMMARY[name]: _shown(name, [row[name] for row in group], confidence) for name in figures}
        | {"seeds": str(len(group))}
        for cells, group in _groups(rows)
    ]


def summarise_classes(
    rows: Sequence[dict], names: Sequence[str], images: Sequence[int], confidence: float = 0.95
) -> list[dict[str, str]]:
    """The same for each class that has figures (`class_figures`).

    Args:
        rows: as for `summarise`, with the figures of classes.
        names: of the classes.
        images: how many of each class were evaluated on.
    """
    table = []
    for cells, group in _groups(rows):
        for name, count in zip(names, images, strict=True):
            found = {
                SUMMARY[figure]: _shown(figure, [row[f"{figure}_{name}"] for row in group], confidence)
                for figure in BY_CLASS
                if all(f"{figure}_{name}" in row for row in group)
            }
            if found:
                table.append({**cells, "class": name, "images": f"{count:,}", **found})
    return table


def _groups(rows: Sequence[dict]) -> Iterator[tuple[dict[str, str], list[dict]]]:
    """The first cells of a row of a table, and the results that it is of."""
    groups: dict[tuple, list[dict]] = {}
    keys = [key for key in ("subset", "method", "layer") if any(key in row for row in rows)]
    for row in rows:
        cells = tuple("" if key not in row else layer_name(row[key]) for key in keys)
        groups.setdefault(cells, []).append(row)
    for cells, group in groups.items():
        yield {{"subset": "labels"}.get(key, key): cell for key, cell in zip(keys, cells, strict=True)}, group


def _shown(name: str, values: Sequence[float], confidence: float) -> str:
    interval = mean_and_interval(values, confidence)
    if name not in UNBOUNDED:
        return str(interval)
    mean, half = (None if value is None else f"{value:.4g}" for value in interval)
    return mean if half is None else f"{mean} ± {half}"


def results_table(rows: Sequence[dict], confidence: float = 0.95) -> str:
    """What `summarise` gives as a table in Markdown.

    Raises:
        ValueError: if there are no rows.
    """
    summary = summarise(rows, confidence)
    if not summary:
        raise ValueError("rows: expected at least one result")
    return markdown(summary)


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Rows with the same keys as a table in Markdown."""
    return markdown_table(list(rows[0]), (row.values() for row in rows), spaced=True)
