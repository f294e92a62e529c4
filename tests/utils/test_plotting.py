"""The figures of the analysis and of training: what is on their axes, one curve for each model, in one colour."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from modeling_a2mim.analysis.fourier import FourierAnalysis, fourier_figure
from modeling_a2mim.analysis.interactions import interaction_figure
from modeling_a2mim.analysis.reconstruction import spectrum_figure
from modeling_a2mim.analysis.strength import InteractionSettings, InteractionStrength
from modeling_a2mim.utils.plotting import loss_curve


@pytest.fixture
def saved(monkeypatch):
    """The figures that are written."""
    figures = []
    write = Figure.savefig

    def record(self, *args, **kwargs):
        figures.append(self)
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def strength(scale: float = 1.0) -> InteractionStrength:
    generator = np.random.default_rng(0)
    settings = InteractionSettings(grid=4, ratios=(0, 0.5, 1), pairs=5)
    values = generator.uniform(1, 2, (20, 3, 5)) * [[[1], [scale], [1]]]
    return InteractionStrength(
        settings, np.array(settings.orders), values, np.zeros((20, 5, 2)), np.full((20, 5), 0.2), 99
    )


def readable(path):
    with Image.open(path) as image:
        assert "Software" not in image.info
        assert np.asarray(image.convert("L")).std() > 5
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_interactions(saved, tmp_path):
    results = {"scratch": strength(), "A2MIM": strength(2.0)}
    interaction_figure(results, tmp_path / "figure.png")
    (axes,) = saved[0].axes
    assert "J(m)" in axes.get_ylabel()
    assert axes.get_xlabel().startswith("order m / (n - 2)")
    assert axes.get_xlabel().endswith("%")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["scratch", "A2MIM"]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len({line.get_color() for line in curves}) == 2
    for line, band, result in zip(curves, axes.collections, results.values(), strict=True):
        assert line.get_xdata().tolist() == [0, 50, 100]
        np.testing.assert_array_equal(line.get_ydata(), result.strength)
        edges = band.get_paths()[0].vertices
        for place, (low, high) in zip((0, 50, 100), result.strength_interval(), strict=True):
            assert {low, high} <= set(edges[edges[:, 0] == place, 1])
    readable(tmp_path / "figure.png")


@pytest.mark.parametrize("count", [1, 5])
def test_fourier(count, saved, tmp_path):
    def analysis(number):
        amplitude = [np.array([0, -1.0, -2.0 - number]), np.array([0, -3.0 - number])]
        frequencies = [np.array([0, 0.5, 1]), np.array([0, 1.0])]
        return FourierAnalysis(["a", "b"], [(4, 4), (2, 2)], frequencies, amplitude, np.array([1.0, 0.1]), 3)

    results = {f"model {i}": analysis(i) for i in range(count)}
    fourier_figure(results, tmp_path / "figure.png")
    axes = [axes for part in saved[0].subfigs for axes in part.axes]
    highest, variance, panels = axes[0], axes[1], axes[2 : 2 + count]
    assert "log amplitude" in highest.get_ylabel()
    assert variance.get_ylabel() == "variance of features over positions"
    assert variance.get_yscale() == "log"
    assert [line.get_ydata().tolist() for line in highest.lines] == [[-2 - i, -3 - i] for i in range(count)]
    assert [text.get_text() for text in highest.get_legend().get_texts()] == list(results)
    assert [panel.get_title() for panel in panels] == list(results)
    for panel, result in zip(panels, results.values(), strict=True):
        assert panel.get_xlabel() == "diagonal frequency, π per cell"
        np.testing.assert_array_equal(panel.lines[0].get_ydata(), result.log_amplitude[0])
    assert axes[-1].get_ylabel() == "depth"
    readable(tmp_path / "figure.png")


def test_spectrum(saved, tmp_path):
    frequencies = np.arange(5) / 8
    spectra = {"one": (frequencies, frequencies + 1), "two": (frequencies, frequencies + 2)}
    spectrum_figure(spectra, (frequencies, frequencies + 3), tmp_path / "figure.png")
    (axes,) = saved[0].axes
    assert axes.get_xlabel() == "frequency, cycles per pixel"
    assert "power of the error" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["the images", "one", "two"]
    assert [line.get_ydata()[0] for line in axes.lines] == [3, 1, 2]
    readable(tmp_path / "figure.png")


@pytest.mark.parametrize("labelled", [False, True])
def test_losses_and_what_was_measured(labelled, saved, tmp_path):
    log = [{"step": step, "loss": 1 / step, "spatial_loss": 0.5 / step} for step in (5, 10)]
    monitor = [{"step": step, "rankme": 9.0 + step, "feature_std": 0.5, "feature_cosine": 0.1} for step in (0, 10)]
    monitor[1]["feature_std"] = None  # as JSON has what is no number
    for entry in monitor if labelled else ():
        entry["knn_accuracy"] = 0.25
    loss_curve(log, tmp_path / "figure.png", monitor)
    losses, shares, ranks = saved[0].axes
    assert [line.get_xdata().tolist() for line in losses.lines] == [[5, 10], [5, 10]]
    assert losses.get_xlim() == shares.get_xlim() == ranks.get_xlim()
    assert shares.get_xlabel() == "step"
    assert shares.get_ylabel() == "of the frozen encoder, 0 to 1"
    assert ranks.get_ylabel() == "RankMe, dimensions"
    assert ranks.lines[0].get_ydata().tolist() == [9, 19]
    shown = ["k-NN accuracy"] * labelled + ["feature std", "feature cosine", "RankMe (right)"]
    assert [text.get_text() for text in shares.get_legend().get_texts()] == shown
    assert [line.get_xdata().tolist() for line in shares.lines] == [[0, 10]] * labelled + [[0], [0, 10]]
    readable(tmp_path / "figure.png")
    loss_curve(log, tmp_path / "plain.png")
    (alone,) = saved[1].axes
    assert alone.get_xlabel() == "step"
