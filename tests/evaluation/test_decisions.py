"""`evaluation.decisions`: from scores to classes, in and out of a configuration, and what users type."""

from types import SimpleNamespace

import numpy as np
import pytest

from modeling_a2mim.arguments.data import MULTI, REGRESSION, SINGLE
from modeling_a2mim.evaluation.decisions import (
    EVERY,
    DecisionRule,
    check_positive_class,
    false_alarm_limit,
    given_decision,
    parse_threshold,
)


NAMES = ["good", "scratch", "hole"]


def test_one_class_for_each_image_by_hand():
    scores = np.array(
        [
            [0.60, 0.30, 0.10],  # exactly the threshold: scratch, although good is likelier
            [0.60, 0.29, 0.11],  # below: the best, good
            [0.10, 0.29, 0.61],  # below: the best of the others, hole
            [0.05, 0.90, 0.05],
            [0.355, 0.29, 0.355],  # of equal ones the first
        ]
    )
    rule = DecisionRule({"scratch": 0.3})
    assert rule.decide(scores, NAMES, False) == ["scratch", "good", "hole", "scratch", "good"]


def test_a_high_threshold_gives_the_best_of_the_others():
    assert DecisionRule({"bad": 0.9}).decide([[0.2, 0.8], [0.05, 0.95]], ["good", "bad"], False) == ["good", "bad"]


def test_several_classes_for_each_image_by_hand():
    scores = np.array([[0.5, 0.2, 0.49], [0.49, 0.19, 0.0], [1.0, 0.2, 0.5]])
    rule = DecisionRule({"scratch": 0.2})
    assert rule.decide(scores, NAMES, True) == [["good", "scratch"], [], NAMES]
    for_all = DecisionRule({EVERY: 0.6, "hole": 0.3})
    assert for_all.decide(scores, NAMES, True) == [["hole"], [], ["good", "hole"]]


def test_no_images_give_no_decisions():
    assert DecisionRule({"hole": 0.3}).decide(np.empty((0, 3)), NAMES, False) == []


@pytest.mark.parametrize(
    ("rule", "scores", "several", "message"),
    [
        (DecisionRule({"dent": 0.3}), [[0.1, 0.2, 0.7]], False, "^threshold: there is no class 'dent'; .* good, scra"),
        (DecisionRule({"dent": 0.3}), [[0.1, 0.2, 0.7]], True, "^threshold: there is no class 'dent'"),
        (DecisionRule({EVERY: 0.3}), [[0.1, 0.2, 0.7]], False, r"^threshold: there is no class '\*'"),
        (DecisionRule({"good": 0.3, "hole": 0.4}), [[0.1, 0.2, 0.7]], False, "^positive_class: .* got 2"),
        (DecisionRule({"good": 0.3}), [[0.1, 0.9]], False, r"^scores: expected \(images, 3\)"),
        (DecisionRule({"good": 0.3}), [[0.1, np.nan, 0.5]], False, "^scores: expected probabilities"),
        (DecisionRule({"good": 0.3}), [[-1.0, 0.5, 3.0]], True, "^scores: expected probabilities"),
    ],
)
def test_decisions_that_cannot_be_made(rule, scores, several, message):
    with pytest.raises(ValueError, match=message):
        rule.decide(np.array(scores), NAMES, several)


def test_in_and_out_of_a_configuration():
    assert DecisionRule.from_config(SimpleNamespace()) is None
    assert DecisionRule.from_config(SimpleNamespace(decision=None)) is None
    rule = DecisionRule({"hole": 0.25}, "fpr=0.05", 120)
    data = rule.to_config()
    assert data == {"thresholds": {"hole": 0.25}, "rule": "fpr=0.05", "images": 120}
    assert DecisionRule.from_config(SimpleNamespace(decision=data)) == rule
    data["thresholds"]["hole"] = 0.5  # is no part of the rule
    assert rule.thresholds == {"hole": 0.25}


@pytest.mark.parametrize(
    "data",
    [
        [],
        0.5,
        {},
        {"thresholds": {}},
        {"thresholds": [0.5]},
        {"thresholds": {"hole": "0.5"}},
        {"thresholds": {"hole": True}},
        {"thresholds": {"hole": 1.5}},
        {"thresholds": {"hole": float("nan")}},
        {"thresholds": {"hole": 0.5}, "rule": "best"},
        {"thresholds": {"hole": 0.5}, "rule": "0.5"},
        {"thresholds": {"hole": 0.5}, "rule": 1},
        {"thresholds": {"hole": 0.5}, "images": 0},
        {"thresholds": {"hole": 0.5}, "images": "many"},
        {"thresholds": {"hole": 0.5}, "other": 1},
    ],
)
def test_malformed_decisions_of_a_configuration(data):
    with pytest.raises(ValueError, match="^decision: "):
        DecisionRule.from_config(SimpleNamespace(decision=data))


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.37", 0.37), ("1", 1.0), ("0", 0.0), ("f1", "f1"), ("fpr=0.05", "fpr=0.05"), ("fpr=5e-2", "fpr=0.05")],
)
def test_what_users_type(text, value):
    assert parse_threshold(text) == value


@pytest.mark.parametrize("text", ["", "F2", "1.1", "-0.1", "nan", "fpr", "fpr=", "fpr=2", "fpr=nan", "best"])
def test_slips_of_users(text):
    with pytest.raises(ValueError, match="^threshold: expected a number"):
        parse_threshold(text)


def test_limit_of_false_alarms():
    assert false_alarm_limit("fpr=0.05") == 0.05
    assert false_alarm_limit("f1") is None


@pytest.mark.parametrize(
    ("positive", "threshold", "kind", "message"),
    [
        ("hole", None, SINGLE, "^positive_class: is the class that --threshold is of"),
        (None, "f1", SINGLE, "^positive_class: name the class .*; the classes are good, scratch, hole$"),
        (None, "0.5", None, "^positive_class: name the class"),
        ("dent", "f1", SINGLE, "^positive_class: there is no class 'dent'; the classes are good, scratch, hole$"),
        ("hole", "f1", MULTI, "^positive_class: in a multi-label problem"),
        (None, "f1", REGRESSION, "^threshold: is for classes"),
        ("hole", "0.5", REGRESSION, "^threshold: is for classes"),
    ],
)
def test_positive_classes_that_do_not_fit(positive, threshold, kind, message):
    with pytest.raises(ValueError, match=message):
        check_positive_class(positive, threshold, kind, NAMES)


def test_decisions_given_by_a_number():
    assert given_decision(None, None, NAMES, SINGLE) is None
    assert given_decision("0.37", "hole", NAMES, SINGLE) == DecisionRule({"hole": 0.37})
    assert given_decision("0.37", None, NAMES, MULTI) == DecisionRule({EVERY: 0.37})
    with pytest.raises(ValueError, match="^threshold: f1 chooses one on labelled images"):
        given_decision("f1", "hole", NAMES, SINGLE)


def test_a_label_that_is_called_as_all_labels_are():
    names = ["*", "b"]
    rule = DecisionRule({"*": 0.2})
    assert rule.values(names).tolist() == [0.2, 0.5]
    assert rule.values(["a", "b"]).tolist() == [0.2, 0.2]
    with pytest.raises(ValueError, match=r"^threshold: a label is called '\*'"):
        given_decision("0.4", None, names, MULTI)
