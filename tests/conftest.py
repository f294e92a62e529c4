"""Tests run offline: the Hub is switched off, and a connection to anything but this machine is an error."""

import dataclasses
import gc
import logging
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
os.fsync = lambda descriptor: None  # no test loses power


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items):
    """`few(n)`: of the parameters of a test, n run in the ordinary suite, evenly spaced; the others are slow."""
    groups = {}
    for item in items:
        if (mark := item.get_closest_marker("few")) is not None:
            groups.setdefault((item.path, item.originalname), (mark.args[0], []))[1].append(item)
    for most, group in groups.values():
        kept = {index * len(group) // most for index in range(most)}
        for index, item in enumerate(group):
            if index not in kept:
                item.add_marker("slow")


@pytest.fixture(autouse=True, scope="module")
def as_it_was():
    """Commands set some things for the whole process, which is theirs. The order of files must not matter: the next
    one finds them as this one did."""
    import datasets
    import torch
    import transformers

    gc.collect()
    gc.freeze()  # runs of Trainer end with `gc.collect`, which need not look at all that was imported each time
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in (None, "a2mim", "transformers")}
    environment, folder, threads = dict(os.environ), os.getcwd(), torch.get_num_threads()
    ours = transformers.utils.logging
    bars = ours.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    yield
    for logger, level in loggers.items():
        logger.setLevel(level)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(threads)
    (ours.enable_progress_bar if bars[0] else ours.disable_progress_bar)()  # and those of huggingface_hub
    (datasets.enable_progress_bars if bars[1] else datasets.disable_progress_bars)()


@pytest.fixture(autouse=True)
def seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def no_gauge(request):
    """Commands measure the encoder while it learns only where that is tested or asked for: it takes a second."""
    from modeling_a2mim.arguments.data import PreTrainingDataArguments

    fields = {f.name: f for f in dataclasses.fields(PreTrainingDataArguments)}
    with pytest.MonkeyPatch.context() as patch:
        if "monitor" not in request.path.name:
            patch.setattr(fields["monitor_steps"], "default", "0")
        yield


@pytest.fixture(autouse=True, scope="module")
def no_curves(request):
    """Exports hold an empty figure in the place of the losses by step, but where these are looked at: it is drawn at
    each end of a run, which takes half a second."""
    from PIL import Image

    from modeling_a2mim.export import folder

    with pytest.MonkeyPatch.context() as patch:
        if "monitor" not in request.path.name:
            patch.setattr(folder, "loss_curve", lambda log, path, monitor=(): Image.new("1", (7, 4)).save(path))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Tensors and models as small as in the tests only wait for a second thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_pictures():
    """Classifiers are not drawn the errors and curves of, which takes two seconds. What is returned undoes that."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_errors", "draw_curves"):
            patch.setattr(f"modeling_a2mim.tasks.classification.task.{name}", lambda *args: None)
        yield patch


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
