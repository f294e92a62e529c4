"""Every field of transformers' TrainingArguments has its effect, is refused, or is said to have no meaning."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

import run_finetune
import run_pretraining
from modeling_a2mim.arguments.trainer_fields import (
    REFUSED,
    SUPPORTED,
    WITHOUT_MEANING,
    check_fields,
    idle_arguments,
    without_effect,
)
from modeling_a2mim.arguments.training import A2MIMTrainingArguments, FineTuningArguments

from ..integration.test_scripts import FAST, SMALL


def make(tmp_path, kind=A2MIMTrainingArguments, **kwargs):
    return kind(output_dir=str(tmp_path), use_cpu=True, **kwargs)


@pytest.mark.parametrize("name", [f.name for f in fields(TrainingArguments)])
def test_every_field_is_in_one_group(name):
    groups = {"supported": SUPPORTED.split(), "refused": REFUSED, "without meaning": WITHOUT_MEANING}
    assert len([group for group, names in groups.items() if name in names]) == 1


NEWER = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # than the lowest release of transformers


def test_no_group_has_fields_that_there_are_not():
    known = {f.name for f in fields(TrainingArguments)} | NEWER
    for names in (SUPPORTED.split(), REFUSED, WITHOUT_MEANING):
        assert len(set(names)) == len(list(names))
        assert set(names) <= known


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_sampling_strategy", "sequential"),
        ("train_sampling_strategy", "group_by_length"),
        ("dataloader_in_order", False),
        ("ignore_data_skip", True),
        ("optim_target_modules", "all-linear"),
        ("use_liger_kernel", True),
        ("neftune_noise_alpha", 5.0),
        ("include_num_input_tokens_seen", "all"),
        ("prediction_loss_only", True),
        ("eval_do_concat_batches", False),
        ("eval_use_gather_object", True),
        ("batch_eval_metrics", True),
        ("remove_unused_columns", False),
        ("label_names", ["labels"]),
        ("debug", "underflow_overflow"),
        ("label_smoothing_factor", 0.1),
        ("accelerator_config", {"split_batches": True}),
        ("optim", "adalomo"),
    ],
)
def test_what_is_refused_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        check_fields(make(tmp_path, **{name: value}))


def test_what_is_usual_is_not_refused(tmp_path):
    check_fields(make(tmp_path))
    check_fields(make(tmp_path, FineTuningArguments, label_smoothing_factor=0.1))


def test_what_does_nothing_is_said(tmp_path):
    def said(*given, **kwargs):
        return list(without_effect(make(tmp_path, FineTuningArguments, **kwargs), given))

    assert said("eval_steps", eval_steps=4) == ["eval_steps has no effect without --eval_strategy steps"]
    assert said("eval_steps", eval_steps=4, eval_strategy="steps") == []
    assert said("adam_beta1", optim="sgd") == ["adam_beta1 has no effect without an optimiser that has them (--optim)"]
    adam = ("adam_beta1", "adam_epsilon")
    for optim, idle in (("lamb", ()), ("lars", adam[:1]), ("momentum", adam), ("lion", adam[1:]), ("rmsprop", adam)):
        assert [line.split()[0] for line in said(*adam, optim=optim)] == list(idle), optim
    assert said("adam_beta1", optim="adamw_torch") == said(*adam) == []
    assert said("num_train_epochs", num_train_epochs=3, max_steps=2) == [
        "num_train_epochs has no effect without leaving out --max_steps, which counts"
    ]
    idle = ["learning_rate_scaling has no effect without a --learning_rate for another --total_train_batch_size"]
    one = {"per_device_train_batch_size": 48, "total_train_batch_size": 64}
    for values in (
        {},
        one,
        {**one, "base_learning_rate": 1e-3},
        {"learning_rate": 1e-3, "total_train_batch_size": 64},
    ):
        assert said("learning_rate_scaling", learning_rate_scaling="sqrt", **values) == idle
    assert said("learning_rate_scaling", "base_learning_rate", learning_rate=1e-3, **one) == []
    assert said("learning_rate", "base_learning_rate") == ["base_learning_rate has no effect beside --learning_rate"]
    assert said("mixup_mode", "save_steps", save_strategy="epoch") == [
        "save_steps has no effect without --save_strategy steps",
        "mixup_mode has no effect without --mixup or --cutmix",
    ]


def test_arguments_of_models_and_data_that_do_nothing_are_said():
    values = {"knn": False, "model_name_or_path": None, "dataset_name": None, "streaming": False, "reprob": 0.0}
    values |= {"train_dir": ["x"], "validation_dir": None}
    given = ("knn_temperature", "model_revision", "dataset_revision", "shuffle_buffer_size", "remode", "train_split")
    assert list(idle_arguments(given, values)) == [
        "knn_temperature has no effect without --knn",
        "model_revision has no effect without --model_name_or_path",
        "dataset_revision has no effect without --dataset_name",
        "shuffle_buffer_size has no effect without --streaming",
        "remode has no effect without --reprob",
        "train_split has no effect beside --train_dir",
    ]
    used = {**values, "knn": True, "model_name_or_path": "m", "dataset_name": ["d"], "streaming": True, "reprob": 0.1}
    assert list(idle_arguments(given, {**used, "train_dir": None})) == []


def test_the_command_line_refuses_and_says_it(tmp_path, caplog, capfd, no_pictures):
    out = ["--output_dir", str(tmp_path / "out")]
    for main, small in ((run_pretraining.main, SMALL), (run_finetune.main, SMALL[:4])):
        with pytest.raises(ValueError, match="^train_sampling_strategy: .*; leave --train_sampling_strategy out"):
            main([*small, *FAST, *out, "--train_sampling_strategy", "sequential"])
    assert not (tmp_path / "out").exists()
    argv = [
        *SMALL[:4],
        *FAST,
        *out,
        "--knn",
        "--labels_per_class",
        "1",
        "--max_eval_samples",
        "10",
        "--do_train",
        "False",
        "--learning_rate",
        "0.5",
        "--mixup",
        "0.2",
    ]
    run_finetune.main(argv)
    assert "do_train has no effect: what is done follows from the script" in caplog.text
    assert "no effect, as --knn trains nothing: learning_rate, " in caplog.text
    assert ", mixup" in caplog.text
    assert "images in a step" not in caplog.text
    assert "it/s" not in capfd.readouterr().err  # no bars with --disable_tqdm
