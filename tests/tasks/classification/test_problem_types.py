"""Several classes of an image, and numbers: columns, metrics, and `run_finetune.py` from end to end."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, List, Value
from sklearn.metrics import average_precision_score
from transformers import AutoModelForImageClassification

from modeling_a2mim.tasks.classification.problem_types import (
    encode_lists,
    encode_numbers,
    figures_of,
    find_targets,
    is_one_hot,
    multi_label_metrics,
    numbers_of_words,
    regression_metrics,
)

from ...data.test_labels import SCRATCH, images_of, saved
from ...integration.test_scripts import finetune


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
MULTI = ["--problem_type", "multi_label_classification"]
REGRESSION = ["--problem_type", "regression"]


def test_lists_of_classes():
    encoded, names, one_hot = encode_lists(images_of([["b"], [], ["a", "b"], None]), "label", None, "dataset_name")
    assert (names, one_hot) == (["a", "b"], False)
    assert list(encoded["label"]) == [[0, 1], [0, 0], [1, 1], None]
    numbered = images_of([[2, -1], [0]], List(ClassLabel(names=["x", "y", "z"])))
    encoded, names, _ = encode_lists(numbered, "label", None, "dataset_name")
    assert (names, list(encoded["label"])) == (["x", "y", "z"], [[0, 0, 1], [1, 0, 0]])
    # Told apart by names; what was not trained on is named.
    encoded, _, _ = encode_lists(images_of([["z"], ["x"]]), "label", names, "validation_dir", False)
    assert list(encoded["label"]) == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"^validation_dir: 1 of its classes .* trained on: 'q' \(1 images\)"):
        encode_lists(images_of([["z", "q"]]), "label", names, "validation_dir", False)


def test_one_hot_lists():
    assert is_one_hot([[0, 1, 1], [0, 0, 0]])
    assert is_one_hot([[True, False], [True, True]])
    assert not is_one_hot([[0, 1], [1]])
    assert not is_one_hot([[0, 1, 2], [0, 0, 1]])
    encoded, names, one_hot = encode_lists(
        images_of([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), "label", None, "dataset_name"
    )
    assert (names, one_hot) == (["class 0", "class 1", "class 2"], True)
    assert list(encoded["label"]) == [[1, 0, 1], [0, 0, 0]]
    with pytest.raises(ValueError, match="^validation_dir: expected one-hot lists of 3 places"):
        encode_lists(images_of([[1, 0], [1, 1]]), "label", names, "validation_dir", True)
    with pytest.raises(ValueError, match="lists of float64 that are neither one-hot"):
        encode_lists(images_of([[0.5, 0.0]]), "label", None, "dataset_name")
    # Lists of classes that look like one-hot ones are what the training data has.
    encoded, _, _ = encode_lists(images_of([[0, 1], [1, 0]]), "label", ["0", "1", "2"], "validation_dir", False)
    assert list(encoded["label"]) == [[1, 1, 0], [1, 1, 0]]


def test_columns():
    features = {
        "image": Value("binary"),
        "label": ClassLabel(names=["a"]),
        "age": Value("float32"),
        "n": Value("int8"),
    }
    assert find_targets(features, "regression", "n") == "n"
    for name, message in (
        (None, "several columns of numbers: age, n; name one"),
        ("label", "no numbers"),
        ("x", "no c"),
    ):
        with pytest.raises(ValueError, match=f"^label_column_name: .*{message}"):
            find_targets(features, "regression", name)
    assert find_targets({**features, "target": Value("float64")}, "regression", None) == "target"
    with pytest.raises(ValueError, match="no column of lists of classes; its columns are image, label"):
        find_targets(features, "multi_label_classification", None)
    assert list(encode_numbers(images_of([1, -1, None]), "label")["label"]) == [1, -1, None]
    assert list(encode_numbers(images_of([0.5, float("nan"), float("inf")]), "label")["label"]) == [0.5, None, None]


def test_metrics_of_several_classes():
    # Class c is in no image and predicted once, d nowhere, e everywhere and always predicted.
    labels = np.array([[1, 0, 0, 0, 1], [1, 1, 0, 0, 1], [0, 1, 0, 0, 1]], dtype=np.float32)
    logits = np.array([[2, -1, 1, -1, 1], [-1, 1, -1, -1, 1], [-2, 3, -1, -1, 1]], dtype=np.float32)
    values = multi_label_metrics(logits, labels, list("abcde"))
    # Right: a in 1 of 2, b in 2 of 2, e in 3 of 3; one of c too many.
    assert values["subset_accuracy"] == pytest.approx(1 / 3)
    assert values["micro_f1"] == pytest.approx(2 * 6 / (2 * 6 + 1 + 1))
    assert values["macro_f1"] == pytest.approx((2 / 3 + 1 + 0 + 1) / 4)
    assert values["mean_average_precision"] == 1
    assert (values["recall_a"], values["precision_a"], values["precision_e"]) == (0.5, 1, 1)
    assert not {"recall_c", "precision_d", "average_precision_e", "average_precision_c"} & set(values)
    worse = multi_label_metrics(-logits, labels)
    expected = [average_precision_score(labels[:, c], -logits[:, c]) for c in (0, 1)]
    assert worse["mean_average_precision"] == pytest.approx(np.mean(expected))
    assert "mean_average_precision" not in multi_label_metrics(logits, np.ones_like(labels))
    assert np.isnan(multi_label_metrics(np.full_like(logits, np.nan), labels)["mean_average_precision"])


def test_metrics_of_numbers():
    values = regression_metrics(np.array([[1.0], [2.0], [5.0]]), np.array([1.0, 2.0, 3.0]))
    assert values == {"mae": pytest.approx(2 / 3), "rmse": pytest.approx((4 / 3) ** 0.5), "r2": -1.0}
    assert regression_metrics(np.array([1.0]), np.array([2.0])) == {"mae": 1.0, "rmse": 1.0}
    assert set(regression_metrics(np.array([1.0, 1.0]), np.array([2.0, 2.0]))) == {"mae", "rmse"}
    assert np.isnan(regression_metrics(np.array([np.nan, 1.0]), np.array([2.0, 1.0]))["mae"])


def logits_of(folder, dataset):
    """What transformers makes of an exported folder, on images as evaluation sees them."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in dataset["image"]])[:, None] / 255
    with torch.no_grad():
        return model, model((torch.tensor(pixels) - cfg["mean"][0]) / cfg["std"][0]).logits.numpy()


def test_several_classes_from_end_to_end(tmp_path):
    train = images_of([["a"], ["a", "b"], [], ["c"], ["b", "c"], None, ["a"], ["b"]], None, "tags")
    test = images_of([["c", "a"], ["b"], [], ["b", "a"]], None, "tags")
    data = ["--dataset_name", saved(tmp_path / "data", train=train, test=test), "--crop_pct", 1]
    best = ["--eval_strategy", "steps", "--save_strategy", "steps", "--save_steps", 1, "--eval_steps", 1]
    best += ["--load_best_model_at_end", "True", "--metric_for_best_model", "eval_mean_average_precision"]
    metrics = finetune(tmp_path / "out", *SCRATCH, *data, *MULTI, *best)
    model, logits = logits_of(tmp_path / "out", test)
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    truth = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    expected = figures_of(SimpleNamespace(predictions=logits, label_ids=truth), model.config.problem_type, "abc")
    assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-3)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(truth).float())
    assert metrics["eval_loss"] == pytest.approx(loss.item(), abs=1e-3)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["images"], record["evaluation_counts"]) == (7, {"a": 2, "b": 2, "c": 1})
    assert record["best"]["metric"] == "mean_average_precision"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| mean_average_precision | {metrics['eval_mean_average_precision']:.4f} |" in card
    assert "a multi-label image classifier" in card
    assert "if logit > 0" in card
    # The classes are those of the model, wherever the images have them.
    again = finetune(tmp_path / "eval", *data, "--model_name_or_path", tmp_path / "out", "--eval_only")
    assert {name: again[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="^problem_type: that of the model is multi_label_classification, not regre"):
        finetune(tmp_path / "eval", *data, "--model_name_or_path", tmp_path / "out", "--eval_only", *REGRESSION)


def test_words_among_numbers():
    """The one that is none is named, not the type of its column; empty ones are left out."""
    rows = datasets.Dataset.from_dict({"age": ["1.5", "", None, "two", "2", "?"], "image": list("abcdef")})
    with pytest.raises(ValueError, match=r"^label_column_name: column 'age' holds 'two' \(the first of 2 such values"):
        numbers_of_words(rows, "age")
    assert numbers_of_words(rows.select([0, 1, 2, 4]), "age")["age"][:] == [1.5, None, None, 2.0]


def test_numbers_from_end_to_end(tmp_path, caplog):
    train, test = (
        images_of([3.0, 1.0, None, 2.0, 2.5], None, "age"),
        images_of([-1.0, 2.0, float("nan"), 4.0], None, "age"),
    )
    data = ["--dataset_name", saved(tmp_path / "data", train=train, test=test), *REGRESSION]
    means = finetune(
        tmp_path / "out", *SCRATCH, *data, "--crop_pct", 1, "--seeds", 0, 1, "--metric_for_best_model", "mae"
    )
    assert "1 of the 4 images to evaluate on have no label (column 'age' holds no finite number)" in caplog.text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert means["training from scratch: MAE"] == pytest.approx(np.mean([row["mae"] for row in results["results"]]))
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| labels | method | MAE | RMSE | R2 | seeds |" in table
    folder = tmp_path / "out" / "seed-0"
    model, logits = logits_of(folder, test.select([0, 1, 3]))
    assert (model.config.problem_type, model.config.id2label) == ("regression", {0: "age"})
    expected = regression_metrics(logits, np.array([-1.0, 2.0, 4.0]))
    assert {name: results["results"][0][name] for name in expected} == pytest.approx(expected, abs=1e-3)
    # Begun at the mean of the targets, 2.125, and two steps of 1.8e-4 later not far from it.
    assert abs(logits.mean() - 2.125) < 0.5
    assert results["results"][0]["loss"] == pytest.approx(expected["rmse"] ** 2, abs=1e-3)
    card = (folder / "README.md").read_text()
    assert "an image regression model" in card
    assert "It predicts a number: age." in card
    assert "| mae |" in card
    state = json.loads((folder / "trainer_state.json").read_text())
    entries = [entry for entry in state["log_history"] if "eval_mae" in entry]
    assert entries
    again = finetune(tmp_path / "eval", *data, "--model_name_or_path", folder, "--eval_only")
    assert again["eval_mae"] == pytest.approx(results["results"][0]["mae"], abs=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ["--mixup", 0.2],
        ["--cutmix", 1],
        ["--label_smoothing_factor", 0.1],
        ["--bce_loss"],
        ["--class_weights", "balanced"],
        ["--corruptions", "fog"],
        ["--knn"],
        ["--streaming"],
        ["--labels_per_class", 1],
        ["--label_fraction", 0.5],
        ["--label_subset", "a.json"],
    ],
)
def test_what_does_not_go_with_them(tmp_path, flags):
    for kind in (MULTI, REGRESSION):
        if flags == ["--label_subset", "a.json"] and kind is REGRESSION:
            continue
        with pytest.raises(ValueError, match=f"^{flags[0][2:]}: .*--problem_type {kind[1]}"):
            finetune(tmp_path / "out", *SCRATCH, *kind, *flags)
    assert not (tmp_path / "out").exists()
