"""`run_finetune.py` for classification: few labels, several seeds, frozen encoders, errors and corruptions."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from modeling_a2mim.evaluation.summary import mean_and_interval
from modeling_a2mim.export.hub import uploaded_files
from modeling_a2mim.models.linear_probe import LinearProbe

from ..integration.test_scripts import SMALL, finetune, pretrain


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(folder, "--max_train_samples", 32)
    return folder


def test_seeds_give_a_table_and_cards(pretrained, tmp_path):
    argv = ["--model_name_or_path", pretrained, "--labels_per_class", 2, "--seeds", 0, 7, "--add_to_card"]
    metrics = finetune(tmp_path / "out", *argv)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    values = [row["accuracy"] for row in results["results"]]
    assert [row["seed"] for row in results["results"]] == [0, 7]
    assert metrics["fine-tuning: accuracy"] == pytest.approx(np.mean(values))
    aurocs = [row["auroc"] for row in results["results"]]
    assert metrics["fine-tuning: AUROC"] == pytest.approx(np.mean(aurocs))
    evaluated = json.loads((tmp_path / "out" / "seed-7" / "eval_results.json").read_text())
    assert (evaluated["eval_auroc"], evaluated["eval_accuracy"]) == (aurocs[1], values[1])
    table = (tmp_path / "out" / "results.md").read_text()
    shown = f"{mean_and_interval(values)} |"
    assert f"| 2 labels of each class | fine-tuning | {shown}" in table
    assert f"| {mean_and_interval(aurocs)} |" in table
    counts = {row["class"]: int(row["images"]) for row in results["by_class"]}
    assert sum(counts.values()) == 20
    recalls = mean_and_interval([row["recall_Sneaker"] for row in results["results"]])
    assert f"| fine-tuning | Sneaker | {counts['Sneaker']} |" in table
    assert f"| {recalls} |" in table
    card = (tmp_path / "out" / "seed-7" / "README.md").read_text()
    recall, ranked = (evaluated[f"eval_{name}_Sneaker"] for name in ("recall", "average_precision"))
    assert f"| auroc | {aurocs[1]:.4f} |" in card
    assert f" | {recall:.4f} | {ranked:.4f} |" in card
    assert str(tmp_path) not in json.dumps(results)
    subsets = [json.loads((tmp_path / "out" / f"seed-{s}" / "subset.json").read_text()) for s in (0, 7)]
    assert [len(subset["rows"]) for subset in subsets] == [20, 20]
    assert subsets[0]["rows"] != subsets[1]["rows"]
    for folder in (tmp_path / "out" / "seed-0", pretrained):
        assert f"| fine-tuning | {shown}" in (folder / "README.md").read_text()
    before = (tmp_path / "out" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    again = finetune(tmp_path / "out", *argv, "--resume_from_checkpoint", "last")  # all is done
    assert again == metrics
    assert (tmp_path / "out" / "seed-0" / "model.safetensors").stat().st_mtime_ns == before
    same = ["--label_subset", tmp_path / "out" / "seed-7" / "subset.json", "--seed", 7]
    finetune(tmp_path / "same", "--model_name_or_path", pretrained, *same)
    one, two = (tmp_path / folder / "model.safetensors" for folder in ("out/seed-7", "same"))
    assert one.read_bytes() == two.read_bytes()


def test_a_set_of_seeds_is_not_overwritten(tmp_path, monkeypatch):
    argv = [*SCRATCH, "--labels_per_class", 1]
    finetune(tmp_path, *argv, "--seeds", 0, 1)
    before = (tmp_path / "seed-0" / "model.safetensors").read_bytes()
    for seeds, what in [((1, 2), r"results.json"), ((2,), r"results.json")]:
        with pytest.raises(
            ValueError, match=rf"^output_dir: .* holds results \({what}\) of another run; name another"
        ):
            finetune(tmp_path, *argv, "--seeds", *seeds)
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match=r"^output_dir: .*seed-1 holds checkpoints and results \(model"):
        finetune(tmp_path, *argv, "--seeds", 2, 1)
    assert (tmp_path / "seed-0" / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "seed-2").exists()

    # Stopped in the first seed, a set that overwrites has nothing left that could be taken for its own.
    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modeling_a2mim.tasks.classification.ClassificationTrainer.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path, *argv, "--seeds", 0, 1, "--overwrite_output_dir")
    left = {path.name for seed in (0, 1) for path in (tmp_path / f"seed-{seed}").iterdir()}
    assert left <= {"subset.json", "runs"}
    finetune(tmp_path, *argv, "--seeds", 0, 1, "--learning_rate", 0.1, "--resume_from_checkpoint", "last")
    assert (tmp_path / "seed-0" / "model.safetensors").read_bytes() != before


def test_k_nearest_neighbours_of_several_layers(pretrained, tmp_path):
    argv = ["--knn", "--labels_per_class", 3, "--seeds", 0, 1, "--probe_layers", 0, -1, "--add_to_card"]
    finetune(tmp_path / "out", "--model_name_or_path", pretrained, *argv)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    methods = {(row["method"], row["layer"]) for row in results["results"]}
    assert len(results["results"]) == 8
    assert len(methods) == 4
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert "k-NN" in (pretrained / "README.md").read_text()
    scratch = finetune(tmp_path / "scratch", *SCRATCH, "--knn", "--label_fraction", 0.002, "--seeds", 0, 1)
    figures = ("accuracy", "balanced accuracy", "macro F1", "AUROC", "average precision")
    assert set(scratch) == {f"{method}: {name}" for method in ("k-NN", "logistic regression") for name in figures}


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


def test_pictures_of_errors_and_corruptions(pretrained, tmp_path, no_pictures):
    no_pictures.undo()
    argv = ["--labels_per_class", 2, "--corruptions", "fog", "jpeg_compression"]
    metrics = finetune(tmp_path / "out", "--model_name_or_path", pretrained, *argv)
    for name in ("confusion_matrix.png", "worst_examples.png", "corruptions.png"):
        picture = Image.open(tmp_path / "out" / name)
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(10**6)) > 10
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
    (tmp_path / "test" / "dog" / "0.png").write_bytes(b"no image")  # for which the next one stands in
    folders = ["--train_dir", images, "--validation_dir", tmp_path / "test"]
    metrics = finetune(tmp_path / "out", "--model_name_or_path", pretrained, *folders)
    assert (tmp_path / "out" / "worst_examples.png").is_file()
    text = (tmp_path / "out" / "errors.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == round(12 * (1 - metrics["eval_accuracy"]))
    assert rows
    for row in rows:  # the folder of a file is its class
        assert (images / row["file"]).is_file()
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
        (["--linear_probe", "--probe_layers", 9], "^probe_layer: .*there is no index 9"),
        (["--probe_batch_norm"], "^probe_batch_norm: is for"),
        (["--labels_per_class", 2, "--label_fraction", 0.1], "^label_fraction: give either it or --labels_per_class"),
        (["--label_fraction", 0], r"^label_fraction: must be in \(0, 1\]"),
        (["--label_subset", "nowhere.json"], "^label_subset: nowhere.json cannot be read"),
        (["--seeds", 1, 1], "^seeds: .* repeats one"),
        (["--corruptions", "rain"], "^corruptions: .*rain"),
        (["--eval_only"], "^model_name_or_path: --eval_only needs a classifier"),
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


def test_sizes_that_an_encoder_does_not_take(tmp_path):
    vit = ["--architecture", "vit_tiny_patch16_224", "--model_args", '{"depth": 1, "embed_dim": 24}']
    vit += ["--image_size", 64, "--train_image_size", 48]
    with pytest.raises(
        ValueError, match="^train_image_size: vit_tiny_patch16_224 takes images of 64 x 64 px and no others"
    ):
        finetune(tmp_path / "out", *vit)


def test_classifiers_of_other_classes_are_not_judged(pretrained, tmp_path):
    with pytest.raises(ValueError, match="^model_name_or_path: .* is no timm classifier with label_names"):
        finetune(tmp_path / "out", "--model_name_or_path", pretrained, "--eval_only")
    for i, name in enumerate(("cat", "dog")):
        Path(tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.full((32, 32), 90 * i, dtype=np.uint8)).save(tmp_path / "images" / name / "0.png")
    finetune(tmp_path / "own", *SCRATCH, "--labels_per_class", 1)
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
