"""The scripts and the notebook in examples/ run offline on the bundled sample."""

import ast
import importlib.util
import json
import os
from pathlib import Path

import pytest


ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "mkdocs.yml").is_file())
EXAMPLES = ROOT / "examples"


def load(script: str):
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.ci
def test_scripts(tmp_path, one_thread):
    """Pre-training learns more than the mean colour, and the classifier on it more than nothing."""
    pretrained, finetuned = str(tmp_path / "pretrained"), str(tmp_path / "finetuned")
    metrics = load("pretrain_from_python").main(pretrained)
    assert metrics["eval_masked_psnr"] > metrics["eval_mean_fill_psnr"]
    assert {"config.json", "model.safetensors", "README.md", "pretraining"} <= set(os.listdir(pretrained))
    metrics = load("finetune_from_python").main(pretrained, finetuned)
    assert metrics["eval_accuracy"] > 0.4  # of 10 classes; 0.72 here


@pytest.mark.parametrize("script", ["pretrain_from_python.py", "finetune_from_python.py"])
def test_scripts_are_short(script):
    assert len((EXAMPLES / script).read_text().splitlines()) < 60
    nodes = ast.walk(ast.parse((EXAMPLES / script).read_text()))
    ours = "modeling_a2mim" in {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert ours == (script == "pretrain_from_python.py")


def cells() -> list[dict]:
    return json.loads((EXAMPLES / "folder_to_classifier.ipynb").read_text())["cells"]


def test_notebook_is_committed_without_outputs():
    for cell in cells():
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))


@pytest.mark.slow
def test_notebook(monkeypatch, no_pictures):
    monkeypatch.chdir(EXAMPLES)
    names: dict = {"__name__": "notebook"}
    for cell in cells():
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "folder_to_classifier.ipynb", "exec"), names)
    metrics = names["metrics"]
    assert metrics["eval_masked_psnr"] > metrics["eval_mean_fill_psnr"]
    assert names["results"]["eval_accuracy"] > 0.3
    assert names["predicted"] in names["names"] or names["predicted"] == "T-shirt-top"
