"""What a command line gives, and what of it is shown."""

import logging
import sys

import pytest
import transformers
import yaml
from safetensors.torch import load_file
from transformers import HfArgumentParser

import run_pretraining
from modeling_a2mim.arguments.dense import DenseArguments
from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.commands.parser import given_names, given_values, parse, peek, run_as_command, shown
from modeling_a2mim.commands.pretrain import TYPES, parse_arguments
from modeling_a2mim.training.trainer import A2MIMTrainer


TOKEN = "hf_" + "x" * 20


@pytest.fixture(scope="module")
def parser():
    return HfArgumentParser((DenseArguments, A2MIMTrainingArguments), allow_abbrev=False)


def test_what_is_given(parser):
    argv = ["--output_dir", "out", "--seed", "42", "--crop_scale", "0.5", "1", "--hub_token", TOKEN]
    assert given_names(parser, argv) == {"output_dir", "seed", "crop_scale", "hub_token"}
    assert given_values(parser, argv) == {"crop_scale": [0.5, 1.0], "output_dir": "out"}  # the seed is the default
    assert shown(given_values(parser, argv)) == "crop_scale=0.5 1.0, output_dir=out"
    assert shown(given_values(parser, [])) == "none that is not the default"


def test_secrets_in_other_arguments(parser):
    argv = ["--dataset_name", f"https://user:{TOKEN}@host/data", "--run_name", TOKEN]
    told = shown(given_values(parser, argv))
    assert TOKEN not in told
    assert "https://***@host/data" in told


def test_what_is_known_before_the_rest():
    found = peek(["--max_steps", "1", "--recipe", "small_data", "--output_dir=out", "--tas", "x"])
    assert (found.recipe, found.output_dir, found.task) == ("small_data", "out", None)


def test_errors_of_workers_are_told_in_a_line(monkeypatch, capsys):
    def main(argv):
        raise ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback ...\nValueError: crop: wrong\n")

    monkeypatch.setattr(sys, "argv", ["run"])
    with pytest.raises(SystemExit) as stopped:
        run_as_command(main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: crop: wrong\n"
    monkeypatch.setattr(transformers.utils.logging, "get_verbosity", lambda: logging.DEBUG)
    with pytest.raises(ValueError, match="^Caught"):
        run_as_command(main)


SMALL = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
FAST = ["--use_cpu", "--per_device_train_batch_size", "4", "--disable_tqdm", "True"]


def test_a_run_can_be_repeated(folder, tmp_path, monkeypatch):
    """What a run leaves gives the same weights, whatever flags, recipe and file it was made of."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    own = tmp_path / "own.yaml"
    own.write_text("recipe: small_data\nmax_steps: 3\nlearning_rate: 1.0e-3\nmodel_args: {drop_path_rate: 0.1}\n")
    argv = [*SMALL, *FAST, "--config", str(own), "--train_dir", str(folder), "--hub_token", TOKEN, "--max_steps", "2"]
    first = run_pretraining.main([*argv, "--crop_scale", "0.5", "1", "--output_dir", str(tmp_path / "a")])
    text = (tmp_path / "a" / "run.yaml").read_text()
    assert TOKEN not in text
    kept = yaml.safe_load(text)
    assert kept["recipe"] == "small_data"
    assert (kept["max_steps"], kept["learning_rate"], kept["crop_scale"]) == (2, 1e-3, [0.5, 1.0])
    assert kept["decoder"] == "multiscale"  # the recipe's, should it change one day
    assert "config" not in kept
    again = run_pretraining.main(["--config", str(tmp_path / "a" / "run.yaml"), "--output_dir", str(tmp_path / "b")])
    assert again["train_loss"] == first["train_loss"]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("a", "b")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert {**yaml.safe_load((tmp_path / "b" / "run.yaml").read_text()), "output_dir": None} == {
        **kept,
        "output_dir": None,
    }


def test_a_value_of_a_recipe_that_is_set_back_to_the_default_is_kept(folder, tmp_path):
    """It is the default, but not what the recipe would give."""
    argv = [
        *SMALL,
        *FAST,
        "--recipe",
        "adapt_cnn",
        "--freeze_encoder_steps",
        "0",
        "--run_name=--x",
        "--max_steps",
        "1",
    ]
    run_pretraining.main([*argv, "--train_dir", str(folder), "--output_dir", str(tmp_path / "a")])
    kept = yaml.safe_load((tmp_path / "a" / "run.yaml").read_text())
    assert kept["freeze_encoder_steps"] == 0
    again = ["--config", str(tmp_path / "a" / "run.yaml"), "--output_dir", str(tmp_path / "b")]
    found = parse(TYPES, again, "run_pretraining.py")
    assert (found.training.freeze_encoder_steps, found.training.run_name) == (0, "--x")


def test_a_rate_for_256_images_counts_beside_a_recipe(tmp_path, caplog):
    """Whose own rate would count before it."""
    argv = ["--recipe", "adapt_cnn", "--output_dir", str(tmp_path), "--per_device_train_batch_size", "128"]
    for more, rate in (([], 1e-3), (["--base_learning_rate", "1e-4"], 5e-5), (["--base-learning-rate=1e-4"], 5e-5)):
        args = parse(TYPES, [*argv, *more], "run_pretraining.py").training
        assert args.learning_rate == pytest.approx(rate * args.gradient_accumulation_steps)
    assert "no effect" not in caplog.text


def test_going_on_with_other_settings_names_the_file_that_has_those_of_the_run(folder, tmp_path):
    images, out = folder.rename(tmp_path / "Köln"), tmp_path / "a b"
    argv = [*SMALL, *FAST, "--train_dir", str(images), "--output_dir", str(out)]
    run_pretraining.main([*argv, "--max_steps", "1", "--mask_ratio", "0.5"])
    assert "Köln" in (out / "run.yaml").read_text(encoding="utf-8")
    resume = ["--max_steps", "2", "--resume_from_checkpoint", "last"]
    with pytest.raises(
        ValueError, match=r"mask_ratio 0.5, this run has 0.6; .* \(--config '.*/a b/run.yaml' has them"
    ):
        run_pretraining.main([*argv, *resume])
    run_pretraining.main(["--config", str(out / "run.yaml"), *resume])
    assert (out / "checkpoint-2").is_dir()


def test_a_run_that_fails_replaces_no_file_of_another(folder, tmp_path, monkeypatch):
    argv = [*SMALL, *FAST, "--max_steps", "1", "--train_dir", str(folder), "--output_dir", str(tmp_path / "a")]
    run_pretraining.main([*argv, "--weight_decay", "0.01"])
    before = (tmp_path / "a" / "run.yaml").read_text()

    def fail(self):
        raise ValueError("optim: cannot be made")

    monkeypatch.setattr(A2MIMTrainer, "create_optimizer", fail)
    with pytest.raises(ValueError, match="^optim: cannot be made"):
        run_pretraining.main([*argv, "--overwrite_output_dir"])
    assert (tmp_path / "a" / "run.yaml").read_text() == before
    assert (tmp_path / "a" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("per_device_train_batch_size", "0"), ("max_steps", "0"), ("learning_rate", "nan")),
        *(("weight_decay", "-0.1"), ("logging_steps", "-1"), ("save_steps", "0"), ("adam_beta1", "2")),
        *(("dataloader_num_workers", "-1"), ("max_grad_norm", "-1"), ("crop_scale", "0.5"), ("train_dir", "")),
        *(("seed", "-1"), ("output_dir", "")),
    ],
)
def test_numbers_that_cannot_be(tmp_path, flag, value):
    argv = [*SMALL, *FAST, "--output_dir", str(tmp_path / "out"), f"--{flag}", value]
    with pytest.raises(ValueError, match=f"^{flag}: "):
        run_pretraining.main(argv)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_stepz: 1", "^config: .*own.yaml: there is no argument --max_stepz; did you mean --max_steps"),
        ("max_steps:", "^config: .*own.yaml: --max_steps has no value"),
        ("- max_steps", "^config: .*own.yaml has no lines `flag: value`"),
        ("a: [", "^config: .*own.yaml is no YAML"),
        ("max_steps: 2\nseed: 1\nmax_steps: 3", "^config: .*own.yaml is no YAML: max_steps is there twice"),
        ("config: other.yaml", "^config: .*own.yaml names another file of flags, other.yaml; put all into one"),
        (None, "^config: .*own.yaml cannot be read: No such file"),
    ],
)
def test_files_of_flags_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        run_pretraining.main(["--config", str(path), *SMALL, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_words_and_numbers_in_files_of_flags(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("eval_strategy: no\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-5}\n")
    args = parse_arguments(["--config", str(path), *SMALL, "--output_dir", str(tmp_path / "out")]).training
    assert args.eval_strategy == "no"
    assert args.lr_scheduler_kwargs == {"min_lr": 1e-5}


def test_flags_that_are_given_twice(folder, tmp_path, caplog):
    argv, images = [*SMALL, "--output_dir", str(tmp_path / "out")], ["--train_dir", str(folder)]
    with pytest.raises(ValueError, match="^train_dir: --train_dir is given 2 times; give all of its values after one"):
        parse_arguments([*argv, *images, *images])
    for name in ("a", "b"):
        (tmp_path / name).write_text("max_steps: 1\n")
    with pytest.raises(ValueError, match="^config: --config is given 2 times; give one"):
        parse_arguments([*argv, "--config", str(tmp_path / "a"), "--config", str(tmp_path / "b")])
    # A file and the command line may both have one, which is what a file is for.
    assert parse_arguments([*argv, "--config", str(tmp_path / "a"), "--max_steps=2"]).training.max_steps == 2
    assert "times" not in caplog.text
    assert parse_arguments([*argv, "--max_steps", "1", "--max_steps=2"]).training.max_steps == 2
    assert "--max_steps is given 2 times; the last one counts" in caplog.text


def test_unknown_flags(tmp_path):
    out = ["--output_dir", str(tmp_path / "out")]
    for argv, message in (
        (["--archtecture", "resnet18"], "^--archtecture: there is no such argument; did you mean --architecture"),
        (["--zzz=1"], "^--zzz: there is no such argument; --help lists all"),
        (["resnet18"], "^resnet18: no argument takes this"),
        (["--max_steps", "x"], "^argument --max_steps.*: invalid int value"),
    ):
        with pytest.raises(ValueError, match=message):
            run_pretraining.main([*argv, *out])
