"""k-NN and logistic regression on frozen features."""

import json
import re

import pytest

from ...integration.test_scripts import SMALL, finetune


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]


@pytest.mark.parametrize("layers", ["last -1", "all all", "last 3"])
def test_a_layer_counts_once(pretrained, tmp_path, layers):
    """Named twice, it would be two seeds that agree."""
    argv = ["--model_name_or_path", pretrained, "--knn", "--labels_per_class", 1, "--probe_layers", *layers.split()]
    with pytest.raises(ValueError, match=f"^probe_layers: {layers.replace('-1', 'last')} names one of them twice$"):
        finetune(tmp_path / "out", *argv)


def test_one_measurement_is_no_interval(pretrained, tmp_path, caplog):
    """The weights and the labels of each seed are the same."""
    weights = ["--model_name_or_path", pretrained / "model.safetensors", *SCRATCH, "--max_train_samples", 40]
    finetune(tmp_path / "out", *weights, "--knn", "--seeds", 0, 1)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["seed"] for row in results["results"]] == [0, 0]
    finetune(tmp_path / "out", *weights, "--knn")
    assert "out holds results.json of an earlier run, which is replaced" in caplog.text
    assert "knn: true" in (tmp_path / "out" / "evaluation.yaml").read_text()
    assert not (tmp_path / "out" / "run.yaml").exists()


@pytest.mark.ci
def test_k_nearest_neighbors_of_several_layers(pretrained, tmp_path):
    argv = ["--knn", "--labels_per_class", 3, "--seeds", 0, 1, "--probe_layers", "last", "all", "--add_to_card"]
    finetune(tmp_path / "out", "--model_name_or_path", pretrained, *argv)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    methods = {(row["method"], row["layer"]) for row in results["results"]}
    assert len(results["results"]) == 8
    assert methods == {(method, layer) for method in ("k-NN", "logistic regression") for layer in (-1, "all")}
    assert results["probe_layers"] == [-1, "all"]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    card = (pretrained / "README.md").read_text()
    assert re.search(r"\| k-NN +\| all +\|", card)
    assert re.search(r"\| k-NN +\| last +\|", card)
    scratch = finetune(tmp_path / "scratch", *SCRATCH, "--knn", "--label_fraction", 0.002, "--seeds", 0, 1)
    figures = ("accuracy", "balanced accuracy", "macro F1", "AUROC", "average precision")
    assert set(scratch) == {f"{method}: {name}" for method in ("k-NN", "logistic regression") for name in figures}
