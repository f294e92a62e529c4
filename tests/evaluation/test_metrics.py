"""How good predictions are, by hand and by scikit-learn."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from modeling_a2mim.evaluation.class_figures import class_figure
from modeling_a2mim.evaluation.metrics import ClassificationMetrics, compute_metrics, log_odds


def predicted(logits, labels, names=None):
    return compute_metrics(SimpleNamespace(predictions=np.array(logits), label_ids=np.array(labels)), names)


def test_metrics_of_three_classes():
    # Predicted 0 1 2 2 0 for 0 1 1 2 0: 4 of 5; recalls 1, 1/2 and 1; F1 of 1, 2/3 and 2/3.
    logits = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [-3.0, -2.0, -1.0], [0.0, 0.0, 1.0], [5.0, 4.0, 4.5]]
    values = predicted(logits, [0, 1, 1, 2, 0])
    # Each class against the rest, by its odds: both samples of class 0 come first. Of class 1 one comes first, the
    # other as the second of two that are equal: 5.5 of 6 pairs, and a precision of 1 and of 2/3. Of class 2 the one
    # sample comes second: 3 of 4 pairs, and a precision of 1/2.
    assert values == {
        "accuracy": 4 / 5,
        "balanced_accuracy": pytest.approx(5 / 6),
        "macro_f1": pytest.approx(7 / 9),
        "auroc": pytest.approx((1 + 5.5 / 6 + 3 / 4) / 3),
        "average_precision": pytest.approx((1 + 5 / 6 + 1 / 2) / 3),
    }
    assert all(type(value) is float for value in values.values())


def test_classes_that_are_only_predicted():
    # Class 0 is found in 1 of 2, class 1 never occurs: recall 1/2 of the one class, F1 2/3 of 0 and 0 of 1.
    values = predicted([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0, 0])
    assert values == {"accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}


def test_figures_of_each_class_and_classes_that_do_not_occur():
    # Predicted 0 0 1 3 for 0 1 1 1; class 2 is never predicted, and neither it nor class 3 is in the labels.
    logits = np.log([[0.7, 0.1, 0.1, 0.1], [0.6, 0.3, 0.05, 0.05], [0.1, 0.8, 0.05, 0.05], [0.2, 0.2, 0.1, 0.5]])
    values = predicted(logits, [0, 1, 1, 1], ["a", "b c", "d", "e"])
    assert {name: values[name] for name in values if name.startswith(("precision", "recall"))} == {
        "precision_a": 1 / 2,
        "precision_b c": 1,
        "recall_a": 1,
        "recall_b c": pytest.approx(1 / 3),
    }
    # a: its one sample first of 4. b c: all three before the other.
    assert (values["auroc"], values["average_precision"]) == (1, 1)
    assert values["average_precision_b c"] == 1
    assert not {"average_precision_d", "precision_e"} & set(values)
    assert class_figure("eval_average_precision_b c") == ("average_precision", "b c")
    assert class_figure("average_precision") is None
    # One class alone has no rest, and is never predicted here; scores that are no numbers rank nothing.
    alone = predicted(logits[1:2], [1], ["a", "b c", "d", "e"])
    assert set(alone) == {"accuracy", "balanced_accuracy", "macro_f1", "precision_b c", "recall_b c"}
    assert alone["precision_b c"] == 0.0
    assert np.isnan(predicted([[np.nan, 1.0], [0.0, 1.0]], [0, 1])["auroc"])


def test_rare_class():
    # 2 of 100 are defective, and the model finds neither: right in 98%, and no better than chance.
    labels = np.repeat([0, 1], [98, 2])
    logits = np.stack([np.full(100, 3.0), np.random.default_rng(0).normal(size=100)], 1)
    values = predicted(logits, labels, ["good", "defective"])
    assert (values["accuracy"], values["balanced_accuracy"], values["recall_defective"]) == (0.98, 0.5, 0.0)
    assert values["auroc"] == pytest.approx(roc_auc_score(labels, logits[:, 1]))
    assert values["average_precision_defective"] == pytest.approx(average_precision_score(labels, logits[:, 1]))


def test_samples_are_ranked_where_probabilities_are_rounded_to_one():
    odds = log_odds(np.array([[100.0, 0.0, 0.0], [200.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert odds[:, 0] == pytest.approx([100 - np.log(2), 200 - np.log(2), -np.log(2)])
    assert odds[:, 1] == pytest.approx([-100, -200, -np.log(2)])


def test_top5():
    descending = np.arange(6.0, 0, -1)  # class 0 is the likeliest, class 5 the least likely one
    assert "top5_accuracy" not in predicted(descending[None, :5], [0])
    assert predicted(np.tile(descending, (6, 1)), range(6))["top5_accuracy"] == 5 / 6
    assert predicted(np.tile(descending, (6, 1)), range(6))["accuracy"] == 1 / 6
    # Of equal logits the first classes count, as with argmax.
    assert predicted(np.zeros((6, 6)), range(6))["top5_accuracy"] == 5 / 6


def test_the_metric_takes_batches():
    metric = ClassificationMetrics(keep_in_memory=True)
    metric.add_batch(predictions=[[0], [1]], references=[0, 0])
    metric.add_batch(predictions=[[1]], references=[1])
    assert metric.compute()["accuracy"] == 2 / 3
