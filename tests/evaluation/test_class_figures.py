"""Metrics of single classes: their names, a table of them, and the log."""

import logging

from modeling_a2mim.evaluation.class_figures import MOST_LISTED, class_figure, class_rows, log_figures


def test_a_row_for_each_class():
    metrics = {"accuracy": 0.5, "precision_cat": 0.25, "eval_recall_cat": 1.0, "recall_no_such": 1.0}
    assert class_rows(metrics, {"cat": 1200, "sea lion": 3}) == [
        {"class": "cat", "images": "1,200", "precision": "0.2500", "recall": "1.0000", "average precision": "-"},
        {"class": "sea lion", "images": "3", "precision": "-", "recall": "-", "average precision": "-"},
    ]
    assert class_rows({"accuracy": 0.5}, {"cat": 2}) == []
    assert class_figure("accuracy") is None


def test_classes_without_images_are_not_logged_nor_more_than_can_be_read(caplog):
    caplog.set_level(logging.INFO, "a2mim")
    names = [f"c{i}" for i in range(MOST_LISTED + 3)]
    figures = {"balanced_accuracy": 0.5} | {f"recall_{name}": 0.25 for name in names}
    log_figures(figures, names, [0] + [2] * (len(names) - 1), 44)
    assert caplog.messages[:2] == ["balanced accuracy 0.5000 on 44 images", "class c1: recall 0.2500 on 2 images"]
    assert caplog.messages[-1] == "2 further classes: see eval_results.json"
    assert len(caplog.messages) == 1 + MOST_LISTED + 1
