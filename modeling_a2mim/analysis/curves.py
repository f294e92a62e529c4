"""The loss over the steps of a run, as a picture."""

import os

from .figures import new_figure


# What is drawn, and how strongly.
CURVES = {"loss": 1.0, "spatial_loss": 0.5, "frequency_loss": 0.5}


def loss_curve(log: list[dict], path: str | os.PathLike):
    """Draw the losses in `log` (dicts with `step`, `loss` and, if there are any, its terms) to a PNG file.

    Terms are drawn as they were logged, before weights; the axis of values is logarithmic where all are positive.
    """
    figure = new_figure(7, 3.5)
    axes = figure.add_subplot()
    values = []
    for name, alpha in CURVES.items():
        points = [(entry["step"], entry[name]) for entry in log if entry.get(name) is not None]
        if points:
            marker = "o" if len(points) == 1 else None  # a line of one point is not seen
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), alpha=alpha, marker=marker)
            values += [value for _, value in points]
    if values and min(values) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
