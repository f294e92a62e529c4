"""The two scripts: bad input gets a clear error and loses nothing, and a small run goes through from end to end."""

import functools
import json
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageClassification

import run_finetune
import run_pretraining
from modeling_a2mim.arguments.data import DataArguments
from modeling_a2mim.arguments.model import PreTrainingModelArguments
from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.commands.parser import parse
from modeling_a2mim.export.filenames import PREDICTIONS
from modeling_a2mim.export.hub import check_files, uploaded_files
from modeling_a2mim.tasks.classification import task as classification
from modeling_a2mim.training.outputs import WRITTEN
from modeling_a2mim.utils.plotting import loss_curve


pytestmark = pytest.mark.usefixtures("no_pictures")
ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
FAST = ["--num_channels", "1", "--use_cpu", "--disable_tqdm", "True", "--per_device_train_batch_size", "8"]


def pretrain(folder, *args, small=SMALL):
    return run_pretraining.main([*small, *FAST, "--max_steps", "2", "--output_dir", str(folder), *map(str, args)])


def finetune(folder, *args):
    fixed = [*FAST, "--max_steps", "2", "--output_dir", str(folder), "--max_eval_samples", "20"]
    return run_finetune.main([*fixed, *map(str, args)])


@pytest.fixture
def images(tmp_path):
    for i in range(8):
        path = tmp_path / "images" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 30, 3), 30 * i, dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(folder, "--max_train_samples", 32)
    return folder


def replaced(**options):
    small = [*SMALL]
    for name, value in options.items():
        small[small.index(f"--{name}") + 1] = value
    return small


# What a user may get wrong, and what must be said. Nothing may be written.


def refuse(tmp_path, message, *args, **options):
    with pytest.raises(ValueError, match=message):
        pretrain(tmp_path / "out", *args, small=replaced(**options))
    assert not (tmp_path / "out").exists()


def test_unknown_architecture(tmp_path):
    message = "^architecture: 'resnet5o' is unknown to timm .*; did you mean resnet50"
    refuse(tmp_path, message, architecture="resnet5o")


@pytest.mark.parametrize("ratio", ["0", "1.5"])
def test_mask_ratio_out_of_range(tmp_path, ratio):
    refuse(tmp_path, rf"^mask_ratio: must be a finite number in \(0, 1\), got {float(ratio)}", "--mask_ratio", ratio)


def test_cell_that_does_not_divide_the_image(tmp_path):
    message = "^mask_patch_size: 5 does not divide the image_size 32; sizes that do: 2, 4, 8, 16"
    refuse(tmp_path, message, mask_patch_size="5")


def test_site_that_does_not_exist(tmp_path):
    refuse(tmp_path, "^mask_site: test_convnext has no module 'stages.7'; for example stages", mask_site="stages.7")
    refuse(tmp_path, "^mask_site: test_convnext has 4 feature maps, there is no index 9", mask_site="9")


def test_missing_folder(tmp_path):
    refuse(tmp_path, "^.*/nowhere: no such file or folder", "--train_dir", tmp_path / "nowhere")


def test_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    refuse(tmp_path, "^.*/empty: no images found; expected", "--train_dir", tmp_path / "empty")


def test_dataset_without_images(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "text.parquet")
    message = "^image_column_name: the dataset has no column of images; its columns are text"
    refuse(tmp_path, message, "--dataset_name", tmp_path / "text.parquet")


def test_resume_from_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    message = "^resume_from_checkpoint: .*/empty holds no checkpoint-N"
    refuse(tmp_path, message, "--resume_from_checkpoint", tmp_path / "empty")


def test_output_folder_of_another_run(tmp_path, pretrained):
    """Which its `checkpoint-2` alone makes it, and its model alone."""
    files = ("model.safetensors", "training.json")
    results = r"results \(model.safetensors, training.json\) of another run; "
    for kept, what in [
        (("checkpoint-2", *files), f"checkpoints and {results}continue it with --resume_from_checkpoint last, name"),
        (("checkpoint-2",), "checkpoints of another run; continue it with --resume_from_checkpoint last, name"),
        (files, f"{results}name another folder, or replace it with --overwrite_output_dir$"),
    ]:
        out = tmp_path / "-".join(kept)
        shutil.copytree(pretrained, out)
        for path in [path for path in out.iterdir() if path.name not in kept]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        for train in (pretrain, finetune):
            with pytest.raises(ValueError, match=f"^output_dir: .* holds {what}"):
                train(out)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.ci
def test_overwriting_leaves_nothing_of_the_other_run(tmp_path, caplog):
    out = tmp_path / "out"
    pretrain(out, "--max_train_samples", 16, "--reconstruction_steps", 2, "--save_steps", 1, "--max_steps", 3)
    (out / "notes.txt").write_text("mine")
    few = ["--max_train_samples", 16, "--max_steps", 1, "--reconstruction_steps", 1]
    with pytest.raises(ValueError, match=r"^overwrite_output_dir: .* give either --overwrite_output_dir or --resume"):
        pretrain(out, *few, "--overwrite_output_dir", "--resume_from_checkpoint", "last")
    assert (out / "checkpoint-3").is_dir()
    caplog.clear()
    pretrain(out, *few, "--overwrite_output_dir")
    (said,) = [message for message in caplog.messages if message.startswith("overwriting ")]
    assert "deleted: checkpoint-1, checkpoint-2, checkpoint-3, README.md, config.json, model.safetensors" in said
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-1"]
    assert [path.name for path in (out / "reconstructions").iterdir()] == ["step-0000001.png"]
    assert json.loads((out / "training.json").read_text())["steps"] == 1
    resumed = pretrain(
        out, *few, "--max_steps", 2, "--resume_from_checkpoint", "last"
    )  # its own checkpoint, of step 1
    assert resumed["train_loss"] > 0
    assert json.loads((out / "training.json").read_text())["steps"] == 2


@pytest.mark.ci
def test_what_runs_write_is_known(tmp_path, pretrained, request):
    """Or it would be left when another run overwrites them."""
    request.getfixturevalue("no_pictures").undo()
    argv = ["--model_name_or_path", pretrained, "--labels_per_class", 1, "--corruptions", "contrast"]
    finetune(tmp_path / "tuned", *argv)
    assert (tmp_path / "tuned" / "worst_examples.png").exists()
    for folder in (pretrained, tmp_path / "tuned"):
        written = {path.name for path in folder.iterdir()} - {"checkpoint-2", "subset.json"}
        assert written <= set(WRITTEN)
    assert {classification.ERROR_TABLE, Path(PREDICTIONS).with_suffix(".txt").name} <= set(WRITTEN)


def test_a_run_does_not_overwrite_what_it_starts_from(tmp_path, pretrained):
    out = shutil.copytree(pretrained, tmp_path / "out")
    for source in (out, out / "pretraining", out / "checkpoint-2"):
        for train in (functools.partial(pretrain, small=[]), finetune):
            with pytest.raises(ValueError, match="^overwrite_output_dir: would delete .*, from which this run starts"):
                train(out, "--overwrite_output_dir", "--model_name_or_path", source)
    assert (out / "model.safetensors").read_bytes() == (pretrained / "model.safetensors").read_bytes()


@pytest.mark.ci
def test_what_trains_nothing_overwrites_nothing(tmp_path, pretrained):
    out = shutil.copytree(pretrained, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    finetune(out, "--model_name_or_path", out, "--knn", "--labels_per_class", 2)
    finetune(tmp_path / "classifier", "--model_name_or_path", out, "--labels_per_class", 1)
    metrics = finetune(tmp_path / "classifier", "--model_name_or_path", tmp_path / "classifier", "--eval_only")
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert (out / "model.safetensors").read_bytes() == before
    # An encoder's folder does not become a classifier's with the encoder's pre-training beside it.
    finetune(out, *SMALL[:4], "--labels_per_class", 1, "--overwrite_output_dir")
    assert not (out / "pretraining").exists()
    assert not (out / "results.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model_args", "{depth"], "^model_args: expected a JSON object"),
        (["--model_args", '{"nonsense": 1}'], "^model_args: timm cannot build test_convnext"),
        (["--crop_scale", "0.9", "0.5"], "^crop_scale: expected 0 < smallest <= largest <= 1"),
        (["--mask_gamma_init", "big"], "^mask_gamma_init: expected a number or none"),
        (["--spatial_loss", "l2"], "^spatial_loss: must be one of l1, focal_l1"),
        (["--max_train_samples", "0"], "^max_train_samples: must be at least 1"),
        (["--dataset_name", "a", "--train_dir", "b"], "^dataset_name: give either"),
        (["--max_skipped_ratio", "1.5"], r"^max_skipped_ratio: must be in \[0, 1\], got 1.5"),
        (["--read_retries", "-1"], "^read_retries: must be at least 0"),
        (["--dataset_weights", "1", "2"], "^dataset_weights: there are 1 sources, but 2 weights"),
        (["--model_name_or_path", "./nowhere"], "^model_name_or_path: there is no folder"),
        (["--image_mean", "118.3"], r"^image_mean: is of pixels in \[0, 1\], got .*, divide by 255: 0.4639$"),
        (["--hflip", "1.5"], r"^hflip: must be in \[0, 1\], got 1.5"),
        (["--vflip", "-0.1"], r"^vflip: must be in \[0, 1\], got -0.1"),
        (["--grayscale", "nan"], r"^grayscale: must be in \[0, 1\], got nan"),
        (["--grayscale", "0.5"], "^grayscale: is for images of 3 channels, this model takes 1"),
        (["--color_jitter", "-1"], "^color_jitter: must be a finite number of at least 0, got -1"),
        (["--color_jitter", "inf"], "^color_jitter: must be a finite number of at least 0, got inf"),
    ],
)
def test_other_mistakes(tmp_path, args, message):
    refuse(tmp_path, message, *args)


def test_the_command_line_ends_without_a_traceback(tmp_path, monkeypatch, capsys):
    command = [str(ROOT / "run_pretraining.py"), *SMALL, "--mask_ratio", "2", "--output_dir", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(command[0], run_name="__main__")
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: mask_ratio: must be")


# Runs from end to end.


def test_pretraining_writes_a_usable_folder(pretrained):
    names = {p.name for p in pretrained.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "pretraining", "reconstruction.png"} <= names
    config = json.loads((pretrained / "pretraining" / "config.json").read_text())
    assert (config["mask_site"], config["mask_patch_size"], config["num_channels"]) == (-3, 8, 1)


def test_pretraining_on_a_folder_of_images(images, tmp_path):
    common = ["--train_dir", images, "--validation_dir", images]
    metrics = pretrain(tmp_path / "out", *common, small=replaced(image_size="64"))
    assert metrics["eval_loss"] > 0
    streamed = pretrain(tmp_path / "streamed", "--train_dir", images, "--streaming")
    assert streamed["train_loss"] > 0


def test_augmentation_goes_into_the_card(images, pretrained, tmp_path):
    assert "| augmentation | hflip 0.5 |" in (pretrained / "README.md").read_text()
    flags = ["--hflip", 0, "--vflip", 0.5, "--rotate90", "--color_jitter", 0.4, "--grayscale", 0.25]
    pretrain(tmp_path / "out", "--num_channels", 3, "--train_dir", images, *flags)
    said = "vflip 0.5, rotate90, color_jitter 0.4, grayscale 0.25"
    assert json.loads((tmp_path / "out" / "training.json").read_text())["augmentation"] == said
    assert f"| augmentation | {said} |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.ci
def test_pretraining_continues_from_an_export(pretrained, tmp_path):
    """And says so: the passes of a run are not those of its model."""
    folders = [pretrained, tmp_path / "second", tmp_path / "third"]
    for source, out, steps in ((folders[0], folders[1], 3), (folders[1], folders[2], 4)):
        metrics = pretrain(
            out, "--model_name_or_path", source, "--max_train_samples", 16, "--max_steps", steps, small=[]
        )
        assert metrics["train_loss"] > 0
    records = [json.loads((folder / "training.json").read_text()) for folder in folders]
    assert "earlier" not in records[0]
    rate = records[0]["learning_rate"]
    common = {
        "task": "masked image modelling",
        "method": "A2MIM",
        "data": "the bundled sample of Fashion-MNIST",
        "total_batch_size": 8,
    }
    runs = [
        {**common, "steps": 2, "epochs": 0.5, "images": 32, "learning_rate": rate},
        {**common, "steps": 3, "epochs": 1.5, "images": 16, "learning_rate": rate},
    ]
    assert records[1]["earlier"] == runs[:1]
    assert records[2]["earlier"] == runs
    card = (folders[2] / "README.md").read_text()
    assert "| masked image modelling, in all | 9 steps, 4.0 passes |" in card
    files = uploaded_files(folders[2])
    check_files(folders[2], files)
    assert str(tmp_path) not in card + json.dumps(records)
    finetune(tmp_path / "tuned", "--model_name_or_path", folders[1], "--labels_per_class", 1)
    assert json.loads((tmp_path / "tuned" / "training.json").read_text())["earlier"] == runs
    (folders[1] / "training.json").write_text("[]")  # of another program
    few = ["--max_train_samples", 16, "--overwrite_output_dir"]
    pretrain(folders[2], "--model_name_or_path", folders[1], *few, small=[])
    assert json.loads((folders[2] / "training.json").read_text())["earlier"] == [{}]
    assert "| earlier run | not recorded |" in (folders[2] / "README.md").read_text()


def test_a_run_of_one_step_has_a_curve(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_a2mim.export.folder.loss_curve", loss_curve)
    pretrain(tmp_path / "out", "--max_train_samples", 8, "--max_steps", 1, "--preset", "simmim")
    picture = np.asarray(Image.open(tmp_path / "out" / "loss_curve.png").convert("RGB")).astype(int)
    blue = (np.abs(picture - (31, 119, 180)) < 10).all(-1)  # matplotlib's first colour
    assert blue.sum() > 60  # the marker in the legend and the one that is drawn
    card = (tmp_path / "out" / "README.md").read_text()
    assert "![Loss by step](loss_curve.png)" in card
    assert json.loads((tmp_path / "out" / "training.json").read_text())["method"] == "SimMIM"
    assert "# test_convnext, pre-trained with SimMIM\n" in card
    assert "@inproceedings{xie2022simmim," in card
    assert "li2023a2mim" not in card


def test_the_arguments_that_were_given(tmp_path, caplog):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("arguments: {learning_rate: 0.5, weight_decay: 0.05, mask_ratio: 0.7}")
    secret = "hf_plantedSecret0123456789"
    argv = ["--recipe", recipe, "--image_size", 64, "--hub_token", secret, "--weight_decay", 0.05, "--mask_ratio", 0.5]
    argv += ["--run_name", f"a {secret}", "--num_channels", 1, "--save_strategy", "steps", "--use_cpu"]
    argv += ["--output_dir", tmp_path / "out", "--max_steps", 1, "--train_dir", "https://me:pw@host/x"]
    with caplog.at_level("INFO"):
        types = (PreTrainingModelArguments, DataArguments, A2MIMTrainingArguments)
        parse(types, [*map(str, argv)], "run_pretraining.py")
    (line,) = [message for message in caplog.messages if message.startswith("arguments: ")]
    assert line == (
        "arguments: image_size=64, num_channels=1, mask_ratio=0.5, train_dir='https://***@host/x', "
        f"output_dir={tmp_path / 'out'}, max_steps=1, learning_rate=0.5, weight_decay=0.05, run_name='a ***', "
        f"use_cpu=True, recipe={recipe}"
    )
    assert secret not in line


@pytest.mark.ci
def test_pretraining_with_the_multiscale_decoder(tmp_path):
    pretrain(tmp_path / "first", "--decoder", "multiscale", "--max_train_samples", 16)
    pretrain(tmp_path / "out", "--model_name_or_path", tmp_path / "first", "--max_train_samples", 16, small=[])
    for folder in ("first", "out"):
        config = json.loads((tmp_path / folder / "pretraining" / "config.json").read_text())
        assert config["decoder"] == "multiscale"
        assert (tmp_path / folder / "reconstruction.png").is_file()


@pytest.mark.parametrize("mode", ["pretrained", "scratch", "probe"])
def test_fine_tuning(pretrained, tmp_path, mode):
    source = ["--model_name_or_path", pretrained] if mode != "scratch" else SMALL[:4]
    probe = ["--linear_probe"] if mode == "probe" else []
    metrics = finetune(tmp_path / "out", *source, *probe, "--labels_per_class", 3)
    assert 0 <= metrics["eval_accuracy"] <= 1
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label[0] == "T-shirt/top"
    assert (tmp_path / "out" / "pretraining").exists() == (mode != "scratch")
    start = AutoModelForImageClassification.from_pretrained(pretrained, num_labels=10).timm_model
    moved = [
        name
        for name, value in model.timm_model.named_parameters()
        if "head.fc" not in name and not value.equal(start.get_parameter(name))
    ]
    assert bool(moved) == (mode != "probe")
    card = (tmp_path / "out" / "README.md").read_text()
    pretrained_by = (
        " an encoder pre-trained by masked image modelling ([A2MIM](https://arxiv.org/abs/2205.13943)), with"
    )
    made = {"scratch": ", trained from scratch, with", "probe": f", a linear probe of{pretrained_by}"}
    assert made.get(mode, f", fine-tuned from{pretrained_by}") in card
    assert ("A2MIM" in card, "## Citation" in card) == ((mode != "scratch",) * 2)


def test_fine_tuning_at_another_size(pretrained, tmp_path):
    finetune(tmp_path / "out", "--model_name_or_path", pretrained, "--image_size", 45, 35, "--labels_per_class", 1)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["input_size"] == [1, 45, 35]


def test_fine_tuning_on_folders_of_classes(images, pretrained, tmp_path):
    metrics = finetune(
        tmp_path / "out", "--model_name_or_path", pretrained, "--train_dir", images, "--validation_dir", images
    )
    assert "eval_accuracy" in metrics
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == ["cat", "dog"]


def test_labels_as_words(images, pretrained, tmp_path):
    rows = datasets.load_dataset("imagefolder", data_dir=str(images), split="train")
    words = [rows.features["label"].names[i] for i in rows["label"]]
    rows = rows.remove_columns("label").add_column("label", words)
    rows.to_parquet(tmp_path / "words.parquet")
    finetune(tmp_path / "out", "--model_name_or_path", pretrained, "--dataset_name", tmp_path / "words.parquet")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "^model_name_or_path: give either it or"),
        (["--model_name_or_path", "./nowhere"], "^model_name_or_path: there is no folder"),
        ([*SMALL[:4], "--image_std", "59.7"], r"^image_std: is of pixels in .*, divide by 255: 0.2341$"),
        (["--task", "semantic-segmentation", "--image_std", "0"], r"^image_std: must be positive, got \[0.0\]"),
        (["--task", "object-detection", "--image_mean", "124"], "^image_mean: .* divide by 255: 0.4863$"),
        (
            [*SMALL[:4], "--labels_per_class", "5000"],
            "^labels_per_class: class T-shirt/top has only 1000 images, not 5000",
        ),
        ([*SMALL[:4], "--labels_per_class", "5", "--streaming"], "^labels_per_class: a stream cannot be drawn from"),
        ([*SMALL[:4], "--label_column_name", "image"], "^label_column_name: column 'image' holds Image"),
    ],
)
def test_fine_tuning_mistakes(tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        finetune(tmp_path / "out", *args)
    assert not (tmp_path / "out").exists()


@pytest.mark.ci
def test_what_was_given_of_a_model_that_continues(pretrained, tmp_path, caplog):
    """Takes effect, from flags, recipe and preset, and is told; what its weights do not fit is refused."""
    source = ["--model_name_or_path", pretrained]
    message = r"^{}: the weights in --model_name_or_path are for {}, not {}; leave --{} out"
    for flag, value, name, theirs, ours in (
        ("--architecture", "test_resnet", "architecture", "test_convnext", "test_resnet"),
        ("--recipe", "resnet50_a2mim_100ep", "architecture", "test_convnext", "resnet50"),
        ("--decoder", "multiscale", "decoder", "linear", "multiscale"),
        ("--recipe", "small_data", "decoder", "linear", "multiscale"),
        ("--num_channels", 3, "num_channels", 1, 3),
    ):
        with pytest.raises(ValueError, match=message.format(name, theirs, ours, name)):
            pretrain(tmp_path / "out", *source, flag, value, small=[])
    for args, error in (
        (("--model_args", '{"dims": [24, 32, 48, 72]}'), "^model_args: the weights .* do not fit test_convnext with"),
        (("--image_size", 36), "^mask_patch_size: 8 does not divide the image_size 36"),
    ):
        with pytest.raises(ValueError, match=error):
            pretrain(tmp_path / "out", *source, *args, small=[])
    assert not (tmp_path / "out").exists()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("arguments: {mask_ratio: 0.75, crop_pct: 0.5}")
    flags = ["--recipe", recipe, "--preset", "vit", "--image_size", 64, "--mask_patch_size", 16, "--crop_pct", 0.9]
    pretrain(tmp_path / "out", *source, *flags, "--max_train_samples", 8, "--max_steps", 1, small=[])
    config = json.loads((tmp_path / "out" / "pretraining" / "config.json").read_text())
    changes = {  # the convnext was made with what `resnet` has
        "mask_site": (-3, None),
        "mask_gamma_init": (1e-6, None),
        "spatial_loss": ("focal_l1", "l1"),
        "frequency_loss_weight": (0.5, 0.1),
        "frequency_unmasked_weight": (1e-3, 0.0),
        "image_size": (32, 64),
        "mask_ratio": (0.6, 0.75),
        "mask_patch_size": (8, 16),
        "crop_pct": (0.95, 0.9),
    }
    assert {name: config[name] for name in changes} == {name: new for name, (_, new) in changes.items()}
    changed = json.loads((tmp_path / "out" / "training.json").read_text())["changed"]
    assert set(changed) == {
        *(f"{name}: {old} -> {new}" for name, (old, new) in changes.items() if name != "mask_site"),
        "mask_site: stages.1 -> stages.2",
        "start anew: a2mim.mask_token.token",
    }
    assert set(changed) <= {record.getMessage() for record in caplog.records}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| 12 of 16 cells of 16 x 16 px, filled with: mean |" in card
    assert f"| changed since | {'; '.join(changed)} |" in card
