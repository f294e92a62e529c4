"""Figures, short names in them, and tensors as images: what every plot of the package shares."""

import functools
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont


# What is drawn, and how strongly.
CURVES = {"loss": 1.0, "spatial_loss": 0.5, "frequency_loss": 0.5}
# Of the gauge, on an axis of shares; and its rank, on an axis of its own.
SHARES = {"knn_accuracy": "k-NN accuracy", "feature_std": "feature std", "feature_cosine": "feature cosine"}
RANK = "rankme"

LONGEST_NAME = 20
LONGEST_LABEL = 40  # of a model
LONGEST_FILE = 34  # what fits above a small image
CAPTION_SIZE = 10  # of text beside images, in pixels

QUANTILE = 2**24  # values that torch.quantile takes at most


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


@functools.cache
def caption_font() -> tuple[ImageFont.FreeTypeFont, frozenset[int]]:
    """The font of text beside images, and the code points that it has: that of matplotlib, as Pillow's own has no
    accents."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(path, CAPTION_SIZE), frozenset(FT2Font(path).get_charmap())


def drawable(text: str) -> str:
    """A text with "?" for each character that `caption_font` lacks; accents of their own, as macOS writes them in the
    names of files, are joined to their letters."""
    known = caption_font()[1]
    return "".join(c if ord(c) in known else "?" for c in unicodedata.normalize("NFC", text))


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure of so many inches that no window shows."""
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)  # without pyplot, which picks a display
    FigureCanvasAgg(figure)
    return figure


def to_pil_image(
    image: torch.Tensor,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    channels: Sequence[int] | None = None,
    like: torch.Tensor | None = None,
) -> Image.Image:
    """An image in RGB.

    Args:
        image: (channels, height, width), normalised with `mean` and `std`.
        channels: one or three to show, from 1; all of 1 or 3, else the first, if not given.
        like: an image of the same kind, whose 0.5 and 99.5 percentiles become black and white; without it 0 and 1 do.
    """
    shift, scale = (image.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    chosen = [channel - 1 for channel in channels or ((1, 2, 3) if len(image) == 3 else (1,))]
    shown = (image * scale + shift)[chosen]
    if like is not None:
        ends = torch.tensor([0.005, 0.995], dtype=torch.float64)
        low, high = torch.quantile((like * scale + shift)[chosen].flatten()[:QUANTILE].double().cpu(), ends).tolist()
        shown = (shown - low) / (high - low if high > low else 1.0)
    shown = shown.clamp(0, 1)
    return Image.fromarray((shown * 255).round().byte().permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy())


def loss_curve(log: list[dict], path: str | os.PathLike, monitor: Sequence[dict] = ()):
    """Draw the losses in `log` (dicts with `step`, `loss` and, if there are any, its terms) to a PNG file, and below
    them what was measured of the encoder at the same steps.

    Terms are drawn as they were logged, before weights; the axis of values is logarithmic where all are positive.

    Args:
        monitor: dicts with `step` and figures of `evaluation.gauge` (`export.monitor.monitor_log`).
    """
    figure = new_figure(7, 6 if monitor else 3.5)
    axes, *below = figure.subplots(1 + bool(monitor), sharex=True, squeeze=False)[:, 0]
    _draw_losses(axes, log)
    for panel in below:
        _draw_monitor(panel, monitor)
    (axes, *below)[-1].set_xlabel("step")
    figure.savefig(path, metadata={"Software": None})


def _points(entries: Sequence[dict], name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]


def _draw_losses(axes: Axes, log: Sequence[dict]):
    values = []
    for name, alpha in CURVES.items():
        points = _points(log, name)
        if points:
            marker = "o" if len(points) == 1 else None  # a line of one point is not seen
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), alpha=alpha, marker=marker)
            values += [value for _, value in points]
    if values and min(values) > 0:
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_monitor(axes: Axes, monitor: Sequence[dict]):
    style: dict[str, Any] = {"marker": "o", "markersize": 3}
    lines = []
    for number, (name, label) in enumerate(SHARES.items()):
        if points := _points(monitor, name):
            faint: dict[str, Any] = {} if name == "knn_accuracy" else {"alpha": 0.6, "linewidth": 1, "linestyle": "--"}
            lines += axes.plot(*zip(*points, strict=True), label=label, color=f"C{number}", **style, **faint)
    ranks = axes.twinx()
    if points := _points(monitor, RANK):
        lines += ranks.plot(*zip(*points, strict=True), label="RankMe (right)", color="C3", **style)
    axes.set_ylabel("of the frozen encoder, 0 to 1")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
    ranks.set_ylabel("RankMe, dimensions", color="C3")
    ranks.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(handles=lines, ncols=len(lines), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
