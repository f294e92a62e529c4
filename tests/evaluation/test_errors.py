"""Errors: which are drawn, what is written in pictures and table, and that they are files of a sensible size."""

import csv
import math
import sys

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from modeling_a2mim.evaluation.errors import (
    errors_table,
    plot_confusion_matrix,
    plot_worst_examples,
    worst_examples,
)
from modeling_a2mim.utils.plotting import short_file, short_names


LONG = pytest.mark.slow


@pytest.fixture
def drawn(monkeypatch):
    """What is written and shown, by way of matplotlib's own methods."""
    seen = {"text": [], "images": [], "titles": [], "ticks": [], "rows": []}

    def spy(name, key, value):
        method = getattr(Axes, name)

        def record(self, *args, **kwargs):
            seen[key].append(value(*args))
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Axes, name, record)

    spy("text", "text", lambda x, y, text: (y, x, text))
    spy("annotate", "text", lambda text, place: text)
    spy("imshow", "images", lambda image, *_: np.asarray(image))
    spy("set_title", "titles", lambda title: title)
    spy("set_xticks", "ticks", lambda places, ticks=None: ticks)
    spy("set_yticks", "rows", lambda places, ticks=None: ticks)
    return seen


def test_names():
    assert short_names(["cat", "a\n b"]) == ["cat", "a b"]
    assert short_names(["tabby, tiger cat and others"], 10) == ["tabby, ti…"]
    assert short_names(["tabby, tiger"], 7) == ["tabby…"]
    assert short_names(["wolf of the north", "fox", "wolf of the south"], 8) == ["0 wolf of…", "fox", "2 wolf of…"]
    assert short_names(["5$ and 6$"]) == [r"5\$ and 6\$"]


def test_confusions_of_two_classes(drawn, tmp_path):
    # Of 4 cats one is taken for a dog; of 2 dogs both are; there is no owl.
    plot_confusion_matrix([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0], ["cat", "dog", "owl"], tmp_path / "m.png")
    np.testing.assert_array_equal(drawn["images"][0], [[75, 25, 0], [100, 0, 0], [np.nan] * 3])
    shares = [(y, x, text) for y, x, text in drawn["text"] if text.endswith("%")]
    counts = [(round(y), x, text) for y, x, text in drawn["text"] if not text.endswith("%")]
    assert shares == [(0, 0, "75%"), (0, 1, "25%"), (1, 0, "100%")]
    assert counts == [(0, 0, "3"), (0, 1, "1"), (1, 0, "2")]
    assert drawn["ticks"] == [["cat", "dog", "owl"]]
    assert drawn["rows"] == [["cat (4)", "dog (2)", "owl (0)"]]
    image = np.asarray(Image.open(tmp_path / "m.png").convert("RGB"))
    assert (image == 211).all(2).sum() > 5000  # lightgrey: the row of owls
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(("count", "width"), [(2, 600), (100, 2600), (1000, 2000)])
def test_any_number_of_classes(count, width, drawn, tmp_path):
    labels = np.repeat(np.arange(count), 2)
    predictions = labels.copy()
    predictions[1] = count - 1  # class 0 is half right
    plot_confusion_matrix(labels, predictions, [f"class {i}" for i in range(count)], tmp_path / "m.png")
    assert drawn["images"][0].shape == (count, count)
    assert drawn["images"][0][0, -1] == 50
    with Image.open(tmp_path / "m.png") as image:
        assert 0.8 * width < image.width < 1.2 * width
        assert image.height > 0.6 * image.width
        assert not {"Software"} & image.info.keys()
    if count > 20:
        assert drawn["text"] == [f"largest confusions\n\n50% (1 of 2)  class 0 → class {count - 1}"]
    else:
        assert len(drawn["text"]) == 2 * (count + 1)
    names = [ticks for ticks in drawn["ticks"] if ticks]
    assert (names == []) == (count > 100)


@pytest.mark.parametrize(
    ("count", "samples"),
    [(2, 10**6), pytest.param(20, 10**6, marks=LONG), pytest.param(60, 10**6, marks=LONG), (300, 10**6)],
)
def test_nothing_is_cut_off_or_overlaps(count, samples, tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(count), samples // count)
    predictions = np.where(generator.random(len(labels)) < 0.7, labels, generator.integers(0, count, len(labels)))
    names = [f"a name that has more than 20 letters {i}" for i in range(count)]
    plot_confusion_matrix(labels, predictions, names, tmp_path / "m.png")
    pixels = np.asarray(Image.open(tmp_path / "m.png").convert("L"))
    edge = np.concatenate([pixels[[0, -1]].ravel(), pixels[:, [0, -1]].ravel()])
    assert (edge == 255).all()  # what is cut off reaches the edge
    axes, renderer = figures[0].axes[0], figures[0].canvas.get_renderer()
    for texts in (axes.texts, axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
        inner = [(b.x0, b.y0, b.x1, b.y1) for b in boxes]
        for i, (x0, y0, x1, y1) in enumerate(inner[:100]):
            for a0, b0, a1, b1 in inner[i + 1 :]:
                assert min(x1, a1) - max(x0, a0) <= 0 or min(y1, b1) - max(y0, b0) <= 0.5


def test_what_is_no_confusion(tmp_path):
    with pytest.raises(ValueError, match="^predictions: expected one for each of 2 labels, got 1"):
        plot_confusion_matrix([0, 1], [0], ["a", "b"], tmp_path / "m.png")
    with pytest.raises(ValueError, match="^predictions: expected class indices of 0 to 1"):
        plot_confusion_matrix([0, 1], [0, 2], ["a", "b"], tmp_path / "m.png")
    with pytest.raises(ValueError, match="^labels: expected class indices of 0 to 1"):
        plot_confusion_matrix([0, -1], [0, 1], ["a", "b"], tmp_path / "m.png")


LOGITS = np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [0.0, 5.0], [4.0, 0.0]])
LABELS = [0, 0, 0, 0, 1]  # wrong are 1, 2, 3 and 4, by 3, 1, 5 and 4


def test_the_worst_are_wrong_with_the_highest_loss():
    assert worst_examples(LOGITS, LABELS) == [3, 4, 1, 2]
    assert worst_examples(LOGITS, LABELS, count=2) == [3, 4]
    # The loss, not the confidence: the true class of the second one is less likely.
    logits = np.log([[0.35, 0.64, 0.01], [0.001, 0.5, 0.499], [0.2, 0.2, 0.6]])
    assert worst_examples(logits, [0, 0, 2]) == [1, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_of_the_worst(channels, drawn, tmp_path):
    class Samples(list):
        read = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    # Sample i has the value i / 5 before it is normalised with mean 0.5 and deviation 0.25.
    samples = Samples({"pixel_values": torch.full((channels, 8, 8), (i / 5 - 0.5) / 0.25)} for i in range(5))
    Samples.read = []
    options = {"mean": [0.5] * channels, "std": [0.25] * channels, "path": tmp_path / "w.png", "count": 3}
    assert plot_worst_examples(samples, LOGITS, LABELS, ["cat", "dog"], **options) == [3, 4, 1]
    assert Samples.read == [3, 4, 1]
    assert drawn["titles"] == [
        "row 3\ncat (1%)\ntaken for dog (99%)",
        "row 4\ndog (2%)\ntaken for cat (98%)",
        "row 1\ncat (5%)\ntaken for dog (95%)",
    ]
    for image, index in zip(drawn["images"], (3, 4, 1), strict=True):
        assert image.shape == (8, 8, 3)
        assert (image == 51 * index).all()
    assert Image.open(tmp_path / "w.png").width == 3 * 288
    files = ["", "some/deep/folder/b$.png", "", "d.png", "a/" + "x" * 50 + "/1.png"]
    plot_worst_examples(samples, LOGITS, LABELS, ["cat", "dog"], **options, name_of=files.__getitem__)
    assert [title.splitlines()[0] for title in drawn["titles"][3:]] == [
        "d.png",
        "x" * 11 + "…" + "x" * 16 + "/1.png",
        r"folder/b\$.png",
    ]


def test_table_of_errors(tmp_path):
    files = [f"folder/{i}, é.png" for i in range(5)]
    errors_table(LOGITS, LABELS, ["cat, tabby", "dog"], tmp_path / "e.csv", files.__getitem__)
    with open(tmp_path / "e.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [files[i] for i in (3, 4, 1, 2)]
    assert [row["true class"] for row in rows] == ["cat, tabby", "dog", "cat, tabby", "cat, tabby"]
    assert [row["predicted class"] for row in rows] == ["dog", "cat, tabby", "dog", "dog"]
    for row, margin in zip(rows, (5, 4, 3, 1), strict=True):
        wrong = 1 / (1 + math.exp(-margin))
        assert float(row["probability of predicted"]) == pytest.approx(wrong, rel=1e-3)
        assert float(row["probability of true"]) == pytest.approx(1 - wrong, rel=1e-3)
        assert float(row["loss"]) == pytest.approx(-math.log(1 - wrong), rel=1e-3)
    errors_table(LOGITS[:1], LABELS[:1], ["cat", "dog"], tmp_path / "e.csv")  # nothing is wrong any more
    assert len((tmp_path / "e.csv").read_text().splitlines()) == 1


def test_short_file():
    assert short_file("row 12") == "row 12"
    assert short_file("test/cats/1.png") == "cats/1.png"
    assert short_file("a" * 34) == "a" * 34
    long = short_file("cats/" + "scan_of_something_" * 3 + "0017.png")
    assert len(long) == 34
    assert long.startswith("cats/scan")
    assert long.endswith("0017.png")


def test_nothing_is_wrong(tmp_path):
    samples = [{"pixel_values": torch.zeros(1, 8, 8)}] * 2
    args = {"names": ["cat", "dog"], "mean": [0.5], "std": [0.5], "path": tmp_path / "w.png"}
    assert plot_worst_examples(samples, LOGITS[[0, 1]], [0, 1], **args) == []
    assert not (tmp_path / "w.png").exists()
    with pytest.raises(ValueError, match="^logits: expected rows and labels for 2 samples, got 5 and 2"):
        plot_worst_examples(samples, LOGITS, [0, 1], **args)
