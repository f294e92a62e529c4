"""`page.classification`: scores, decisions by thresholds that are kept or tried, and what the tab says of them."""

import html
import re

import numpy as np
import pytest
import torch
from transformers import pipeline

from modeling_a2mim.analysis.comparison import load_model
from modeling_a2mim.arguments.data import MULTI, REGRESSION, SINGLE
from modeling_a2mim.evaluation.decisions import EVERY, DecisionRule
from modeling_a2mim.page.classification import ALL, BEST, ClassifyTab, kept_rule, scores_as_html, scores_of
from modeling_a2mim.page.uploads import as_seen

from .pages import NAMES


pytestmark = pytest.mark.usefixtures("one_thread")
ABC, SCORES = ["a", "b", "c"], np.array([0.6, 0.3, 0.1])


@pytest.fixture(scope="module")
def tab(folder):
    names = ("vit", "several", "number")
    return ClassifyTab({name: load_model(str(folder / name), kind="classifier") for name in names})


def text(made: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", made).split())


def decision(made: str) -> str:
    return html.unescape(re.findall(r'<div class="a2mim-decision">(.*?)</div>', made)[0])


def test_scores_are_those_of_transformers(tab, folder):
    named, file = tab.models["vit"], str(folder / "image.png")
    found = scores_of(named, as_seen(named.model, named.transform, file)[0])
    expected = {row["label"]: row["score"] for row in pipeline("image-classification", str(folder / "vit"))(file)}
    assert dict(zip(named.classes, found.tolist(), strict=True)) == pytest.approx(expected, abs=1e-4)


def test_scores_of_other_problems(tab, folder):
    for name, function in (("several", torch.sigmoid), ("number", lambda logits: logits)):
        named = tab.models[name]
        pixels = as_seen(named.model, named.transform, str(folder / "image.png"))[0]
        with torch.no_grad():
            expected = function(named.model(pixels).logits[0]).numpy()
        np.testing.assert_allclose(scores_of(named, pixels), expected, rtol=1e-6)  # float64 inside, against float32


def test_the_best_class():
    made = scores_as_html(ABC, SCORES, SINGLE, None, True)
    assert text(made) == "a the class with the highest score; the model keeps no threshold a 0.600 b 0.300 c 0.100"
    assert "tick" not in made


def test_a_kept_threshold():
    made = scores_as_html(ABC, SCORES, SINGLE, DecisionRule({"b": 0.3}, "f1", 1200), True)
    assert decision(made) == "b"
    assert "b has a score of 0.300, at least 0.300 (the threshold that the model keeps, chosen by f1 on 1,200" in made
    assert made.count("tick") == 1
    assert 'class="tick" style="left: 30.00%"' in made
    below = scores_as_html(ABC, SCORES, SINGLE, DecisionRule({"a": 0.7}), False)
    assert decision(below) == "b"
    assert "a has a score of 0.600, below 0.700 (a threshold tried here); the best of the other classes" in below


def test_several_labels():
    made = scores_as_html(ABC, SCORES, MULTI, DecisionRule({"b": 0.2, "c": 0.2}), True)
    assert decision(made) == "a, b"
    assert made.count("tick") == 3
    assert "labels with a score of at least their threshold: the thresholds that the model keeps" in made
    usual = scores_as_html(ABC, SCORES, MULTI, None, True)
    assert "labels with a score of at least 0.5; the model keeps no thresholds" in usual
    assert decision(scores_as_html(["a"], np.array([0.4]), MULTI, None, True)) == "no label"


def test_numbers():
    assert decision(scores_as_html(["LABEL_0"], np.array([-12.3456]), REGRESSION, None, True)) == "-12.35"
    made = scores_as_html(["width", "height"], np.array([1.5, 2]), REGRESSION, None, True)
    assert text(made).startswith("width: 1.5 height: 2 ")


def test_many_classes():
    names = [f"class {i}" for i in range(100)]
    made = text(scores_as_html(names, np.linspace(0, 0.02, 100), SINGLE, DecisionRule({"class 0": 0.5}), True))
    assert "class 99 0.020" in made
    assert "class 0 0.000" in made  # which has the threshold
    assert made.endswith("and 87 classes with lower scores")


def test_names_are_no_html():
    made = scores_as_html(["<img src=x>", "b"], np.array([0.9, 0.1]), SINGLE, DecisionRule({"<img src=x>": 0.5}), True)
    assert "<img" not in made
    assert made.count("&lt;img src=x&gt;") == 3


def test_choices(tab):
    assert tab.choices("vit") == {"choices": [BEST, *NAMES], "value": "crack", "visible": True}
    assert tab.choices("several")["value"] == ALL
    assert tab.choices("number")["visible"] is False
    assert tab.threshold("vit") == {"value": 0.25, "interactive": True, "visible": True}
    assert tab.threshold("vit", BEST)["interactive"] is False
    assert tab.threshold("several", "crack", {EVERY: 0.7})["value"] == 0.7


def test_thresholds_that_are_tried(tab):
    assert tab.with_threshold("vit", "crack", 0.9, {"*dent*": 0.1}) == {"crack": 0.9}
    tried = {EVERY: 0.1, "*dent*": 0.2}
    assert tab.with_threshold("several", "crack", 0.9, tried) == {**tried, "crack": 0.9}
    assert tab.with_threshold("several", ALL, 0.9, tried) == {EVERY: 0.9}


def test_what_the_tab_says(tab, folder):
    file = str(folder / "image.png")
    scores, image, made = tab.run(file, "vit", None)
    assert sum(scores) == pytest.approx(1)
    assert image.size == (256, 256)
    assert made == tab.decided("vit", scores, None)
    assert "the threshold that the model keeps, chosen by f1 on 40 images" in made
    best = tab.decided("vit", scores, {})
    assert "the class with the highest score" in best
    assert "keeps no" not in best
    assert decision(best) == NAMES[int(np.argmax(scores))]
    assert decision(tab.decided("vit", scores, {"crack": 0.0})) == "crack"
    assert "Upload an image." in tab.decided("vit", None, {})
    assert tab.run(str(folder / "broken.png"), "vit", None)[:2] == [None, None]


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        ("vit", {"thresholds": {"nothing": 0.5}}, "^threshold: there is no class 'nothing'"),
        ("vit", {"thresholds": 3}, "^decision: "),
        ("number", {"thresholds": {"LABEL_0": 0.5}}, "^decision: number is a regression, which has no threshold"),
    ],
)
def test_decisions_of_no_use(tab, monkeypatch, name, kept, message):
    monkeypatch.setattr(tab.models[name].model.config, "decision", kept, raising=False)
    with pytest.raises(ValueError, match=message):
        kept_rule(tab.models[name])
