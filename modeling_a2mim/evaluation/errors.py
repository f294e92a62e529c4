"""Where a classifier is wrong: a figure of its confusion matrix, a figure of the images with the highest loss, and a
table of all wrong predictions."""

import csv
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.layout_engine import ConstrainedLayoutEngine
from sklearn.metrics import confusion_matrix

from ..utils.plotting import new_figure, short_file, short_names, to_pil_image


MOST_NUMBERED = 20  # classes with a number in each cell
MOST_NAMED = 100  # classes with a name on the axes
MOST_LISTED = 25  # confusions


def plot_confusion_matrix(
    labels: Sequence[int], predictions: Sequence[int], names: Sequence[str], path: str | os.PathLike
):
    """Draw to a PNG file which share of each true class (row) is predicted as which class (column). Rows of classes
    without samples are grey. Up to 20 classes have their shares in percent in the cells, with the number of samples
    beneath, and up to 100 their names on the axes, with the number of samples of each true class; more have only
    numbers there. Above 20, colours show small shares more strongly, and the largest confusions are listed beside.

    Args:
        labels, predictions: class indices of each sample.
        names: of all classes.

    Raises:
        ValueError: if a class index is none of those of `names`, or `labels` and `predictions` are not as many.
    """
    count = len(names)
    if len(labels) != len(predictions):
        raise ValueError(f"predictions: expected one for each of {len(labels)} labels, got {len(predictions)}")
    for field, values in (("labels", labels), ("predictions", predictions)):
        if len(values) and not 0 <= min(values) <= max(values) < count:
            raise ValueError(f"{field}: expected class indices of 0 to {count - 1}")
    matrix = confusion_matrix(labels, predictions, labels=range(count))
    totals = matrix.sum(1)
    shares = np.full(matrix.shape, np.nan)
    np.divide(100 * matrix, totals[:, None], out=shares, where=totals[:, None] > 0)

    numbered, named, short = count <= MOST_NUMBERED, count <= MOST_NAMED, short_names(names)
    side = (3 + (0.55 if numbered else 0.13) * count) if named else 11.0  # inches
    figure = new_figure(side + 1, side)
    axes = figure.add_subplot(facecolor="lightgrey")
    norm = PowerNorm(1.0 if numbered else 0.5, 0, 100)
    image = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    if numbered:
        for (row, column), share in np.ndenumerate(shares):
            if share > 0:
                style: dict[str, Any] = {"ha": "center", "color": "white" if share > 50 else "black"}
                samples = f"{matrix[row, column]:,}"
                axes.text(column, row, f"{share:.0f}%", va="bottom", fontsize=8, **style)
                axes.text(column, row + 0.08, samples, va="top", fontsize=min(7, 45 / len(samples)), **style)
    else:
        lines = [
            f"{share:.0f}% ({matrix[row, column]:,} of {totals[row]:,})  {short[row]} → {short[column]}"
            for row, column, share in _confusions(shares)
        ]
        text = "\n".join(["largest confusions", "", *lines])
        listed = axes.annotate(text, (1.02, 1), xycoords="axes fraction", va="top", fontsize=9, linespacing=1.4)
        listed.set_in_layout(False)  # which would shrink the matrix for it
    if named:
        size = 9 if numbered else 6
        axes.set_xticks(range(count), short, rotation=90, fontsize=size)
        axes.set_yticks(range(count), [f"{n} ({t:,})" for n, t in zip(short, totals, strict=True)], fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class (samples)" if named else "true class")
    where: dict[str, Any] = {"shrink": 0.7} if numbered else {"location": "left", "shrink": 0.4}
    figure.colorbar(image, ax=axes, label="% of the true class", **where)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for label in axes.texts:
        label.set_in_layout(True)
    figure.savefig(path, metadata={"Software": None}, bbox_inches="tight")  # as wide as the list is


def _confusions(shares: np.ndarray, count: int = MOST_LISTED) -> list[tuple[int, int, float]]:
    """The largest shares beside the diagonal, the largest first, as (true class, predicted class, share)."""
    wrong = np.nan_to_num(shares)
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None, kind="stable")[:count]
    found = [(*map(int, np.unravel_index(place, wrong.shape)), wrong.flat[place]) for place in places]
    return [entry for entry in found if entry[2] > 0]


def worst_examples(logits: np.ndarray, labels: Sequence[int], count: int = 16) -> list[int]:
    """The samples whose wrong prediction has the highest cross-entropy, the worst first; at most `count`.

    Args:
        logits: (samples, classes).
        labels: class index of each sample.
    """
    scores, classes = torch.as_tensor(logits).double(), torch.as_tensor(labels).long()
    losses = torch.nn.functional.cross_entropy(scores, classes, reduction="none")
    wrong = (scores.argmax(1) != classes).nonzero().flatten()
    return wrong[losses[wrong].argsort(descending=True, stable=True)][:count].tolist()


def row_name(row: int) -> str:
    """What a sample is called where nothing but its row is known."""
    return f"row {row}"


def errors_table(
    logits: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    path: str | os.PathLike,
    name_of: Callable[[int], str] = row_name,
):
    """Write to a CSV file every wrong prediction, that of the highest loss first: the file, the true and the predicted
    class, the probability of both, and the loss (cross-entropy in nats).

    Args:
        logits: (samples, classes).
        labels: class index of each sample.
        names: of all classes.
        name_of: what a sample is called, given its index.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(
            ["file", "true class", "predicted class", "probability of true", "probability of predicted", "loss"]
        )
        for index in worst_examples(logits, labels, len(labels)):
            logs = torch.as_tensor(logits[index]).double().log_softmax(0)
            right, guess = int(labels[index]), int(logs.argmax())
            numbers = [logs[right].exp(), logs[guess].exp(), -logs[right]]
            table.writerow([name_of(index), names[right], names[guess], *(f"{number:.4g}" for number in numbers)])


def plot_worst_examples(
    samples,
    logits: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    path: str | os.PathLike,
    count: int = 16,
    name_of: Callable[[int], str] = row_name,
    channels: Sequence[int] | None = None,
    stretch: bool = False,
) -> list[int]:
    """Draw to a PNG file the images that `worst_examples` finds, each with its file, its true and predicted class and
    the probability of both in percent.

    Args:
        samples: dataset of dicts with `pixel_values` (channels, height, width), normalised by `mean` and `std`; only
            those that are drawn are read.
        logits: (samples, classes).
        labels: class index of each sample.
        names: of all classes.
        name_of: what a sample is called, given its index.
        channels, stretch: what is shown of an image: see `utils.plotting.to_pil_image`; stretched by itself.

    Returns:
        The samples that are drawn; where every prediction is right, none are, nor is the file written.

    Raises:
        ValueError: if there is not one row of logits, and one label, for each sample.
    """
    if not len(samples) == len(logits) == len(labels):
        raise ValueError(
            f"logits: expected rows and labels for {len(samples)} samples, got {len(logits)} and {len(labels)}"
        )
    worst = worst_examples(logits, labels, count)
    if not worst:
        return worst
    columns = min(4, len(worst))
    rows = math.ceil(len(worst) / columns)
    figure = new_figure(2.4 * columns, 2.9 * rows)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(h_pad=0.1)
    short = short_names(names)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    # ImageSamples gives several as evaluation saw them: for a broken image, its replacement.
    several = getattr(samples, "__getitems__", lambda rows: [samples[row] for row in rows])
    for axes, index, sample in zip(figure.axes, worst, several(worst), strict=False):
        shares = torch.as_tensor(logits[index]).double().softmax(0)
        right, guess = int(labels[index]), int(shares.argmax())
        pixels = torch.as_tensor(sample["pixel_values"]).float()
        axes.imshow(to_pil_image(pixels, mean, std, channels, pixels if stretch else None))
        lines = [short_file(name_of(index)), f"{short[right]} ({100 * shares[right]:.0f}%)"]
        lines.append(f"taken for {short[guess]} ({100 * shares[guess]:.0f}%)")
        axes.set_title("\n".join(lines), fontsize=8)
    figure.savefig(path, metadata={"Software": None})
    return worst
