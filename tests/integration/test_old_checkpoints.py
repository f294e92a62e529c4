"""What version 46e3540 wrote (`fixtures/46e3540`, whose README.md says how): exports load and give what they gave
then, and checkpoints are resumed to the end that they had then."""

import importlib.metadata
import json
import runpy
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification

import run_finetune
import run_pretraining
from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.commands.push import main as push
from modeling_a2mim.models.linear_probe import LinearProbe


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
OLD = Path(__file__).resolve().parents[1] / "fixtures" / "46e3540"
RECORDER = runpy.run_path(str(OLD / "record.py"))
OUTPUTS = load_file(OLD / "expected.safetensors")
EXPECTED = json.loads((OLD / "expected.json").read_text())
# Other instruction sets round differently: with none of AVX, outputs are off by 5e-7 of their size and the weights at
# the end of a run by 5e-7. Another crop, order or rate changes weights by 1e-4 and more.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
CLOSE_WEIGHTS = {"rtol": 1e-4, "atol": 1e-5}

RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_type": "deep", "stem_width": 4, "output_stride": 8}
RESNET |= {"zero_init_last": False}
FAST = ["--learning_rate", "1e-3", "--logging_steps", "1", "--use_cpu", "--disable_tqdm", "True"]
FAST += ["--per_device_train_batch_size", "4", "--num_train_epochs", "2"]
PRETRAIN = ["--architecture", "resnet18", "--model_args", json.dumps(RESNET), "--image_size", "32", *FAST]
PRETRAIN += ["--mask_patch_size", "8", "--train_dir", "shards", "--streaming", "--save_steps", "5"]
TUNE = ["--model_name_or_path", "resnet", "--train_dir", "images", "--validation_dir", "images", *FAST]
TUNE += ["--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", "5"]
TUNE += ["--mixup", "0.8", "--model_ema_decay", "0.5"]
DEFAULTS_THEN = ["--crop_scale", "0.35", "1"]  # of fine-tuning; the default is another one now
JUDGE = ["--train_dir", "images", "--validation_dir", "images", "--use_cpu", "--output_dir", "judged"]


@pytest.fixture(scope="module")
def found():
    return RECORDER["outputs"](OLD, LinearProbe)


@pytest.fixture(scope="module")
def exact():
    """Whether this machine computes as the one of then: the same torch, and an encoder, of timm alone, that gives the
    same bits."""
    versions = json.loads((OLD / "resnet" / "training.json").read_text())["versions"]
    with torch.no_grad():
        features = AutoModel.from_pretrained(OLD / "resnet")(RECORDER["images"]()).last_hidden_state
    same = torch.equal(features, OUTPUTS["resnet.last_hidden_state"])
    return same and versions["torch"] == importlib.metadata.version("torch")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of all of it, which is the working directory."""
    folder = Path(shutil.copytree(OLD, tmp_path / "old"))
    monkeypatch.chdir(folder)
    return folder


# Exports


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_outputs(found, exact, name):
    if exact:
        assert torch.equal(found[name], OUTPUTS[name])
    torch.testing.assert_close(found[name], OUTPUTS[name], **CLOSE)


def test_nothing_else_is_recorded(found):
    assert found.keys() == OUTPUTS.keys()


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_encoders_load_with_timm(name):
    encoder = timm.create_model(f"local-dir:{OLD / name}", pretrained=True).eval()
    with torch.no_grad():
        features = encoder(RECORDER["images"]())
    torch.testing.assert_close(features, OUTPUTS[f"{name}.pooler_output"], **CLOSE)


@pytest.mark.parametrize("name", ["classifier", "probe"])
def test_classes_have_their_names(name):
    config = AutoModelForImageClassification.from_pretrained(OLD / name).config
    assert config.id2label == {0: "discs", 1: "stripes"}


@pytest.mark.parametrize(
    ("run", "kind"),
    [("pretraining-run", A2MIMForPreTraining), ("finetuning-run", A2MIMForImageClassification)],
)
def test_checkpoints_are_models(run, kind):
    folder = OLD / run / "checkpoint-5"
    loaded, stored = kind.from_pretrained(folder).state_dict(), load_file(folder / "model.safetensors")
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("name", ["classifier", "probe", "inner-probe"])
def test_classifiers_are_evaluated(copy, name):
    metrics = run_finetune.main([*JUDGE, "--model_name_or_path", name, "--eval_only"])
    then = EXPECTED["evaluation"][name]
    assert metrics["eval_accuracy"] == then["eval_accuracy"]
    assert metrics["eval_loss"] == pytest.approx(then["eval_loss"], rel=1e-5)


def test_encoders_are_found_in_all_of_them(copy):
    """Whatever model they are part of: of two that were frozen, k-NN and logistic regression say the same."""
    folders = ["resnet", "probe", "inner-probe", "vit", "classifier", "vit-segmenter", "detector"]
    folders += ["pretraining-run/checkpoint-5", "finetuning-run/checkpoint-5"]
    options = ["--knn", "--knn_neighbours", "2", "--probe_strength", "1"]
    results = [run_finetune.main([*JUDGE, "--model_name_or_path", name, *options]) for name in folders]
    assert results[1] == results[2] == results[0]
    assert all(0 <= result["k-NN: accuracy"] <= 1 for result in results)


@pytest.mark.parametrize(
    ("name", "pretraining"),
    [
        ("resnet", True),
        ("classifier", True),
        ("vit-segmenter", False),
        ("detector", False),
        ("pretraining-run/checkpoint-5", True),
    ],
)
def test_what_would_be_published(copy, name, pretraining, capsys):
    """Files that name a path of a machine would be refused."""
    push([name, "org/name", "--dry_run"])
    listed = capsys.readouterr().out
    assert " model.safetensors\n" in listed
    assert (" pretraining/model.safetensors\n" in listed) == pretraining


# Runs that go on


def test_pretraining_goes_on_from_an_export(copy):
    metrics = run_pretraining.main([*PRETRAIN[4:], "--model_name_or_path", "resnet", "--output_dir", "new"])
    assert metrics["train_loss"] > 0
    record = json.loads((copy / "new" / "training.json").read_text())
    assert [run["steps"] for run in record["earlier"]] == [8]
    before, after = (load_file(copy / name / "pretraining" / "model.safetensors") for name in ("resnet", "new"))
    assert before.keys() == after.keys()
    moved = max((after[name] - before[name]).abs().max() for name in before if name.endswith("weight"))
    assert 0 < moved < 0.02  # in 8 steps of at most 1e-3


def check_end(folder, run, weights, then, exact=False):
    """That a run made the steps of then, and ended with the weights of then. Not exact in pre-training: its losses
    were sums over masked cells then; sums over images round otherwise (2e-7 of their size)."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    log, expected = [entry for entry in log if "loss" in entry], EXPECTED["log"][run]
    assert [entry["step"] for entry in log] == list(range(1, 9))
    for name in ("loss", "learning_rate", "grad_norm"):
        values, values_then = ([entry[name] for entry in entries] for entries in (log, expected))
        assert values == (values_then if exact else pytest.approx(values_then, rel=1e-4)), name
    found, expected = load_file(folder / weights), load_file(OLD / then / weights)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if exact:
            assert torch.equal(found[name], tensor), name
        torch.testing.assert_close(found[name], tensor, **CLOSE_WEIGHTS)


def test_pretraining_is_resumed(copy, caplog):
    """Streamed, in the middle of a pass whose last batch is cut as it was then."""
    run_pretraining.main([*PRETRAIN, "--output_dir", "pretraining-run", "--resume_from_checkpoint", "last"])
    assert "checkpoint-5 is of an older version, which kept no settings of training" in caplog.text
    check_end(copy / "pretraining-run", "pretraining-run", "pretraining/model.safetensors", "resnet")
    names = {path.name for path in (copy / "pretraining-run").glob("checkpoint-*")}
    assert names == {"checkpoint-5", "checkpoint-8"}


def test_the_rate_goes_on_as_it_was(copy):
    """Also where the rate of today's default is another one."""
    argv = [argument for argument in PRETRAIN if argument not in FAST[:2]]
    run_pretraining.main([*argv, "--output_dir", "run", "--resume_from_checkpoint", "pretraining-run/checkpoint-5"])
    check_end(copy / "run", "pretraining-run", "pretraining/model.safetensors", "resnet")


def test_fine_tuning_is_resumed(copy, exact, caplog):
    """With mixed images and averaged weights; the data named by another path than then."""
    argv = [str(copy / argument) if argument == "images" else argument for argument in TUNE]
    argv += [*DEFAULTS_THEN, "--output_dir", "finetuning-run", "--resume_from_checkpoint", "last"]
    metrics = run_finetune.main(argv)
    assert "checkpoint-5 is of an older version, which kept no settings of training" in caplog.text
    check_end(copy / "finetuning-run", "finetuning-run", "model.safetensors", "classifier", exact)
    assert metrics["eval_loss"] == pytest.approx(EXPECTED["evaluation"]["classifier"]["eval_loss"], rel=1e-5)
