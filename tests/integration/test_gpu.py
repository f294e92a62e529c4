"""`make gpu`: it runs without what the machine with the GPU has not, a part that fails ends no other, and what it
computes itself is what scikit-learn computes."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from benchmarks import judging
from benchmarks.in_memory import Schedule, Step, features, fine_tune, predict
from modeling_a2mim import A2MIMConfig, A2MIMModel


pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
MISSING = ("datasets", "evaluate", "pycocotools", "simplejpeg", "sklearn", "scipy", "skimage", "matplotlib", "gradio")
WITHOUT = """
import json, runpy, sys
for name in json.loads(sys.argv.pop(1)):
    sys.modules[name] = None
sys.argv[0] = "benchmarks/gpu.py"
sys.path[0] = "benchmarks"
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def run_without(*args, cwd=ROOT):
    command = [sys.executable, "-c", WITHOUT, json.dumps(MISSING), *args]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_steps_without_datasets_and_all_else_that_may_be_missing(tmp_path):
    result = run_without("--small", "--parts", "steps", "--output", str(tmp_path / "gpu.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "scipy is not installed" in result.stdout
    part = json.loads((tmp_path / "gpu.json").read_text())["parts"]["steps"]
    assert not part["skipped"]
    assert not part["errors"]
    assert {"A2MIM", "encoder", "supervised, 1000 classes"} <= set(part["results"]["test_vit, batch of 2"])
    assert part["run"]["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.slow
def test_all_parts_without_datasets(tmp_path):
    result = run_without("--small", "--output", str(tmp_path / "gpu.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == ["effect", "steps", "fourier", "interactions", "compiled"]
    assert all(part["results"] and not part["errors"] for part in parts.values())
    rows = parts["effect"]["results"]["judged"]
    assert {row["method"] for row in rows} == {"fine-tuning", "probe, last map", "probe, every stage"}
    assert {row["start"] for row in rows} == {"from scratch", "SimMIM", "A2MIM", "A2MIM, multiscale"}


def gpu_run(tmp_path, monkeypatch):
    from benchmarks import gpu

    monkeypatch.setattr(gpu, "START", gpu.time.perf_counter())
    return gpu.Run(SimpleNamespace(device="cpu", small=True, bf16=False, eager=False, output=tmp_path / "gpu.json"))


def test_what_fails_or_does_not_fit_is_named_and_ends_nothing(tmp_path, monkeypatch, capsys):
    from benchmarks import gpu

    run = gpu_run(tmp_path, monkeypatch)

    def measure(run, settings, results):
        with run.unit("large"):
            raise torch.OutOfMemoryError("CUDA out of memory.\nand so on")
        assert not run.fits("long", 1e6)
        results["small"] = {}

    run.part("fourier", 60, measure)
    run.part("steps", 60, lambda run, settings, results: 1 / 0)
    part, other = (json.loads((tmp_path / "gpu.json").read_text())["parts"][name] for name in ("fourier", "steps"))
    assert part["errors"] == {"large": "OutOfMemoryError: CUDA out of memory."}
    assert list(part["skipped"]) == ["long"]
    assert part["results"] == {"small": {}}
    assert other["errors"] == {"steps": "ZeroDivisionError: division by zero"}
    gpu.report({"steps": other}, tmp_path / "gpu.json")
    assert "FAILED: steps: ZeroDivisionError" in capsys.readouterr().out
    assert "FAILED: steps: ZeroDivisionError" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_is_not_run_again_stays_in_the_file(tmp_path, monkeypatch):
    gpu_run(tmp_path, monkeypatch).part("steps", 60, lambda run, settings, results: results.update(a=1))
    gpu_run(tmp_path, monkeypatch).part("fourier", 60, lambda run, settings, results: results.update(b=2))
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [part["results"] for part in parts.values()] == [{"a": 1}, {"b": 2}]


def test_scores_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 3):
        labels = torch.randint(0, classes, (90,), generator=generator).numpy()
        logits = torch.randn(90, classes, generator=generator)
        logits = (4 * logits).round() / 4 if classes == 2 else logits  # some are equal
        found = judging.scores(logits, labels)
        odds = (logits[:, 1] - logits[:, 0]) if classes == 2 else logits.double().softmax(1)
        assert found["auroc"] == pytest.approx(roc_auc_score(labels, odds.numpy(), multi_class="ovr"))
        best = logits.argmax(1).numpy()
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, best))
        assert found["accuracy"] == pytest.approx((best == labels).mean())


def test_many_regressions_at_once_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 2], 30)
    x = torch.randn(90, 12).double() + torch.from_numpy(labels)[:, None] * 0.5
    chosen = np.ones((2, 90), bool)
    chosen[1, ::2] = False
    weight, _ = judging._fit(x, torch.from_numpy(labels), chosen, torch.tensor([0.01, 1.0]).double())
    for problem, decay in enumerate((0.01, 1.0)):
        own = chosen[problem]
        model = LogisticRegression(C=1 / (decay * own.sum()), tol=1e-8, max_iter=1000).fit(x[own], labels[own])
        torch.testing.assert_close(
            weight.view(12, 2, 3)[:, problem].T, torch.from_numpy(model.coef_), atol=1e-3, rtol=0
        )


def test_probes_tell_classes_apart_that_differ():
    labels = np.arange(80) % 2
    train, test = (torch.randn(80, 20) + 3 * torch.from_numpy(labels)[:, None] for _ in range(2))
    logits = judging.linear_probes(train, labels, test, [list(range(20)), list(range(80))])
    assert logits.shape == (2, 80, 2)
    assert all(judging.scores(of_subset, labels)["auroc"] > 0.95 for of_subset in logits)


def tiny(**kwargs) -> A2MIMConfig:
    return A2MIMConfig.resnet("test_resnet", image_size=32, mask_patch_size=16, num_channels=1, **kwargs)


def bars(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, on every other image with a bright bar."""
    images = torch.randint(0, 128, (count, 1, 32, 32), generator=torch.Generator().manual_seed(count))
    images[1::2, :, :, 10:16] += 100
    return images.byte(), torch.arange(count) % 2


def test_fine_tuning_starts_from_the_weights_and_learns():
    images, labels = bars(32)
    schedule = Schedule(40, 16, 2e-3)
    model, found = fine_tune(tiny(), None, images, labels, 2, schedule)
    test, known = bars(40)
    assert judging.scores(predict(model, test), known.numpy())["auroc"] > 0.9
    assert found["steps_per_second"] > 0
    assert found["points"] == []
    weights = {name: torch.full_like(w, 0.25) for name, w in model.a2mim.encoder.state_dict().items()}
    start, _ = fine_tune(tiny(), weights, images, labels, 2, Schedule(1, 16, 2e-3))  # its first rate is 0
    assert torch.equal(start.a2mim.encoder.conv1[0].weight, weights["conv1.0.weight"])


def test_features_are_means_and_deviations_of_maps():
    images, _ = bars(3)
    core = A2MIMModel(tiny(), use_mask_token=False)
    found = features(core, images)
    channels = [stage["num_chs"] for stage in core.encoder.feature_info]
    assert found["last map"].shape == (3, channels[-1])
    assert found["every stage"].shape == (3, 2 * sum(channels))
    means = found["every stage"].split([c for c in channels for _ in range(2)], dim=1)[-1]
    torch.testing.assert_close(means, found["last map"])


@pytest.mark.parametrize("works", [True, False])
def test_a_recorded_step_is_every_step(monkeypatch, works):
    """Where it can be recorded and where not; the graph is a stand-in, as there is no GPU."""
    made = []

    def graph(recorded):
        if not works:
            raise RuntimeError("capture failed\nat length")
        made.append(recorded)
        return contextlib.nullcontext()

    weight = torch.nn.Linear(1, 1, bias=False)
    seen = []

    def loss(x):
        seen.append(x.clone())
        return weight(x).sum()

    groups = [{"params": list(weight.parameters())}]
    step = Step(weight, groups, loss, Schedule(6, 1, 0.1))
    step.recording = True
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)
    replays = SimpleNamespace(replay=lambda: seen.append(step.inputs[0].clone()))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: replays)
    for number in range(6):
        step(1.0, torch.full((1, 1), float(number)))
    values = [x.item() for x in seen]
    # Recording does not run anything on a GPU; the stand-in calls the loss once.
    assert values == ([0, 1, 2, 3, 3, 4, 5] if works else [0, 1, 2, 3, 4, 5])
    assert step.failure == (None if works else "capture failed")
    assert len(made) == works
