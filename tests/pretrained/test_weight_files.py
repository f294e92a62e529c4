"""Files of weights are read without running anything in them, as training code writes them."""

import argparse
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modeling_a2mim.pretrained.weight_files import read_file


def saved(content, path, **kwargs):
    torch.save(content, path, **kwargs)
    return path


def test_what_training_code_keeps_beside_the_weights(tmp_path):
    settings = argparse.Namespace(lr=0.1, output=Path("/x"), dtype=torch.float32, betas=np.ones(2))
    content = {
        "model": {"a.b": torch.ones(3), "nested": {"c": torch.zeros(2)}},
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
        "args": settings,
        "best": np.float64(0.5),
        "history": np.arange(3),
        "epoch": 3,
    }
    found = read_file(saved(content, tmp_path / "in.pth"))
    assert {name: value.tolist() for name, value in found.items()} == {
        "model.a.b": [1, 1, 1],
        "model.nested.c": [0, 0],
    }
    save_file({"a": torch.ones(3)}, tmp_path / "in.safetensors")
    assert read_file(tmp_path / "in.safetensors")["a"].tolist() == [1, 1, 1]


def test_settings_of_packages_that_are_not_here(tmp_path, monkeypatch):
    class CfgNode(dict):
        pass

    for name in ("yacs", "yacs.config"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    sys.modules["yacs.config"].CfgNode = CfgNode
    config = CfgNode(a=1, b=CfgNode(x=[1, 2]))
    config.__dict__["__immutable__"] = True
    path = saved({"model": {"w": torch.ones(2)}, "config": config}, tmp_path / "in.pth")
    monkeypatch.undo()
    assert "yacs" not in sys.modules
    assert list(read_file(path)) == ["model.w"]
    assert "yacs" not in sys.modules


def test_files_are_told_by_their_content(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "in.pth")
    assert read_file(tmp_path / "in.pth")["a"].tolist() == [1, 1, 1]
    content = {"state_dict": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=0.1)}
    old = saved(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert list(read_file(old)) == ["state_dict.w"]
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"lfs\.safetensors: is a pointer of Git LFS"):
        read_file(tmp_path / "lfs.safetensors")


def test_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for content in ({"w": torch.ones(2), "x": Runs()}, torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"in\.pth: refused, and nothing in it was run"):
            read_file(saved(content, tmp_path / "in.pth"))
    assert not (tmp_path / "ran").exists()


def test_files_without_weights(tmp_path):
    with pytest.raises(ValueError, match=r"in\.pth: holds no weights"):
        read_file(saved({"epoch": 3, "optimizer": {0: torch.ones(2)}}, tmp_path / "in.pth"))
    (tmp_path / "text.pth").write_text("none")
    with pytest.raises(ValueError, match=r"text\.pth: not a checkpoint"):
        read_file(tmp_path / "text.pth")
    (tmp_path / "text.safetensors").write_text("none")
    with pytest.raises(ValueError, match=r"text\.safetensors: not a safetensors file"):
        read_file(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="w calls itself more bytes than are stored"):
        read_file(saved({"w": torch.ones(1).expand(10, 10**6)}, tmp_path / "large.pth"))
