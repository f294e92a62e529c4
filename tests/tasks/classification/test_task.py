"""`run_finetune.py` for classification: probes, errors and corruptions, and what is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from modeling_a2mim.commands.export import main as export
from modeling_a2mim.export.hub import uploaded_files
from modeling_a2mim.export.onnx import session
from modeling_a2mim.models.linear_probe import LinearProbe

from ...image_files import write_images
from ...integration.test_scripts import SMALL, finetune


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]


def test_linear_probe_with_batch_norm_is_a_plain_classifier(pretrained, tmp_path):
    argv = ["--linear_probe", "--probe_batch_norm", "--labels_per_class", 3, "--learning_rate", 0.1]
    metrics = finetune(tmp_path / "out", "--model_name_or_path", pretrained, *argv)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    again = finetune(tmp_path / "eval", "--model_name_or_path", tmp_path / "out", "--eval_only")
    assert again["eval_accuracy"] == metrics["eval_accuracy"]
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-4)  # BatchNorm folded in float32
    start = AutoModelForImageClassification.from_pretrained(pretrained, num_labels=10)
    conv = "timm_model.stem.0.weight"
    assert torch.equal(model.state_dict()[conv], start.state_dict()[conv])


def test_linear_probe_of_an_inner_layer(pretrained, tmp_path):
    argv = ["--linear_probe", "--probe_layers", 1, "--labels_per_class", 3]
    finetune(tmp_path / "out", "--model_name_or_path", pretrained, *argv)
    probe = LinearProbe.from_pretrained(tmp_path / "out")
    assert probe.layer == 1
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.ci
def test_linear_probe_of_every_stage(pretrained, tmp_path):
    """It is saved, evaluated, exported to another runtime, and predicted with there."""
    out, argv = tmp_path / "out", ["--linear_probe", "--probe_layers", "all", "--labels_per_class", 5]
    metrics = finetune(out, "--model_name_or_path", pretrained, *argv, "--learning_rate", 0.01)
    probe = LinearProbe.from_pretrained(out).eval()
    assert (probe.layer, probe.config.probe_layer) == ("all", "all")
    assert probe.norm is not None  # also without --probe_batch_norm
    assert probe.norm.num_batches_tracked > 0
    again = finetune(tmp_path / "eval", "--model_name_or_path", out, "--eval_only")
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    export([str(out), "--out", str(tmp_path / "probe.onnx")])
    images = torch.randn(2, probe.config.num_channels, *probe.config.input_size)
    with torch.no_grad():
        expected = probe(images).logits
    found = session(tmp_path / "probe.onnx")(images.numpy())["logits"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.ci
def test_figures_of_errors_and_corruptions(pretrained, tmp_path, no_pictures):
    no_pictures.undo()
    argv = ["--labels_per_class", 2, "--corruptions", "fog", "jpeg_compression"]
    metrics = finetune(tmp_path / "out", "--model_name_or_path", pretrained, *argv)
    for name in ("confusion_matrix.png", "worst_examples.png", "corruptions.png"):
        figure = Image.open(tmp_path / "out" / name)
        assert min(figure.size) > 200
        assert len(figure.convert("RGB").getcolors(10**6)) > 10
    result = json.loads((tmp_path / "out" / "corruptions.json").read_text())
    assert set(result["corruptions"]) == {"fog", "jpeg_compression"}
    assert result["clean_accuracy"] == pytest.approx(metrics["eval_accuracy"])
    assert metrics["eval_mean_corruption_accuracy"] == result["mean_corruption_accuracy"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| jpeg compression |" in card
    assert "(confusion_matrix.png)" in card
    assert "worst_examples" not in card


def test_errors_name_files_of_the_users_folder(pretrained, tmp_path, no_pictures):
    no_pictures.undo()
    images = tmp_path / "images"
    for i in range(12):
        path = images / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), 20 * i, dtype=np.uint8)).save(path)
    shutil.copytree(images, tmp_path / "test")
    (tmp_path / "test" / "dog" / "0.png").write_bytes(b"no image")  # for which none may stand in
    folders = ["--train_dir", images, "--validation_dir", tmp_path / "test"]
    metrics = finetune(tmp_path / "out", "--model_name_or_path", pretrained, *folders)
    assert (tmp_path / "out" / "worst_examples.png").is_file()
    text = (tmp_path / "out" / "errors.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == round(11 * (1 - metrics["eval_accuracy"]), 6) > 0
    assert metrics["eval_skipped_images"] == 1
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (record["evaluation"]["images"], record["evaluation_counts"]) == (11, {"cat": 6, "dog": 5})
    assert "| broken images, which were left out | 1 |" in (tmp_path / "out" / "README.md").read_text()
    evaluation = ["--model_name_or_path", tmp_path / "out", "--eval_only", *folders[2:]]
    with pytest.raises(ValueError, match=r"^max_skipped_ratio: 1 of the 12 images of .* are broken, more than 0.05"):
        finetune(tmp_path / "eval", *evaluation)
    again = finetune(tmp_path / "eval", *evaluation, "--max_skipped_ratio", 0.1)
    assert again["eval_accuracy"] == metrics["eval_accuracy"]
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-4)
    for row in rows:  # the folder of a file is its class
        assert (images / row["file"]).is_file()
        assert row["file"] != "dog/0.png"
        assert row["file"].split("/")[0] == row["true class"] != row["predicted class"]
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert str(tmp_path) not in text
    assert "errors.csv" not in uploaded_files(tmp_path / "out")


def test_augmentation_and_mixing_go_into_the_card(tmp_path):
    argv = [*SCRATCH, "--labels_per_class", 2, "--mixup", 0.2, "--reprob", 0.25, "--crop_pct", 0.875, "--vflip", 0.5]
    finetune(tmp_path / "out", *argv, "--optim", "lamb", "--aug_repeats", 3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| augmentation | hflip 0.5, vflip 0.5, re_prob 0.25, re_mode const |" in card
    assert "| regularisation | mixup 0.2 |" in card
    assert "| optimiser | lamb," in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 0.875


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--knn", "--linear_probe"], "^knn: give either it or --linear_probe"),
        (["--probe_layers", 1], "^probe_layers: is for"),
        (["--linear_probe", "--probe_layers", 0, 1], "^probe_layers: --linear_probe trains on one layer"),
        (["--linear_probe", "--probe_layers", 9], "^probe_layers: .*there is no index 9"),
        (["--probe_batch_norm"], "^probe_batch_norm: is for"),
        (["--labels_per_class", 2, "--label_fraction", 0.1], "^label_fraction: give either it or --labels_per_class"),
        (["--label_fraction", 0], r"^label_fraction: must be in \(0, 1\]"),
        (["--label_subset", "nowhere.json"], "^label_subset: nowhere.json cannot be read"),
        (["--seeds", 1, 1], "^seeds: .* repeats one"),
        (["--corruptions", "rain"], "^corruptions: .*rain"),
        (["--corruptions", "all", "fog"], "^corruptions: give either all or some types"),
        (["--linear_probe", "--layer_decay", 0.5], "^layer_decay: the encoder is frozen in all of a --linear_probe"),
        (["--knn", "--push_to_hub"], "^push_to_hub: --knn makes no model"),
        (["--seeds", 0, 1, "--data_seed", 7], "^data_seed: each of --seeds draws its labels"),
        (["--train_dir", "a", "b"], "^train_dir: labelled images come from one source"),
        (["--corruptions", "fog", "fog"], "^corruptions: fog fog names one of them twice$"),
        (["--eval_only"], "^model_name_or_path: --eval_only needs a classifier"),
        (["--eval_only", "--push_to_hub"], "^push_to_hub: --eval_only makes no model"),
        (["--add_to_card"], "^add_to_card: --model_name_or_path is no folder"),
        (["--remode", "blur"], "^remode: must be const, rand or pixel"),
        (["--drop_path", 1], r"^drop_path: must be in \[0, 1\)"),
        (["--aug_repeats", 0], "^aug_repeats: must be at least 1"),
        (["--hflip", 2], r"^hflip: must be in \[0, 1\]"),
    ],
)
def test_mistakes(tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        finetune(tmp_path / "out", *SCRATCH, *args)
    assert not (tmp_path / "out").exists()


def two_classes(tmp_path):
    """A classifier of cats and dogs, which was evaluated on what it was trained on."""
    images = ["--train_dir", tmp_path / "images", "--validation_dir", tmp_path / "images"]
    finetune(tmp_path / "animals", *SCRATCH, *images)
    return tmp_path / "animals"


def test_what_is_trained_on_is_not_held_out(tmp_path, caplog):
    write_images(tmp_path / "images", [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)])
    folder = two_classes(tmp_path)
    assert "validation_dir: images to evaluate on are trained on as well" in caplog.text
    card = (folder / "README.md").read_text()
    assert "Measured on 6 images of the author's, which it was trained on, at step 2:" in card


def test_an_evaluation_leaves_the_pictures_of_the_card(tmp_path, no_pictures, caplog):
    folders = []
    for name in ("draw_errors", "draw_curves"):
        no_pictures.setattr(f"modeling_a2mim.tasks.classification.task.{name}", lambda *args: folders.append(args[0]))
    own = tmp_path / "classifier"
    finetune(own, *SCRATCH, "--labels_per_class", 1)
    for output in (own, tmp_path / "elsewhere"):
        finetune(output, "--model_name_or_path", own, "--eval_only")
    places = [own, own / "evaluation_pictures", tmp_path / "elsewhere"]
    assert folders == [str(place) for place in places for _ in range(2)]
    assert f"pictures of this evaluation are in {own / 'evaluation_pictures'}; those of the model's" in caplog.text


def test_classifiers_of_other_classes_are_not_evaluated(pretrained, tmp_path):
    with pytest.raises(ValueError, match="^model_name_or_path: .* is no timm classifier with label_names"):
        finetune(tmp_path / "out", "--model_name_or_path", pretrained, "--eval_only")
    for i, name in enumerate(("cat", "dog")):
        Path(tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.full((32, 32), 90 * i, dtype=np.uint8)).save(tmp_path / "images" / name / "0.png")
    finetune(tmp_path / "own", *SCRATCH, "--labels_per_class", 1)
    with pytest.raises(
        ValueError, match="^validation_dir: name images; those that are bundled .* of its classes are not those"
    ):
        finetune(tmp_path / "out", "--model_name_or_path", two_classes(tmp_path), "--eval_only")
    folders = ["--train_dir", tmp_path / "images", "--validation_dir", tmp_path / "images"]
    with pytest.raises(ValueError, match="^validation_dir: 2 of its classes are not those of the model"):
        finetune(tmp_path / "out", "--model_name_or_path", tmp_path / "own", "--eval_only", *folders)
    for name, value, own in (("image_size", 64, 32), ("crop_pct", 0.5, 0.95)):
        with pytest.raises(
            ValueError, match=rf"^{name}: the classifier in .* has {own}, not {value}, and --eval_only"
        ):
            finetune(
                tmp_path / "out", "--model_name_or_path", tmp_path / "own", "--eval_only", f"--{name}", value, *folders
            )
