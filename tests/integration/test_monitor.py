"""The gauge through the command line: what is refused before anything is written, what is measured by default, and
what the record, the card and the figure hold of it."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from modeling_a2mim.data.loading import load_images
from modeling_a2mim.evaluation.gauge import MORE_IS_BETTER
from modeling_a2mim.export.monitor import monitor_log

from .test_scripts import pretrain


pytestmark = pytest.mark.usefixtures("one_thread")
FEW = ["--max_train_samples", 32]
EVERY_STEP = ["--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1]
BEST = [*EVERY_STEP, "--load_best_model_at_end", "True", "--metric_for_best_model"]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Ten images of each of three classes."""
    root, rows = tmp_path_factory.mktemp("data") / "private", load_images(split="test")
    for label in (0, 1, 8):
        for row in np.flatnonzero(np.array(rows["label"]) == label)[:10].tolist():
            path = root / f"class-{label}" / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows[row]["image"].save(path)
    return root


def read(folder, name="training.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.ci
def test_a_folder_of_classes(tmp_path, classes, caplog):
    out = tmp_path / "out"
    argv = ["--monitor_dir", classes, "--monitor_samples", 24, "--monitor_steps", 2, "--max_steps", 5]
    with caplog.at_level("INFO", "a2mim"):
        metrics = pretrain(out, *FEW, *argv)
    assert f"monitor: 24 of 30 images, 3 classes: monitor_dir {classes}" in caplog.messages
    names = ", ".join(MORE_IS_BETTER)
    assert f"monitor: {names} of 24 of 30 images every 2 steps (as given), at the start and at the end" in caplog.text
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    log = monitor_log(lines)
    assert [entry["step"] for entry in log] == [0, 2, 4, 5]
    assert all(0 <= entry["knn_accuracy"] <= 1 and 1 <= entry["rankme"] <= 24 for entry in log)
    assert len({entry["rankme"] for entry in log}) == 4
    assert {name: metrics[f"eval_{name}"] for name in MORE_IS_BETTER} == {
        name: log[-1][name] for name in MORE_IS_BETTER
    }
    record, card = read(out), (out / "README.md").read_text()
    kept = record["monitor"]
    assert (kept["data"], kept["images"], kept["of"], kept["classes"]) == ("the author's", 24, 30, 3)
    assert kept["log"] == log
    assert "monitor_data" not in record
    assert not MORE_IS_BETTER.keys() & record["evaluation"].keys()
    first = kept["summary"]["knn_accuracy"]["first"]
    assert first == {"step": 0, "value": log[0]["knn_accuracy"]}
    assert (
        "on 24 of 30 images (the author's; 3 classes), 4 times:\n\n| while it learned | first | best | last |" in card
    )
    assert f"| leave-one-out k-NN accuracy, by cosine | {first['value']:.4f} (step 0) |" in card
    assert "private" not in card + json.dumps(record) + (out / "metrics.jsonl").read_text()
    assert Image.open(out / "loss_curve.png").size == (840, 720)  # two panels, 7 x 6 inches


@pytest.mark.ci
def test_without_flags(tmp_path, caplog):
    """Images that the model is evaluated on; they may be trained on, which is said."""
    for flags, said, images in (([], "the training data itself", 32), (["--holdout", 8], "held out of it", 8)):
        out = tmp_path / f"{images}"
        with caplog.at_level("INFO", "a2mim"):
            pretrain(out, *FEW, *flags)
        found = next(line for line in caplog.messages if line.startswith(f"monitor: {images} of {images} images"))
        assert "without labels" in found
        assert said in found
        kept = read(out)["monitor"]
        assert said in kept["data"]
        assert kept["classes"] == 0
        assert kept["summary"].keys() == MORE_IS_BETTER.keys() - {"knn_accuracy"}
        caplog.clear()


@pytest.mark.ci
def test_the_best_by_a_figure(tmp_path, classes):
    out = tmp_path / "out"
    argv = [*BEST, "knn_accuracy", "--monitor_dir", classes, "--probe_layers", "all"]
    pretrain(out, *FEW, *argv, "--max_steps", 4)
    assert read(out)["monitor"]["probe_layers"] == "all"
    assert "frozen encoder, mean and deviation of every stage, on" in (out / "README.md").read_text()
    found = {
        e["step"]: e["eval_knn_accuracy"] for e in read(out, "trainer_state.json")["log_history"] if "eval_loss" in e
    }
    best = read(out)["best"]
    assert best["metric"] == "knn_accuracy"
    assert best["value"] == max(found[step] for step in (1, 2, 3, 4)) == found[best["step"]]
    pretrain(tmp_path / "cosine", *FEW, *BEST, "eval_feature_cosine", "--early_stopping_patience", 3)
    state = read(tmp_path / "cosine", "trainer_state.json")
    assert state["best_metric"] == min(e["eval_feature_cosine"] for e in state["log_history"] if "eval_loss" in e)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--monitor_dir", "nowhere"], "^monitor_dir: nowhere: no such folder"),
        (["--monitor_dir", "data", "--monitor_dataset", "data"], "^monitor_dataset: give either"),
        (["--monitor_dataset", "./nowhere"], "^monitor_dataset: ./nowhere: no such file or folder"),
        (["--monitor_steps", -1], "^monitor_steps: expected a number of steps, 0 for none, or auto, got '-1'"),
        (["--monitor_samples", 1], "^monitor_samples: must be at least 2"),
        ([*BEST, "knn_accuracy"], "^metric_for_best_model: knn_accuracy needs labelled images: give --monitor_dir"),
        ([*BEST, "rankme", "--monitor_steps", 0], "^metric_for_best_model: rankme needs images to measure on, and no"),
        ([*BEST, "rankmi"], "^metric_for_best_model: no evaluation gives 'rankmi'; did you mean rankme"),
        ([*BEST, "rankme", "--greater_is_better", "False"], "^greater_is_better: of rankme, more is better"),
    ],
)
def test_mistakes(tmp_path, argv, message):
    with pytest.raises(ValueError, match=message):
        pretrain(tmp_path / "out", *FEW, *argv)
    assert not (tmp_path / "out").exists()


def test_the_output_is_not_among_the_images(classes):
    with pytest.raises(ValueError, match=r"^output_dir: .* lies in .*private \(--monitor_dir\)"):
        pretrain(classes / "out", *FEW, "--monitor_dir", classes)


def test_what_has_no_effect_is_said(tmp_path, classes, caplog):
    caplog.set_level(logging.WARNING)
    argv = ["--monitor_steps", 0, "--monitor_dir", classes, "--monitor_split", "test", "--probe_layers", "all"]
    pretrain(tmp_path / "out", *FEW, *argv)
    assert "probe_layers has no effect without --monitor_steps" in caplog.messages
    assert "monitor_dir has no effect without --monitor_steps" in caplog.messages
    assert "monitor_split has no effect without --monitor_dataset" in caplog.messages
    record = read(tmp_path / "out")
    assert not {"monitor", "monitor_data"} & record.keys()
    assert "while it learned" not in (tmp_path / "out" / "README.md").read_text()
