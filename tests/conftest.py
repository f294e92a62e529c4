"""Tests run offline: the Hub is switched off, and a connection to anything but this machine is an error."""

import dataclasses
import os
import socket

import pytest

from .hub import hub, module_hub  # noqa: F401


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several processes only get in each other's way
    os.environ["OMP_NUM_THREADS"] = "1"

LOCAL = ("127.0.0.1", "localhost", "::1")
real_connect = socket.socket.connect


def guarded_connect(self, address):
    if isinstance(address, tuple) and address[0] not in LOCAL:
        raise RuntimeError(f"a test tried to reach the network: {address}")
    return real_connect(self, address)


socket.socket.connect = guarded_connect


@pytest.fixture(autouse=True)
def seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_gauge(request, monkeypatch):
    """Commands measure the encoder while it learns only where that is tested or asked for: it takes a second."""
    if "monitor" not in request.path.name:
        from modeling_a2mim.arguments.data import PreTrainingDataArguments

        fields = {f.name: f for f in dataclasses.fields(PreTrainingDataArguments)}
        monkeypatch.setattr(fields["monitor_steps"], "default", "0")


@pytest.fixture(scope="module")
def one_thread():
    """Tensors and models as small as in the tests only wait for a second thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_pictures(monkeypatch):
    """Classifiers are not drawn the errors and curves of, which takes two seconds."""
    for name in ("draw_errors", "draw_curves"):
        monkeypatch.setattr(f"modeling_a2mim.tasks.classification.task.{name}", lambda *args: None)
    return monkeypatch


@pytest.fixture
def folder(tmp_path):
    """12 images in two nested folders, one of another mode, and a file that is no image."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "images" / ("cats" if i % 2 else "dogs") / f"test_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i == 3 else "RGB").save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"
