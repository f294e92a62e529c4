"""Curves: which classes are drawn, through which points, and what is written beside them."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from modeling_a2mim.evaluation.curves import (
    MOST_CURVES,
    plot_precision_recall_curve,
    plot_roc_curve,
    shown_classes,
)
from modeling_a2mim.evaluation.thresholds import figures_at


SCORES = np.array([0.9, 0.8, 0.4, 0.2])[:, None]
THERE = np.array([True, False, True, False])[:, None]


@pytest.fixture
def drawn(monkeypatch):
    """What is plotted, by its label."""
    seen = {}
    plot = Axes.plot

    def record(self, x, y, *args, **kwargs):
        seen[kwargs.get("label")] = (np.atleast_1d(x).tolist(), np.atleast_1d(y).tolist())
        return plot(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", record)
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **kwargs: seen.update(title=text))
    return seen


def test_curves_by_hand(drawn, tmp_path):
    found = figures_at(SCORES[:, 0], THERE[:, 0], 0.3)
    arguments = SCORES, THERE, ["defect"]
    assert plot_roc_curve(*arguments, tmp_path / "roc.png", {"defect": found}) == ["defect"]
    # Of the four pairs of one of each kind, three are in the right order.
    assert drawn["defect (AUROC 0.750)"] == ([0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1])
    assert drawn["defect: threshold 0.3"] == ([0.5], [1.0])
    drawn.clear()
    plot_precision_recall_curve(*arguments, tmp_path / "pr.png", {"defect": found})
    assert drawn["defect (average precision 0.833)"] == ([1, 1, 0.5, 0.5, 0], [0.5, 2 / 3, 0.5, 1, 1])
    assert drawn["defect: threshold 0.3"] == ([1.0], [pytest.approx(2 / 3)])
    for name in ("roc.png", "pr.png"):
        figure = Image.open(tmp_path / name)
        assert min(figure.size) > 500
        assert "Software" not in figure.info


def test_classes_without_images_of_both_kinds_have_no_curve(drawn, tmp_path):
    scores = np.random.default_rng(0).random((6, 4))
    there = np.zeros((6, 4), bool)
    there[:3, 0] = there[:, 1] = there[:2, 3] = True
    scores[0, 3] = np.nan
    assert shown_classes(scores, there) == ([0], [1, 2, 3])
    assert plot_roc_curve(scores, there, list("abcd"), tmp_path / "roc.png") == ["a"]
    assert [name[0] for name in drawn] == ["a", "b"]  # and "by chance"


def test_nothing_to_draw_leaves_no_file(tmp_path):
    (tmp_path / "roc.png").write_bytes(b"of an earlier evaluation")
    assert plot_roc_curve(SCORES, np.ones((4, 1)), ["defect"], tmp_path / "roc.png") == []
    assert not (tmp_path / "roc.png").exists()


def test_of_many_classes_those_with_the_most_images(drawn, tmp_path):
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(15), np.arange(1, 16))  # of the last class the most
    there = labels[:, None] == np.arange(15)
    scores = generator.random(there.shape) + 0.3 * there
    names = [f"class {i}" for i in range(15)]
    found = figures_at(np.clip(scores[:, 1], 0, 1), there[:, 1], 0.5)
    expected = ["class 1", *(f"class {i}" for i in range(14, 5, -1))]
    assert plot_roc_curve(scores, there, names, tmp_path / "roc.png", {"class 1": found}) == expected
    assert len(expected) == MOST_CURVES
    assert drawn["title"] == "10 of 15 classes: those with a threshold, and with the most images"
