"""Decision thresholds through `run_finetune.py`: chosen, measured, kept in the export, and read from there."""

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from datasets import ClassLabel
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, pipeline

from modeling_a2mim import A2MIMForImageClassification, FineTuningTrainer
from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.arguments.training import FineTuningArguments
from modeling_a2mim.evaluation.decisions import DecisionRule
from modeling_a2mim.evaluation.thresholds import choose_threshold, figures_at, probabilities
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.loading import load_classifier
from modeling_a2mim.models.linear_probe import LinearProbe
from modeling_a2mim.tasks.classification.data import evaluation_samples
from modeling_a2mim.tasks.classification.decision import decision_on, draw_curves
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages

from ...data.test_labels import images_of, saved
from ...image_files import lines
from ...integration.test_scripts import SMALL, finetune
from ...small_models import make


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]
MULTI = ["--problem_type", "multi_label_classification"]
FIGURES = ("precision_at_threshold", "recall_at_threshold", "f1_at_threshold", "false_alarm_rate")


def write_images(folder, **counts):
    """Noise, of which the defects are a little lighter, each split as a folder."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, count in counts.items():
            for i in range(count):
                path = folder / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 200, (32, 32)) + 20 * (name == "defect")
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return ["--train_dir", folder / "train", "--validation_dir", folder / "test"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), defect=5, good=13)


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory):
    """A run that was asked for the best F1, with its metrics and its folder."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    argv = [*SCRATCH, *images, "--threshold", "f1", "--positive_class", "defect", "--save_steps", 2]
    metrics = finetune(folder, *argv)
    return metrics, folder


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def scores_of(folder, images):
    """Of the classifier that transformers loads, as decisions are made by them."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    trained = load_classifier(str(folder))
    args = ClassificationArguments(validation_dir=str(images[3]))
    labelled = LabelledImages.for_evaluation(args, trained.config, None)
    samples = evaluation_samples(trained, args, labelled, 0)
    rows = samples.__getitems__(list(range(len(samples))))
    with torch.no_grad():
        logits = model(torch.stack([row["pixel_values"] for row in rows])).logits.numpy()
    return probabilities(logits, False), np.array([int(row["labels"]) for row in rows])


def test_the_threshold_is_chosen_measured_and_kept(exported, images):
    metrics, folder = exported
    decision = config_of(folder)["decision"]
    assert decision == {"thresholds": {"defect": metrics["eval_threshold"]}, "rule": "f1", "images": 18}
    saved_metrics = json.loads((folder / "eval_results.json").read_text())
    assert {name: saved_metrics[f"eval_{name}"] for name in ("threshold", *FIGURES)} == {
        name: metrics[f"eval_{name}"] for name in ("threshold", *FIGURES)
    }
    # The same from the exported model, and from what it decides.
    scores, labels = scores_of(folder, images)
    best = choose_threshold(scores[:, 0], labels == 0, "f1")
    assert best.f1 == pytest.approx(metrics["eval_f1_at_threshold"])
    found = figures_at(scores[:, 0], labels == 0, metrics["eval_threshold"])
    assert found.false_alarm_rate == metrics["eval_false_alarm_rate"]
    rule = DecisionRule.from_config(load_classifier(str(folder)).config)
    assert rule == DecisionRule(decision["thresholds"], "f1", 18)
    decided = np.array(rule.decide(scores, ["defect", "good"], False)) == "defect"
    assert (decided & (labels == 0)).sum() / decided.sum() == pytest.approx(metrics["eval_precision_at_threshold"])
    assert (decided & (labels == 0)).sum() / 5 == pytest.approx(metrics["eval_recall_at_threshold"])


def test_the_export_stays_what_others_load(exported):
    _, folder = exported
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transformers_model = AutoModelForImageClassification.from_pretrained(folder)
    pixels = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(pixels), transformers_model(pixels).logits)
    assert DecisionRule.from_config(AutoConfig.from_pretrained(folder)) == DecisionRule.from_config(
        load_classifier(str(folder)).config
    )


def test_pipelines_take_no_offence(tmp_path):
    model = make("convnext", cls=A2MIMForImageClassification, num_labels=2)
    model.config.decision = DecisionRule({"LABEL_1": 0.9}).to_config()
    export_model(model.eval(), tmp_path)
    assert config_of(tmp_path)["decision"]["thresholds"] == {"LABEL_1": 0.9}
    answers = pipeline("image-classification", model=str(tmp_path))(Image.new("RGB", (80, 70), "red"))
    assert {answer["label"] for answer in answers} == {"LABEL_0", "LABEL_1"}
    assert load_classifier(str(tmp_path)).config.decision == config_of(tmp_path)["decision"]


def test_the_card_tells_of_it(exported):
    metrics, folder = exported
    card = (folder / "README.md").read_text()
    value = metrics["eval_threshold"]
    assert f"It decides for `defect` from a score of {value:.4g} on (chosen by the rule `f1` on 18 images)" in card
    assert "`a2mim predict` does so, while transformers' `pipeline` does not. The figures are of the images" in card
    assert f"| defect | {value:.4f} |" in card
    assert json.loads((folder / "training.json").read_text())["decision"]["figures"]["defect"]["images"] == 18


def test_evaluated_at_its_own_threshold(exported, images, tmp_path, caplog):
    metrics, folder = exported
    caplog.set_level(logging.INFO, "a2mim")
    again = finetune(tmp_path / "out", "--model_name_or_path", folder, "--eval_only", *images[2:])
    assert {name: again[f"eval_{name}"] for name in FIGURES} == {name: metrics[f"eval_{name}"] for name in FIGURES}
    (line,) = lines(caplog, "threshold of defect")
    assert f": {metrics['eval_threshold']!r} (chosen by f1 on 18 images): precision " in line
    assert not lines(caplog, "kept")  # nothing was asked for


def test_another_threshold_elsewhere_says_how_to_use_it(exported, images, tmp_path, caplog):
    _, folder = exported
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    caplog.set_level(logging.INFO, "a2mim")
    argv = ["--threshold", "fpr=0.25", "--positive_class", "defect"]
    metrics = finetune(tmp_path / "out", "--model_name_or_path", folder, "--eval_only", *argv, *images[2:])
    assert metrics["eval_false_alarm_rate"] <= 0.25
    (line,) = lines(caplog, "not kept")
    value = metrics["eval_threshold"]
    assert line.endswith(
        f"predict {folder} IMAGES --out predictions.csv --threshold {value!r} --positive_class defect"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    fixed = ["--threshold", repr(value), "--positive_class", "defect"]
    again = finetune(tmp_path / "out", "--model_name_or_path", folder, "--eval_only", *fixed, *images[2:])
    assert {name: again[f"eval_{name}"] for name in FIGURES} == {name: metrics[f"eval_{name}"] for name in FIGURES}


def test_another_threshold_in_its_own_folder_is_kept(exported, images, tmp_path, caplog):
    folder = shutil.copytree(exported[1], tmp_path / "own")
    before = config_of(folder)
    caplog.set_level(logging.INFO, "a2mim")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()
    argv = ["--threshold", "0.25", "--positive_class", "good"]
    finetune(folder, "--model_name_or_path", folder, "--eval_only", *argv, *images[2:])
    decision = {"thresholds": {"good": 0.25}, "rule": None, "images": None}
    assert config_of(folder) == {**before, "decision": decision}
    assert list(config_of(folder)) == list(before)
    assert lines(caplog, "kept in")
    assert lines(caplog, "what onnx/model.onnx holds was made of the model before this")
    assert lines(caplog, "written into README.md and training.json")
    card = (folder / "README.md").read_text()
    assert "It decides for `good` from a score of 0.25 on (given, not chosen on images)" in card
    assert "| accuracy |" in card
    (folder / "training.json").unlink()
    finetune(folder, "--model_name_or_path", folder, "--eval_only", *argv, *images[2:])
    assert lines(caplog, "README.md does not tell of it")


def test_checkpoints_keep_their_checksums(exported, images, tmp_path, caplog):
    checkpoint = shutil.copytree(exported[1] / "checkpoint-2", tmp_path / "checkpoint-2")
    before = (checkpoint / "config.json").read_bytes()
    caplog.set_level(logging.INFO, "a2mim")
    argv = ["--threshold", "f1", "--positive_class", "defect", *images[2:]]
    finetune(checkpoint, "--model_name_or_path", checkpoint, "--eval_only", *argv)
    assert (checkpoint / "config.json").read_bytes() == before
    assert lines(caplog, "a checkpoint, whose files have checksums; to decide by it: a2mim predict")


def test_training_goes_on_without_the_old_threshold(exported, images, tmp_path, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    metrics = finetune(tmp_path / "out", "--model_name_or_path", exported[1], *images)
    assert "decision" not in config_of(tmp_path / "out")
    assert "decision" not in json.loads((tmp_path / "out" / "training.json").read_text())
    assert "eval_threshold" not in metrics
    assert lines(caplog, "decision: the model that training starts from has thresholds")


def test_trainers_in_python_drop_it_too(exported, tmp_path, caplog):
    model = load_classifier(str(exported[1]))
    assert model.config.decision
    caplog.set_level(logging.INFO, "a2mim")
    rows = images_of([0, 1, 0, 1], ClassLabel(names=["defect", "good"]))
    args = FineTuningArguments(str(tmp_path / "out"), max_steps=1, eval_strategy="no", use_cpu=True, report_to=[])
    trainer = FineTuningTrainer(model, args, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    assert "decision" not in config_of(tmp_path / "out")
    assert lines(caplog, "decision: the model that training starts from has thresholds")


def test_resuming_takes_another_threshold(exported, images, tmp_path):
    folder = shutil.copytree(exported[1], tmp_path / "out")
    argv = [*SCRATCH, *images, "--save_steps", 2, "--resume_from_checkpoint", "last"]
    metrics = finetune(folder, *argv, "--threshold", "0.125", "--positive_class", "good")
    assert config_of(folder)["decision"]["thresholds"] == {"good": 0.125}
    assert metrics["eval_threshold"] == 0.125
    finetune(folder, *argv)
    assert "decision" not in config_of(folder)


def test_a_number_needs_no_images(images, tmp_path):
    argv = [*SCRATCH, *images[:2], "--threshold", "0.3", "--positive_class", "defect"]
    metrics = finetune(tmp_path / "out", *argv)
    assert "eval_threshold" not in metrics
    assert config_of(tmp_path / "out")["decision"]["thresholds"] == {"defect": 0.3}
    assert "from a score of 0.3 on (given, not" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="^threshold: f1 is chosen on images with labels; .* --validation_split"):
        finetune(tmp_path / "no", *argv, "--threshold", "f1")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("probe", [["--probe_batch_norm"], ["--probe_layers", 1]])
def test_linear_probes(exported, images, tmp_path, probe):
    argv = ["--linear_probe", *probe, "--threshold", "f1", "--positive_class", "defect"]
    metrics = finetune(tmp_path / "out", "--model_name_or_path", exported[1], *images, *argv)
    assert config_of(tmp_path / "out")["decision"]["thresholds"] == {"defect": metrics["eval_threshold"]}
    loaded = load_classifier(str(tmp_path / "out"))
    assert isinstance(loaded, LinearProbe) == ("--probe_layers" in probe)
    assert DecisionRule.from_config(loaded.config).positive == "defect"
    again = finetune(tmp_path / "eval", "--model_name_or_path", tmp_path / "out", "--eval_only", *images[2:])
    assert again["eval_f1_at_threshold"] == metrics["eval_f1_at_threshold"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--threshold", "f1"], "^positive_class: name the class .*; the classes are defect, good$"),
        (["--threshold", "0.5", "--positive_class", "dent"], "^positive_class: there is no class 'dent'; .* good"),
        (["--positive_class", "defect"], "^positive_class: is the class that --threshold is of"),
        (["--threshold", "best", "--positive_class", "defect"], "^threshold: expected a number"),
        (["--threshold", "f1", "--positive_class", "defect", "--knn"], "^threshold: is not for --knn"),
        (["--threshold", "f1", "--positive_class", "defect", "--seeds", 1, 2], "^threshold: is not for --seeds"),
        (["--threshold", "f1", "--problem_type", "regression"], "^threshold: is for classes"),
        (["--threshold", "f1", "--positive_class", "a", *MULTI], "^positive_class: in a multi-label problem"),
    ],
)
def test_mistakes(images, tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        finetune(tmp_path / "out", *SCRATCH, *images, *args)
    assert not (tmp_path / "out").exists()


def test_mistakes_of_evaluations(exported, images, tmp_path):
    folder = shutil.copytree(exported[1], tmp_path / "own")
    start = ["--model_name_or_path", folder, "--eval_only", *images[2:]]
    with pytest.raises(ValueError, match="^positive_class: name the class .*; the classes are defect, good$"):
        finetune(tmp_path / "out", *start, "--threshold", "f1")
    alone = write_images(tmp_path / "good", good=3)
    argv = ["--threshold", "f1", "--positive_class", "defect"]
    with pytest.raises(ValueError, match="^threshold: f1 needs images of the class .* of 3, there are not both"):
        finetune(tmp_path / "out", *start[:3], *alone[2:], *argv)
    config = config_of(folder)
    for decision, message in (({"thresholds": 0.5}, "^decision: "), ({"thresholds": {"dent": 0.5}}, "^threshold: ")):
        (folder / "config.json").write_text(json.dumps({**config, "decision": decision}))
        with pytest.raises(ValueError, match=message):
            finetune(tmp_path / "out", *start)
    assert not (tmp_path / "out").exists()


def test_each_label_has_a_threshold_of_its_own(tmp_path, caplog):
    labels = [["a"], ["a", "b"], ["b"], [], ["a", "b", "c"], ["b"], ["a"], []]
    data = saved(tmp_path / "data", train=images_of(labels), test=images_of([row[:2] for row in labels]))
    argv = ["--dataset_name", data, *MULTI]
    caplog.set_level(logging.INFO, "a2mim")
    metrics = finetune(tmp_path / "out", *SCRATCH, *argv, "--threshold", "f1")
    decision = config_of(tmp_path / "out")["decision"]
    assert set(decision["thresholds"]) == {"a", "b"}
    assert lines(caplog, "threshold of c: stays 0.5: f1 needs images")
    assert len(lines(caplog, "threshold of a: ")) == len(lines(caplog, "threshold of b: ")) == 1
    figures = json.loads((tmp_path / "out" / "training.json").read_text())["decision"]["figures"]
    assert set(figures) == {"a", "b", "c"}
    assert figures["c"]["recall"] is None
    mean = (figures["a"]["f1"] + figures["b"]["f1"]) / 2  # of c it is not defined
    assert metrics["eval_f1_at_threshold"] == pytest.approx(mean)
    alarms = [found["false_alarm_rate"] for found in figures.values()]
    assert metrics["eval_false_alarm_rate"] == pytest.approx(np.mean(alarms))
    assert "eval_threshold" not in metrics
    assert "| c | 0.5000 |" in (tmp_path / "out" / "README.md").read_text()
    again = finetune(tmp_path / "eval", "--model_name_or_path", tmp_path / "out", "--eval_only", *argv)
    assert again["eval_f1_at_threshold"] == metrics["eval_f1_at_threshold"]
    caplog.clear()
    start = ["--model_name_or_path", tmp_path / "out", "--eval_only", *argv]
    finetune(tmp_path / "eval", *start, "--threshold", "f1")
    assert lines(caplog, "a command takes one number, and these labels have one each")
    caplog.clear()
    every = finetune(tmp_path / "eval", *start, "--threshold", "0.25")
    assert every["eval_threshold"] == 0.25
    (line,) = lines(caplog, "to decide by it")
    assert line.endswith("--threshold 0.25")


def prediction(logits, labels):
    return SimpleNamespace(predictions=np.array(logits, dtype=np.float32), label_ids=np.array(labels))


def test_one_of_three_classes_by_hand():
    """Softmax scores of the first class: 0.5, 0.25, 0.2; the first two are of it."""
    logits = np.log([[0.5, 0.3, 0.2], [0.25, 0.7, 0.05], [0.2, 0.4, 0.4]])
    problem = prediction(logits, [0, 0, 2]), ["a", "b", "c"], "single_label_classification"
    found = decision_on(*problem, "f1", "a")
    assert found.rule.thresholds["a"] == pytest.approx(0.225, abs=0.0125)
    assert found.metrics() == {
        "eval_threshold": found.rule.thresholds["a"],
        "eval_precision_at_threshold": 1.0,
        "eval_recall_at_threshold": 1.0,
        "eval_f1_at_threshold": 1.0,
        "eval_false_alarm_rate": 0.0,
    }
    assert decision_on(*problem, None, None) is None


def test_a_threshold_that_nothing_gives_is_said_after_training(images, tmp_path, caplog, monkeypatch):
    def nothing(*args):
        raise ValueError("threshold: fpr=0 finds nothing")

    monkeypatch.setattr("modeling_a2mim.tasks.classification.decision.choose_threshold", nothing)
    argv = ["--threshold", "fpr=0", "--positive_class", "defect"]
    finetune(tmp_path / "out", *SCRATCH, *images, *argv)
    assert "decision" not in config_of(tmp_path / "out")
    assert lines(caplog, "threshold: fpr=0 finds nothing; the model is exported without a threshold")
    with pytest.raises(ValueError, match="^threshold: fpr=0 finds nothing"):
        finetune(tmp_path / "eval", "--model_name_or_path", tmp_path / "out", "--eval_only", *argv, *images[2:])


def test_threshold_and_curves_go_to_the_hub(images, tmp_path, no_pictures, hub):
    no_pictures.undo()
    push = ["--push_to_hub", "--hub_token", hub.token, "--hub_model_id", "org/x"]
    finetune(tmp_path / "out", *SCRATCH, *images, "--threshold", "f1", "--positive_class", "defect", *push)
    files = hub.files("org/x")
    config = json.loads(files["config.json"])
    assert config == config_of(tmp_path / "out")
    assert set(config["decision"]["thresholds"]) == {"defect"}
    card = files["README.md"].decode()
    assert "It decides for `defect` from a score of " in card
    for name in ("roc_curve.png", "precision_recall_curve.png"):
        assert name in files
        assert min(Image.open(tmp_path / "out" / name).size) > 500
        assert f"]({name})" in card


def test_classes_without_a_curve_are_named(tmp_path, caplog, monkeypatch):
    drawn = []
    for name in ("plot_roc_curve", "plot_precision_recall_curve"):
        monkeypatch.setattr(
            f"modeling_a2mim.tasks.classification.decision.{name}",
            lambda scores, truths, names, path, figures: drawn.append((path.name, names, scores.shape)),
        )
    caplog.set_level(logging.INFO, "a2mim")
    single, several = "single_label_classification", "multi_label_classification"
    two = prediction([[1, 0], [0, 1], [2, 0]], [0, 1, 1])
    draw_curves(tmp_path, two, ["bad", "good"], single, {})
    assert drawn.pop() == ("precision_recall_curve.png", ["bad", "good"], (3, 2))
    assert drawn.pop() == ("roc_curve.png", ["bad", "good"], (3, 2))
    found = decision_on(two, ["bad", "good"], single, "f1", "good")
    draw_curves(tmp_path, two, ["bad", "good"], single, found.figures)
    assert drawn.pop()[1:] == (["good"], (3, 1))
    assert not caplog.records
    draw_curves(tmp_path, prediction([[1, 0], [0, 1]], [[1, 0], [0, 0]]), ["bad", "good"], several, {})
    assert lines(caplog, "no ROC and precision-recall curve of good: no images of both kinds")
