"""Curves of a classifier over all thresholds, of each class against the rest: ROC, and precision by recall."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from ..utils.plotting import new_figure, short_names
from .thresholds import ThresholdFigures


MOST_CURVES = 10  # in one figure
MOST_INSIDE = 4  # entries of a legend that covers no curves, as good ones leave that corner free


def shown_classes(scores: np.ndarray, positives: np.ndarray, first: Sequence[int] = ()) -> tuple[list[int], list[int]]:
    """The classes that have a curve, as there are images of them and without them, and whose scores are all finite;
    and those that have none. Of more than `MOST_CURVES`, those with the most images are drawn, after those in `first`.
    The first list may be longer than `MOST_CURVES`: what follows is not drawn.

    Args:
        scores, positives: (images, classes).
        first: classes to be drawn in any case.
    """
    fits = positives.any(0) & ~positives.all(0) & np.isfinite(scores).all(0)
    order = sorted(range(scores.shape[1]), key=lambda c: (c not in first, -int(positives[:, c].sum()), c))
    return [c for c in order if fits[c]], [c for c in range(scores.shape[1]) if not fits[c]]


def plot_roc_curve(
    scores: np.ndarray,
    positives: np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike,
    chosen: Mapping[str, ThresholdFigures] | None = None,
) -> list[str]:
    """Draw to a PNG file the recall of each class by its rate of false alarms, over all thresholds, with the area
    under the curve; the points of `chosen` thresholds are marked.

    Args:
        scores: (images, classes), by which images are ranked for each class.
        positives: (images, classes), whether an image is of a class.
        names: of the classes.
        path: removed where there is nothing to draw.
        chosen: thresholds by the name of their class, with what they give.

    Returns:
        The names of the classes that are drawn: up to 10 of those with images of both kinds and finite scores, those
        with a chosen threshold first, and then those with the most images.
    """

    def draw(axes: Axes, values: np.ndarray, there: np.ndarray, name: str, style: dict):
        alarms, recall, _ = roc_curve(there, values)
        axes.plot(alarms, recall, label=f"{name} (AUROC {roc_auc_score(there, values):.3f})", **style)

    def point(found: ThresholdFigures):
        return found.false_alarm_rate, found.recall

    labels = {
        "xlabel": "false-alarm rate (share of the other images)",
        "ylabel": "recall (share of the class's images)",
    }
    return _figure(scores, positives, names, path, chosen or {}, draw, point, labels, "lower right", diagonal=True)


def plot_precision_recall_curve(
    scores: np.ndarray,
    positives: np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike,
    chosen: Mapping[str, ThresholdFigures] | None = None,
) -> list[str]:
    """Draw to a PNG file the precision of each class by its recall, over all thresholds, with the average precision.
    Arguments and result as of `plot_roc_curve`."""

    def draw(axes: Axes, values: np.ndarray, there: np.ndarray, name: str, style: dict):
        precision, recall, _ = precision_recall_curve(there, values)
        label = f"{name} (average precision {average_precision_score(there, values):.3f})"
        axes.plot(recall, precision, label=label, drawstyle="steps-post", **style)

    def point(found: ThresholdFigures):
        return found.recall, found.precision

    labels = {"xlabel": "recall (share of the class's images)", "ylabel": "precision (share of what is called so)"}
    return _figure(scores, positives, names, path, chosen or {}, draw, point, labels, "lower left", diagonal=False)


def _figure(scores, positives, names, path, chosen, draw, point, labels, corner, diagonal: bool) -> list[str]:
    scores, positives = np.asarray(scores, dtype=np.float64), np.asarray(positives, dtype=bool)
    fit, _ = shown_classes(scores, positives, [i for i, name in enumerate(names) if name in chosen])
    drawn, short = fit[:MOST_CURVES], short_names(names)
    if not drawn:
        Path(path).unlink(missing_ok=True)  # of an earlier evaluation
        return []
    figure = new_figure(6, 6)
    axes = figure.add_subplot()
    for number, c in enumerate(drawn):
        style: dict[str, Any] = {"color": f"C{number}", "linewidth": 1.8 if len(drawn) == 1 else 1.2}
        draw(axes, scores[:, c], positives[:, c], short[c], style)
        found = chosen.get(names[c])
        if found is not None and None not in point(found):
            text = f"{short[c]}: threshold {found.threshold:.4g}"
            axes.plot(*point(found), "o", color=style["color"], markeredgecolor="black", label=text, zorder=3)
    if diagonal:
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1, label="by chance")
    elif len(drawn) == 1:
        share = positives[:, drawn[0]].mean()
        axes.axhline(share, color="grey", linestyle=":", linewidth=1, label=f"by chance ({share:.3f})")
    if len(fit) > len(drawn):
        which = "with a threshold, and " if chosen else ""
        axes.set_title(f"{len(drawn)} of {len(names)} classes: those {which}with the most images", fontsize=9)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", **labels)
    axes.grid(alpha=0.3)
    entries = len(axes.get_legend_handles_labels()[0])
    if entries <= MOST_INSIDE:
        axes.legend(loc=corner, fontsize=8)
    else:
        figure.set_size_inches(6, 6.4 + 0.2 * math.ceil(entries / 2))
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
    return [names[c] for c in drawn]
