"""What pre-training and fine-tuning share: how the optimizer is made, how often is logged."""

import math

import pytest
import torch
from transformers import TrainingArguments

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.arguments.trainer_fields import without_effect
from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.export.card_tables import run_facts
from modeling_a2mim.export.record import describe_run
from modeling_a2mim.training.optimization import parameter_groups
from modeling_a2mim.training.trainer import A2MIMTrainer

from .test_trainer import CONFIG, make_trainer


def test_token_rate_follows_the_release(tmp_path):
    def rates(config):
        trainer = make_trainer(tmp_path)
        trainer.model = A2MIMForPreTraining(config)
        return [group.get("lr") for group in trainer.parameter_groups(trainer.model)][-1]

    assert rates(A2MIMConfig(**CONFIG)) == pytest.approx(1e-4)
    assert rates(A2MIMConfig(**CONFIG, mask_gamma_init=None)) == pytest.approx(1e-3)
    frozen = A2MIMForImageClassification(A2MIMConfig(**CONFIG)).freeze_encoder()
    groups = parameter_groups(frozen, 1.0, 0.1)
    assert sum(p.numel() for group in groups for p in group["params"]) == frozen.num_parameters(only_trainable=True)


@pytest.mark.parametrize("given", [{}, {"layer_decay": 0.5}, {"token_lr_scale": 10.0}])
def test_the_rate_that_is_logged_is_the_one_that_was_given(tmp_path, monkeypatch, given):
    """Times the schedule: not that of the slowest layer, nor of a token that learns faster."""
    trainer = make_trainer(tmp_path, max_steps=4, warmup_steps=0, save_strategy="no", **given)
    fixed = torch.tensor(1.0, requires_grad=True)
    monkeypatch.setattr(A2MIMTrainer, "training_step", lambda self, *args: fixed.detach())
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])


def own_optimizer(folder, given, **kwargs):
    """A trainer with what the user gave for a model, after two steps, and its record."""
    torch.manual_seed(0)
    model = A2MIMForPreTraining(A2MIMConfig(**CONFIG))
    args = A2MIMTrainingArguments(
        output_dir=str(folder), max_steps=2, use_cpu=True, disable_tqdm=True, save_strategy="no", warmup_steps=0,
        per_device_train_batch_size=4, reconstruction_steps=0, **kwargs,
    )  # fmt: skip
    samples = [{"pixel_values": torch.rand(1, 32, 32)} for _ in range(8)]
    trainer = A2MIMTrainer(model, args, train_dataset=samples, **given(model))
    trainer.train()
    return trainer, trainer.record()


def test_an_optimizer_class_is_used_with_the_groups(tmp_path):
    settings = {"lr": 0.2, "momentum": 0.5, "weight_decay": 0.3}
    trainer, record = own_optimizer(tmp_path, lambda model: {"optimizer_cls_and_kwargs": (torch.optim.SGD, settings)})
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
    groups = trainer.optimizer.param_groups
    assert {(round(g["initial_lr"], 9), g["weight_decay"], g["momentum"]) for g in groups} == {
        (0.2, 0.3, 0.5),
        (0.2, 0.0, 0.5),
        (0.02, 0.0, 0.5),  # the mask token's
    }
    assert not trainer.args.optimizes_like_adam  # whose rate another optimiser's is not compared with
    expected = {"optimizer": "SGD", "learning_rate": 0.2, "momentum": 0.5, "weight_decay": 0.3, "adam_betas": None}
    assert expected.items() <= record.items()
    assert record["lr_scheduler_type"] == "cosine"
    no_class, no_rate = (lambda: None, {}), (torch.optim.SGD, {"lr": None})
    for wrong, said in ((no_class, "expected a class"), (no_rate, "expected a learning rate")):
        with pytest.raises(ValueError, match=f"^optimizer_cls_and_kwargs: .*{said}"):
            own_optimizer(tmp_path, lambda model, wrong=wrong: {"optimizer_cls_and_kwargs": wrong})
    with pytest.raises(ValueError, match="^optim_args: are not for the SGD"):
        own_optimizer(tmp_path, lambda model: {"optimizer_cls_and_kwargs": (torch.optim.SGD, {})}, optim_args="a=1")


def test_the_record_is_of_the_optimizer_that_was_given(tmp_path):
    def given(model):
        optimizer = torch.optim.RMSprop(model.parameters(), lr=0.0123, weight_decay=0.5)
        return {"optimizers": (optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1))}

    _, record = own_optimizer(tmp_path, given)
    expected = {"optimizer": "RMSprop", "learning_rate": 0.0123, "weight_decay": 0.5, "momentum": 0.0}
    expected |= {"adam_betas": None, "lr_scheduler_type": "StepLR", "warmup_steps": None}
    assert expected.items() <= record.items()
    facts = dict(run_facts(record))
    assert facts["optimiser"] == "RMSprop, momentum 0, weight decay 0.5, gradients clipped at 5"
    assert facts["learning rate"] == "0.0123, StepLR"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optim": "lion"}, "lion, betas [0.9, 0.99], weight decay 0.05"),
        ({"optim": "sgd", "optim_args": "momentum=0.5"}, "sgd, momentum 0.5, weight decay 0.05"),
        ({"adam_beta1": 0.8}, "adamw_torch_fused, betas [0.8, 0.999], weight decay 0.05"),
        ({"optim": "adagrad", "lr_milestones": [0.5]}, "adagrad, weight decay 0.05"),
    ],
)
def test_the_card_has_the_betas_that_the_optimizer_has(tmp_path, given, said):
    _, record = own_optimizer(tmp_path, lambda model: {}, **given)
    facts = dict(run_facts(record))
    assert facts["optimiser"] == f"{said}, gradients clipped at 5"
    schedule = "times 0.1 at [0.5]" if "lr_milestones" in given else "cosine"
    assert f", {schedule}, 0 steps of warm-up" in facts["learning rate"]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("neftune_noise_alpha", 5.0, TrainingArguments),
        ("use_liger_kernel", True, TrainingArguments),
        ("optim", "adalomo", A2MIMTrainingArguments),
        ("label_smoothing_factor", 0.1, TrainingArguments),
        ("batch_eval_metrics", True, TrainingArguments),
    ],
)
def test_what_is_not_for_images_is_refused_in_python(tmp_path, name, value, kind):
    args = kind(output_dir=str(tmp_path), use_cpu=True, report_to="none", **{name: value})
    with pytest.raises(ValueError, match=f"^{name}: "):
        A2MIMTrainer(A2MIMForPreTraining(A2MIMConfig(**CONFIG)), args)


def test_predictions_are_preprocessed_for_metrics_of_the_users(tmp_path):
    """The trainer's own read the errors of each image as they are."""
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    data = [{"pixel_values": torch.rand(1, 32, 32)} for _ in range(4)]
    given = {"preprocess_logits_for_metrics": lambda errors, labels: errors[:, 0], "eval_dataset": data}
    model = A2MIMForPreTraining(A2MIMConfig(**CONFIG))
    with pytest.raises(ValueError, match="^preprocess_logits_for_metrics: .*; give compute_metrics beside it"):
        A2MIMTrainer(model, args, **given)
    trainer = A2MIMTrainer(model, args, **given, compute_metrics=lambda p: {"shape": p.predictions.shape})
    assert trainer.evaluate()["eval_shape"] == (4,)


@pytest.mark.parametrize(
    ("given", "steps", "logged"),
    [
        ({}, 5, [1, 2, 3, 4, 5]),
        ({}, 43, list(range(2, 43, 2))),
        ({"logging_steps": 10}, 15, [10]),
        ({"logging_steps": 0.5}, 4, [2, 4]),
    ],
)
def test_short_runs_log_more_often(tmp_path, monkeypatch, given, steps, logged):
    trainer = make_trainer(tmp_path, count=16, max_steps=steps, save_strategy="no", **{"logging_steps": None, **given})
    fixed = torch.tensor(1.0, requires_grad=True)
    monkeypatch.setattr(A2MIMTrainer, "training_step", lambda self, *args: fixed.detach())
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == logged


def test_precision_is_what_is_computed_in(tmp_path, monkeypatch):
    def precision(**options):
        trainer = make_trainer(tmp_path, save_strategy="no", **options)
        return trainer.args.bf16, describe_run(trainer, {})["precision"]

    assert precision(bf16=True) == (True, "bfloat16")
    assert precision() == (False, "float32")
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # of accelerate launch
        assert precision() == (True, "bfloat16")
    with pytest.raises(ValueError, match="^fp16: a CPU computes in float32 all the same"):
        precision(fp16=True)
    trainer = make_trainer(tmp_path, save_strategy="no")
    trainer.model.to(torch.bfloat16)
    assert describe_run(trainer, {})["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "warmup_stable_decay"}, "the schedule warmup_stable_decay .*num_decay_steps"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "the schedule cosine cannot be made with .*foo"),
    ],
)
def test_arguments_that_a_schedule_does_not_take(tmp_path, options, message):
    trainer = make_trainer(tmp_path, **options)
    trainer.create_optimizer()
    with pytest.raises(ValueError, match=f"^lr_scheduler_kwargs: {message}"):
        trainer.create_scheduler(10)


def test_schedules_without_a_warm_up(tmp_path):
    for kind, steps in (("constant", 0), ("reduce_lr_on_plateau", 0), ("constant_with_warmup", 3), ("cosine", 3)):
        options = {"lr_scheduler_type": kind, "warmup_steps": 3, "eval_strategy": "epoch"}
        args = A2MIMTrainingArguments(str(tmp_path), use_cpu=True, **options)
        assert args.get_warmup_steps(10) == steps
        told = [line for line in without_effect(args, ["warmup_steps"]) if line.startswith("warmup_steps")]
        assert len(told) == (steps == 0)
    args = A2MIMTrainingArguments(
        str(tmp_path), use_cpu=True, lr_scheduler_type="constant", lr_milestones=[0.5], warmup_steps=3
    )
    assert args.get_warmup_steps(10) == 3
