"""What the record says of the gauge: first, best and last values, each with its step."""

from types import SimpleNamespace

import pytest

from modeling_a2mim.export.monitor import monitor_log, monitor_record, monitor_summary
from modeling_a2mim.export.record import evaluation_of


NAN = float("nan")
LOG = [
    {"step": 0, "epoch": 0, "monitor_knn_accuracy": 0.25, "monitor_feature_cosine": 0.5, "monitor_rankme": NAN},
    {"step": 5, "loss": 1.0, "learning_rate": 0.1},
    {"step": 5, "monitor_knn_accuracy": 0.75, "monitor_feature_cosine": 0.25, "monitor_rankme": None},
    {"step": 9, "eval_loss": 2.0, "eval_knn_accuracy": 1.0, "eval_masked_psnr": 3.0, "eval_runtime": 4.0},
    {"step": 10, "monitor_knn_accuracy": 0.75, "monitor_feature_cosine": 0.875, "monitor_rankme": 7.0},
]


def test_first_best_and_last():
    assert [entry["step"] for entry in monitor_log(LOG)] == [0, 5, 10]
    assert monitor_log(LOG)[2] == {"step": 10, "knn_accuracy": 0.75, "rankme": 7.0, "feature_cosine": 0.875}
    assert monitor_summary(LOG) == {
        "knn_accuracy": ((0, 0.25), (5, 0.75), (10, 0.75)),
        "rankme": ((10, 7.0), (10, 7.0), (10, 7.0)),
        "feature_cosine": ((0, 0.5), (5, 0.25), (10, 0.875)),  # of which less is better
    }
    assert monitor_summary(LOG[1:2]) == {}


class Images(SimpleNamespace):
    def __len__(self):
        return self.count


@pytest.mark.parametrize("classes", [0, 3])
def test_the_record(classes):
    record = monitor_record(LOG, Images(count=4, total=9, classes=classes), "the author's")
    assert {name: record[name] for name in ("data", "images", "of", "classes")} == {
        "data": "the author's",
        "images": 4,
        "of": 9,
        "classes": classes,
    }
    assert record["summary"]["feature_cosine"]["best"] == {"step": 5, "value": 0.25}
    assert record["log"] == monitor_log(LOG)
    assert record["probe_layers"] == "last"


def test_an_evaluation_holds_no_figures_of_other_images():
    assert evaluation_of(LOG, 6) == {"step": 9, "images": 6, "loss": 2.0, "masked_psnr": 3.0}
