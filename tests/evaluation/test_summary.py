"""Intervals over seeds, by hand, and the table of results."""

import numpy as np
import pytest

from modeling_a2mim.evaluation.summary import (
    Interval,
    mean_and_interval,
    paired_difference,
    results_table,
    summarise,
    summarise_classes,
)


def test_interval():
    # Standard deviation 1 of 3 values; t of 2 degrees of freedom at 97.5% is 4.302653 (any table).
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert mean_and_interval([1.0, 2.0, 3.0], 0.9).half_width == pytest.approx(2.919986 / 3**0.5, rel=1e-6)
    assert mean_and_interval([0.5]) == Interval(0.5, None)
    assert mean_and_interval([0.5, 0.5]) == Interval(0.5, 0.0)
    with pytest.raises(ValueError, match="^values: expected at least one"):
        mean_and_interval([])
    with pytest.raises(ValueError, match=r"^confidence: must be in \(0, 1\), got 95"):
        mean_and_interval([1.0], 95)


def test_the_interval_holds_as_often_as_it_says():
    values = np.random.default_rng(0).normal(3.0, 2.0, (2000, 4))
    inside = sum(abs(i.mean - 3.0) < i.half_width for i in map(mean_and_interval, values))
    assert abs(inside / 2000 - 0.95) < 0.015  # 3 standard deviations of a share of 2000


def test_paired_difference():
    # Seeds move both by the same: the difference is 0.1 for each of them.
    one, other = [0.5, 0.7, 0.9], [0.6, 0.8, 1.0]
    difference = paired_difference(one, other)
    assert difference.mean == pytest.approx(0.1)
    assert difference.half_width == pytest.approx(0, abs=1e-12)
    assert mean_and_interval(one).half_width > 0.4
    with pytest.raises(ValueError, match="^other: expected 3 values, one for each of the other side, got 2"):
        paired_difference(one, other[:2])


def test_table_of_results():
    rows = [
        {"subset": f"{n} per class", "seed": seed, "layer": layer, "method": "k-NN", "accuracy": 0.5 + seed / 10}
        for n in (1, 10)
        for seed in (0, 1)
        for layer in (2, None)
        if (n, layer) != (10, 2)
    ]
    assert len(rows) == 6
    first = {"labels": "1 per class", "method": "k-NN", "layer": "2", "accuracy": "0.550 ± 0.635", "seeds": "2"}
    assert summarise(rows)[0] == first  # t of 1 degree of freedom at 97.5% is 12.7062, times 0.05
    assert results_table(rows) == (
        "| labels | method | layer | accuracy | seeds |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| 1 per class | k-NN | 2 | 0.550 ± 0.635 | 2 |\n"
        "| 1 per class | k-NN | pooled | 0.550 ± 0.635 | 2 |\n"
        "| 10 per class | k-NN | pooled | 0.550 ± 0.635 | 2 |"
    )
    with pytest.raises(ValueError, match="^rows: expected at least one result"):
        results_table([])


def test_tables_of_more_figures():
    row = {"method": "k-NN", "accuracy": 0.5, "auroc": 0.75, "recall_a|b": 0.25, "precision_a|b": 0.5}
    rows = [{**row, "seed": 0}, {**row, "seed": 1, "macro_f1": 0.5}]  # a figure that one of them lacks is left out
    assert results_table(rows).splitlines()[::2] == [
        "| method | accuracy | AUROC | seeds |",
        "| k-NN | 0.500 ± 0.000 | 0.750 ± 0.000 | 2 |",
    ]
    (found,) = summarise_classes(rows, ["none", "a|b"], [0, 3])
    assert list(found.values()) == ["k-NN", "a|b", "3", "0.500 ± 0.000", "0.250 ± 0.000"]
    assert list(found) == ["method", "class", "images", "precision", "recall"]


def test_table_of_what_has_no_layers():
    rows = [{"subset": "a|b", "method": "fine-tuning", "accuracy": 0.25}]
    assert results_table(rows).splitlines()[2] == "| a\\|b | fine-tuning | 0.250 | 1 |"
    mixed = [*rows, {"subset": "a|b", "method": "k-NN", "layer": -1, "accuracy": 0.5}]
    assert results_table(mixed).splitlines()[2:] == [
        "| a\\|b | fine-tuning |  | 0.250 | 1 |",
        "| a\\|b | k-NN | last | 0.500 | 1 |",
    ]
