"""The figures of the commands of this folder: several models in one, each in its own colour."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure


if TYPE_CHECKING:
    from .fourier import FourierAnalysis
    from .strength import InteractionStrength

COLUMNS = 4  # panels in a row, where each model has its own
LONGEST_NAME = 20
LONGEST_LABEL = 40  # of a model
LONGEST_FILE = 34  # what fits above a small picture


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


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """A figure of so many inches that no window shows."""
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)  # without pyplot, which picks a display
    FigureCanvasAgg(figure)
    return figure


def interaction_figure(results: Mapping[str, InteractionStrength], path: str | os.PathLike):
    """Draw J(m) of several models over the share of the other patches that are shown, with the 95% intervals as bands,
    to a PNG file."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for label, result in zip(short_names(list(results), LONGEST_LABEL), results.values(), strict=True):
        shown = 100 * result.orders / (result.settings.players - 2)
        (line,) = axes.plot(shown, result.strength, marker="o", markersize=3, label=label)
        axes.fill_between(shown, *result.strength_interval().T, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("order m / (n - 2): other patches that are shown, %")
    axes.set_ylabel("interaction strength J(m), 1 on average")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title="95% interval over images as band", title_fontsize="small")
    figure.savefig(path, metadata={"Software": None})


def fourier_figure(results: Mapping[str, FourierAnalysis], path: str | os.PathLike):
    """Draw to a PNG file, of all models by depth, how weak the highest frequency is and the variance of features; and
    for each model a panel with the amplitudes of all frequencies, a curve for each layer."""
    labels = short_names(list(results), LONGEST_LABEL)
    rows = -(-len(results) // COLUMNS)
    figure = new_figure(11, 4 + 3.2 * rows)
    above, below = figure.subfigures(2, 1, height_ratios=[4, 3.2 * rows])
    highest, variance = above.subplots(1, 2)
    for label, result in zip(labels, results.values(), strict=True):
        last = [amplitude[-1] for amplitude in result.log_amplitude]
        highest.plot(result.depth, last, marker="o", markersize=3, label=label)
        variance.plot(result.depth, result.variance, marker="o", markersize=3, label=label)
    highest.set_ylabel("log amplitude at the highest frequency,\nrelative to frequency 0")
    variance.set_ylabel("variance of features over positions")
    variance.set_yscale("log")
    for axes in (highest, variance):
        axes.set_xlabel("depth (0: first layer, 1: last)")
        axes.grid(alpha=0.3)
    highest.legend()
    colors = matplotlib.colormaps["viridis"]
    panels = below.subplots(rows, min(len(results), COLUMNS), sharey=True, squeeze=False)
    for axes, label, result in zip(panels.flat, labels, results.values(), strict=False):
        for depth, frequency, amplitude in zip(result.depth, result.frequencies, result.log_amplitude, strict=True):
            axes.plot(frequency, amplitude, color=colors(depth))
        axes.set_title(label, fontsize="medium")
        axes.set_xlabel("diagonal frequency, π per cell")
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(results) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_ylabel("relative log amplitude")
    below.colorbar(ScalarMappable(cmap=colors), ax=panels, label="depth")
    figure.savefig(path, metadata={"Software": None})


def spectrum_figure(
    spectra: Mapping[str, tuple[np.ndarray, np.ndarray]],
    images: tuple[np.ndarray, np.ndarray],
    path: str | os.PathLike,
):
    """Draw to a PNG file the power of the errors of several models by frequency, each (frequencies, power), and beside
    them that of the images themselves."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    axes.plot(*images, color="black", linestyle=":", label="the images")
    for label, (frequencies, power) in zip(short_names(list(spectra), LONGEST_LABEL), spectra.values(), strict=True):
        axes.plot(frequencies, power, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("frequency, cycles per pixel")
    axes.set_ylabel("power of the error, of pixels in [0, 1]")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
