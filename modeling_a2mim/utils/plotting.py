"""Figures, short names in them, and tensors as images: what every plot of the package shares."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


# What is drawn, and how strongly.
CURVES = {"loss": 1.0, "spatial_loss": 0.5, "frequency_loss": 0.5}

LONGEST_NAME = 20
LONGEST_LABEL = 40  # of a model
LONGEST_FILE = 34  # what fits above a small image


def short_names(names: Sequence[str], length: int = LONGEST_NAME) -> list[str]:
    """Names in one line of at most about `length` characters; with their index, where shortening made some alike."""
    lines = [" ".join(str(name).split()) for name in names]
    short = [line if len(line) <= length else line[: length - 1].rstrip(" ,") + "…" for line in lines]
    alike = {name for name, times in Counter(short).items() if times > 1}
    short = [f"{i} {name}" if name in alike else name for i, name in enumerate(short)]
    return [name.replace("$", r"\$") for name in short]  # matplotlib reads what is between two as a formula


def short_file(name: str, length: int = LONGEST_FILE) -> str:
    """The last folder and the name of a file in one line of at most `length` characters, of a longer one both ends."""
    line = " ".join("/".join(name.split("/")[-2:]).split())
    if len(line) > length:
        end = (length - 1) * 2 // 3  # files of a folder differ at their ends
        line = f"{line[: length - 1 - end]}…{line[-end:]}"
    return line.replace("$", r"\$")


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure of so many inches that no window shows."""
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)  # without pyplot, which picks a display
    FigureCanvasAgg(figure)
    return figure


def to_pil_image(image: torch.Tensor, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> Image.Image:
    """An image (channels, height, width), normalised with `mean` and `std`, in RGB; of images that are neither grey
    nor RGB the first channel is shown."""
    shift, scale = (image.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    shown = (image * scale + shift).clamp(0, 1)[: 3 if len(image) == 3 else 1]
    return Image.fromarray((shown * 255).round().byte().permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy())


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
