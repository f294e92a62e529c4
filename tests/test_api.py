"""The commands from Python: the same weights as by the command line, and errors instead of the end of the program."""

from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from safetensors.torch import load_file

import modeling_a2mim
import run_pretraining
from modeling_a2mim import embed, finetune, pretrain


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SMALL = {"architecture": "test_convnext", "image_size": [32, 32], "mask_patch_size": 8, "mask_site": -3}
FAST = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}


@pytest.mark.ci
def test_as_the_command(folder, tmp_path):
    trainer, metrics = pretrain(folder, output_dir=tmp_path / "call", color_jitter=0.2, **SMALL, **FAST)
    assert trainer.model.config.input_size == (32, 32)
    argv = ["--architecture", "test_convnext", "--image_size", "32", "32", "--mask_patch_size", "8"]
    argv += ["--mask_site", "-3", "--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu"]
    argv += ["--color_jitter", "0.2", "--disable_tqdm", "True", "--train_dir", str(folder)]
    again = run_pretraining.main([*argv, "--output_dir", str(tmp_path / "command")])
    assert metrics["train_loss"] == again["train_loss"]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("call", "command"))
    assert all((one[name] == other[name]).all() for name in one)

    found = finetune(
        folder, output_dir=tmp_path / "classifier", model_name_or_path=tmp_path / "call", validation_dir=folder, **FAST
    )
    assert found.trainer.model.config.num_labels == 2
    judged = finetune(
        output_dir=tmp_path / "classifier", model_name_or_path=tmp_path / "classifier", validation_dir=folder,
        eval_only=True, use_cpu=True,
    )  # fmt: skip
    assert judged.trainer is None
    assert judged.metrics["eval_accuracy"] == found.metrics["eval_accuracy"]
    found = embed(tmp_path / "call", folder, normalize=True, device="cpu")
    assert found.vectors.shape == (len(found.files), found.metadata["dim"])
    assert sorted(found.files)[0] == "cats/test_1.png"
    kept = yaml.safe_load(Path(tmp_path, "classifier", "run.yaml").read_text())
    assert kept["max_steps"] == 2  # that of the evaluation is beside it
    assert Path(tmp_path, "classifier", "evaluation.yaml").is_file()


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (None, {"learning_rat": 1e-3}, "^--learning_rat: there is no such argument; did you mean --learning_rate"),
        (None, {"eval_steps": "many"}, "^argument --eval_steps.*: invalid float value: 'many'"),
        (Dataset.from_dict({"a": [1]}), {}, "^data: expected a folder.* a dataset in memory goes to the trainer"),
        ([Path(__file__).parent, "missing/folder"], {}, "^data: missing/folder is no file or folder, unlike"),
        ("missing/folder/x", {}, "missing/folder/x"),
        ([], {}, "^data: expected a folder"),
        (3, {}, "^data: expected a folder"),
        ("-x", {}, "^-x: neither a local folder nor a dataset that the Hub gives: "),
        (Path(__file__).parent, {"train_dir": "x"}, "^train_dir: give either it or data"),
    ],
)
def test_what_is_wrong(data, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(data, output_dir=tmp_path / "out", **SMALL, **FAST, **arguments)
    assert not (tmp_path / "out").exists()


def test_arguments_of_embed(folder, tmp_path):
    for arguments, message in (
        ({"layers": "all"}, "^arguments: embed has no 'layers'; it has batch_size, "),
        ({"dtype": "int8"}, "^dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"batch_size": 0}, "^batch_size: must be at least 1, got 0"),
        ({"layer": "first"}, "^layer: .*'first'"),
        ({"probe_layers": "first"}, "^probe_layers: .*'first'"),
        ({"neighbors": 2}, "^out: neighbors writes a table"),
        ({"duplicates": 0.9}, "^out: duplicates writes a table"),
        ({"batch_size": "8"}, "^batch_size: expected int, got '8'"),
        ({"normalize": "no"}, "^normalize: expected bool, got 'no'"),
    ):
        with pytest.raises(ValueError, match=message):
            embed(tmp_path, folder, device="cpu", **arguments)
    with pytest.raises(ValueError, match="^images: expected a folder"):
        embed(tmp_path, [])


def test_public_names():
    assert {"pretrain", "finetune", "embed"} < set(modeling_a2mim.__all__)
