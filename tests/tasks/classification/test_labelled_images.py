"""Images with labels: how many of each class there are, what is measured of them, and what is said of them."""

import logging

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from modeling_a2mim.arguments.data import MULTI, REGRESSION, SINGLE
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages, label_rule, log_labels


NAMES = ["bird", "cat", "dog"]


def labelled(labels, kind=SINGLE):
    features = {
        SINGLE: ClassLabel(names=NAMES),
        MULTI: List(Value("float32")),
        REGRESSION: Value("float32"),
    }
    return Dataset.from_dict({"label": labels}, features=Features({"label": features[kind]}))


def images(train=None, validation=None, kind=SINGLE):
    parts = [None if labels is None else labelled(labels, kind) for labels in (train, validation)]
    return LabelledImages(*parts, column="label", names=["label"] if kind == REGRESSION else NAMES, problem_type=kind)


def test_counts():
    one = images([2, 1, 2])
    assert one.counts(one.train) == [0, 1, 2]
    several = images([[1, 1, 0], [0, 1, 0]], kind=MULTI)
    assert several.counts(several.train) == [1, 2, 0]
    numbers = images([1.5, 2.5], kind=REGRESSION)
    assert numbers.counts(numbers.train) is None


def test_chosen():
    found = images([2, 1, 2])
    assert found.chosen is found.train
    found.rows = [0, 2]
    assert found.chosen["label"] == [2, 2]


def test_what_is_measured():
    assert images(validation=[1.0, 1.0], kind=REGRESSION).metrics() == {"loss": False, "mae": False, "rmse": False}
    assert images(validation=[1.0, 2.0], kind=REGRESSION).metrics()["r2"]
    metrics = images(validation=[1, 2, 2]).metrics()
    assert metrics["loss"] is False
    assert {"accuracy", "auroc", "recall_dog", "average_precision_cat"} <= {name for name in metrics if metrics[name]}
    assert not {"top5_accuracy", "recall_bird", "average_precision_bird"} & set(metrics)  # there are none
    assert "auroc" not in images(validation=[1, 1]).metrics()  # nothing to tell apart
    assert "mean_average_precision" in images(validation=[[1, 0, 0], [0, 1, 0]], kind=MULTI).metrics()


def test_labels_in_words():
    assert images([1]).shown(torch.tensor(1)) == "cat"
    assert images([1.0], kind=REGRESSION).shown(torch.tensor(0.25)) == "label 0.25"
    several = images([[0, 1, 1]], kind=MULTI)
    assert [several.shown(torch.tensor(label)) for label in ([0.0, 1.0, 1.0], [0.0] * 3)] == ["cat, dog", "none"]


def test_what_is_said_before_training(caplog):
    with pytest.raises(ValueError, match="^label_column_name: all images to train on are of one class, 'cat'"):
        images([1, 1]).check()
    caplog.set_level(logging.INFO, "a2mim")
    images([1, 2, 2], [1]).check()
    assert "training: 3 classes by column label of the dataset: bird 0, cat 1, dog 2" in caplog.text
    assert "evaluation: 3 classes" in caplog.text


def test_classes_that_are_called_nearly_the_same(caplog):
    log_labels(labelled([1, 2]), "label", ["cat", " cat", "dog", "Dog", "dog  house"], None, "training")
    alone = "training: classes whose names differ in capitals, blanks or the coding of accents alone"
    assert caplog.messages == [f"{alone}: 'cat', ' cat', 'dog', 'Dog'"]
    caplog.clear()
    log_labels(labelled([1, 2]), "label", ["K\u00f6ln", "Koln", "ko\u0308ln"], None, "training")
    assert caplog.messages == [f"{alone}: 'K\u00f6ln', 'ko\u0308ln'"]


def test_provenance():
    assert images([1]).provenance() == {}
    assert images(validation=[1, 2]).provenance() == {"evaluation_counts": {"bird": 0, "cat": 1, "dog": 1}}
    assert images(validation=[0.5], kind=REGRESSION).provenance() == {"problem_type": REGRESSION}


def test_what_gave_the_labels():
    assert label_rule(labelled([1]), "label") == "column label of the dataset"
