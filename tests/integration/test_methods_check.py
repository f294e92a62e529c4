"""`benchmarks/methods_check.py`: a method beside the random weights that it began with."""

import json
import sys

import numpy as np
import pytest

from benchmarks import methods, methods_check


@pytest.mark.usefixtures("one_thread")
def test_table_of_two(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    parts = {}
    for split, count in (("train", 70), ("test", 20)):
        parts[split] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        parts[f"{split}_labels"] = np.arange(count) % 2
    np.savez(tmp_path / "fashion_mnist.npz", **parts)
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    methods.images_of.cache_clear()
    output = tmp_path / "check.json"
    command = ["methods_check.py", "--output", str(output), "--steps", "2", "--only", "convnext 0.4M"]
    for method in ("scratch", "SimMIM"):
        monkeypatch.setattr(sys, "argv", [*command, method])
        methods_check.main()
    monkeypatch.setattr(methods_check, "learn", None)  # what is there is not made again
    methods_check.main()
    methods.images_of.cache_clear()
    runs = json.loads(output.read_text())["runs"]
    assert list(runs) == ["convnext 0.4M, scratch", "convnext 0.4M, SimMIM"]
    before, after = (run["k-NN, last map"] for run in runs.values())
    rows = output.with_suffix(".md").read_text().splitlines()
    assert rows[-2].startswith(f"| convnext 0.4M | scratch |  |  | {before:.3f} |")
    assert f"| {after:.3f} ({after - before:+.3f}) |" in rows[-1]
