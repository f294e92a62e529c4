"""Mixed batches, their losses, and averaged weights: in training, in evaluation, in exports and in checkpoints."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F
from transformers import TrainerCallback

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification
from modeling_a2mim.arguments.training import FineTuningArguments
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.transforms import FineTuneTransform
from modeling_a2mim.evaluation.metrics import compute_metrics
from modeling_a2mim.export.folder import timm_pretrained_cfg
from modeling_a2mim.export.loading import load_classifier
from modeling_a2mim.tasks.classification.trainer import (
    FineTuningTrainer,
    make_class_weights,
    make_criterion,
    make_mixup,
    soft_labels,
)
from modeling_a2mim.training.encoder_trainer import filled

from ...training.test_trainer import Crash, weights


pytestmark = pytest.mark.usefixtures("one_thread")


def make_trainer(folder, callbacks=None, count=24, repeats=1, **kwargs):
    torch.manual_seed(0)
    config = A2MIMConfig.for_encoder(architecture="test_resnet", image_size=32, num_channels=1, num_labels=10)
    model = A2MIMForImageClassification(config)
    cfg = timm_pretrained_cfg(model.a2mim)
    train, test = load_images().select(range(count)), load_images(split="test").select(range(20))
    options = {"auto_augment": "rand-m6-mstd0.5-inc1", "re_prob": 0.5}
    samples = ImageSamples(train, FineTuneTransform(cfg, **options), "image", "label", repeats=repeats)
    defaults = {
        "per_device_train_batch_size": 7,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "eval_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return FineTuningTrainer(
        model=model,
        args=FineTuningArguments(output_dir=str(folder), **{**defaults, **kwargs}),
        train_dataset=samples,
        eval_dataset=ImageSamples(test, FineTuneTransform(cfg, train=False), "image", "label"),
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )


@pytest.mark.parametrize(("rank", "own"), [(0, 7), (1, 3), (2, 1)])
def test_images_that_fill_up_the_last_batch_do_not_count_in_its_loss(tmp_path, monkeypatch, rank, own):
    """Of 10 images, in a step of several processes with 7 each. The third has none, whose loss Trainer drops."""
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=7)
    batch = dict(next(iter(trainer.get_eval_dataloader())))
    expected = trainer.prediction_step(trainer.model.eval(), {k: v[:own] for k, v in batch.items()}, False)
    monkeypatch.setattr(FineTuningArguments, "world_size", 3)
    monkeypatch.setattr(FineTuningArguments, "process_index", rank)
    state = SimpleNamespace(end_of_dataloader=True, remainder=10)
    monkeypatch.setattr(trainer.accelerator, "gradient_state", state)
    loss, logits, labels = trainer.prediction_step(trainer.model, batch, False)
    assert loss == expected[0]
    assert torch.equal(logits[:own], expected[1])
    assert torch.equal(labels[:own], expected[2])
    assert len(logits) == len(labels) == 7
    values = {"of images": torch.arange(3.0), "of patches": torch.ones(6), "one": torch.tensor(1.0), "none": None}
    found = filled(values, 3, 5)
    assert found["of images"].tolist() == [0, 1, 2, 0, 0]
    assert all(found[name] is values[name] for name in ("of patches", "one", "none"))
    batch["names"] = list("abcdefg")
    assert trainer.without_repeated(batch)[0]["names"] == batch["names"][:own]
    assert trainer.without_repeated({"pixel_values": batch["pixel_values"][:5]})[1:] == (5, 5)  # of a stream


class Weights(TrainerCallback):
    """Remembers the weights after each step."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: value.clone() for name, value in model.state_dict().items()})


EVERYTHING = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing_factor": 0.1, "model_ema_decay": 0.7, "bce_loss": True}


@pytest.mark.ci
def test_a_killed_run_with_everything_goes_on_to_the_same_weights(tmp_path):
    whole = make_trainer(tmp_path / "whole", repeats=2, **EVERYTHING)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", [Crash(6)], repeats=2, **EVERYTHING).train()
    resumed = make_trainer(tmp_path / "cut", repeats=2, **EVERYTHING)
    resumed.train(resume_from_checkpoint="last")
    expected, averages = weights(whole), whole.averages.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert all(torch.equal(value, averages[name]) for name, value in resumed.averages.module.state_dict().items())
    (tmp_path / "whole" / "checkpoint-8" / "trained.safetensors").unlink()
    with pytest.raises(ValueError, match="^model_ema_decay: checkpoint-8 was made without averaged weights"):
        whole.take_averages(str(tmp_path / "whole" / "checkpoint-8"))


def test_the_model_of_a_checkpoint_is_what_was_evaluated(tmp_path):
    """Whoever loads it; a run that goes on, with averages or without them, has the trained weights."""
    trainer = make_trainer(tmp_path, max_steps=3, model_ema_decay=0.9, eval_strategy="steps", eval_steps=1)
    trainer.train()
    found = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    other = make_trainer(tmp_path / "other")
    for step in (2, 3):
        other.model = load_classifier(str(tmp_path / f"checkpoint-{step}"))
        assert other.evaluate()["eval_loss"] == found[step - 1]
    trained = load_file(tmp_path / "checkpoint-3" / "trained.safetensors")
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in trained.items())
    for decay in (None, 0.9):
        begun = Weights()
        begun.on_step_begin, begun.on_step_end = begun.on_step_end, TrainerCallback().on_step_end
        resumed = make_trainer(tmp_path, [begun], max_steps=4, model_ema_decay=decay, save_strategy="no")
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert all(torch.equal(value, trained[name]) for name, value in begun.steps[0].items())


def test_averages_by_hand_and_where_they_are_used(tmp_path):
    seen = Weights()
    trainer = make_trainer(tmp_path, [seen], max_steps=4, model_ema_decay=0.75, save_strategy="no")
    trainer.train()
    mean = {name: value.double() for name, value in seen.steps[0].items()}  # timm starts with the first step's
    for step in seen.steps[1:]:
        mean = {name: 0.75 * mean[name] + 0.25 * value.double() for name, value in step.items()}
    last = seen.steps[-1]
    for name, value in trainer.averages.module.state_dict().items():
        if value.is_floating_point():  # counts are copied
            torch.testing.assert_close(value.double(), mean[name], atol=1e-6, rtol=1e-5)  # sums of float32
    metrics = trainer.evaluate()
    trainer.save_model()
    assert all(torch.equal(value, last[name]) for name, value in weights(trainer).items())
    exported, averages = load_file(tmp_path / "model.safetensors"), trainer.averages.module.a2mim.encoder.state_dict()
    assert all(torch.equal(value, averages[name]) for name, value in exported.items())
    trainer.model.load_state_dict(trainer.averages.module.state_dict())
    trainer.averages = None
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"]
    trainer.model.load_state_dict(last)
    assert trainer.evaluate()["eval_loss"] != metrics["eval_loss"]


def test_the_best_checkpoint_brings_its_averages(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "figure", "greater_is_better": True}
    trainer = make_trainer(tmp_path, max_steps=4, model_ema_decay=0.5, eval_strategy="steps", eval_steps=1, **best)
    figures = iter([0.0, 1.0, 0.5, 0.0])
    trainer.compute_metrics = lambda prediction: {"figure": next(figures)}
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    kept, last = (load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors") for step in (2, 4))
    assert all(torch.equal(value, kept[name]) for name, value in trainer.averages.module.state_dict().items())
    assert not all(torch.equal(value, last[name]) for name, value in kept.items())
    trained = load_file(tmp_path / "checkpoint-2" / "trained.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in weights(trainer).items())


@pytest.mark.parametrize("count", [1, 6, 7])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixed_batches(tmp_path, count, mode):
    trainer = make_trainer(tmp_path, mixup=1.0, mixup_mode=mode, label_smoothing_factor=0.1)
    pixels, labels = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 1, 4, 4), torch.arange(count)
    mixed, soft = trainer._mix(pixels.clone(), labels)
    again, _ = trainer._mix(pixels.clone(), labels)
    assert (mixed.shape, soft.shape) == (pixels.shape, (count, 10))
    torch.testing.assert_close(soft.sum(1), torch.ones(count))
    # Images are numbered by their class: the mean class of a soft label is the number in the image.
    share = (soft - 0.01) / 0.9
    torch.testing.assert_close(share @ torch.arange(10.0), mixed[:, 0, 0, 0], atol=1e-5, rtol=1e-5)
    if count % 2:
        assert torch.equal(mixed[-1], pixels[-1])
    assert count == 1 or not torch.equal(mixed, again)  # the next batch of the step is mixed otherwise


def test_losses_by_hand(tmp_path):
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])

    def criterion(mixed=False, **kwargs):
        return make_criterion(FineTuningArguments(output_dir=str(tmp_path), use_cpu=True, **kwargs), mixed)

    assert criterion() is None
    smooth = F.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(criterion(label_smoothing_factor=0.2)(logits, labels), smooth)
    soft = soft_labels(labels, 4, 0.2)
    torch.testing.assert_close(soft[0], torch.tensor([0.85, 0.05, 0.05, 0.05]))
    torch.testing.assert_close(SoftTargetCrossEntropy()(logits, soft), smooth)
    torch.testing.assert_close(criterion(mixed=True, label_smoothing_factor=0.2)(logits, soft), smooth)
    binary = F.binary_cross_entropy_with_logits(logits, soft)
    torch.testing.assert_close(criterion(bce_loss=True, label_smoothing_factor=0.2)(logits, labels), binary)
    hard = F.binary_cross_entropy_with_logits(logits, (soft > 0.1).float())
    torch.testing.assert_close(criterion(mixed=True, bce_loss=True, bce_target_thresh=0.1)(logits, soft), hard)
    args = FineTuningArguments(output_dir=str(tmp_path), use_cpu=True)
    assert make_mixup(args, 4) is None


def test_one_loss_at_a_time(tmp_path):
    model = A2MIMForImageClassification(A2MIMConfig.for_encoder(architecture="test_resnet", image_size=32))
    args = FineTuningArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="no", label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="^compute_loss_func: label_smoothing_factor, class_weights would be another"):
        FineTuningTrainer(model, args, compute_loss_func=lambda *_, **__: None, class_weights=[1.0, 2.0])
    args = FineTuningArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="no")
    assert FineTuningTrainer(model, args, compute_loss_func=lambda *_, **__: None).criterion is None


def test_weights_of_classes(tmp_path):
    logits, labels, weights = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2]), [0.5, 2.0, 1.0, 3.0]
    args = {"output_dir": str(tmp_path), "use_cpu": True}
    for smoothing in (0.0, 0.2):
        criterion = make_criterion(FineTuningArguments(**args, label_smoothing_factor=smoothing), False, weights)
        expected = F.cross_entropy(logits, labels, torch.tensor(weights), label_smoothing=smoothing)
        torch.testing.assert_close(criterion(logits, labels), expected)
    soft = soft_labels(labels, 4, 0.2)
    weighted = soft * torch.tensor(weights)
    expected = -(weighted * logits.log_softmax(1)).sum() / weighted.sum()
    mixed = make_criterion(FineTuningArguments(**args, label_smoothing_factor=0.2), True, weights)
    torch.testing.assert_close(mixed(logits, soft), expected)
    expected = F.cross_entropy(logits, labels, torch.tensor(weights))  # whatever the scale of the weights
    mixed = make_criterion(FineTuningArguments(**args), True, [10 * weight for weight in weights])
    torch.testing.assert_close(mixed(logits, F.one_hot(labels, 4).float()), expected)
    nothing = make_criterion(FineTuningArguments(**args), True, [0.0, 1.0, 1.0, 1.0])
    assert nothing(logits[:1], F.one_hot(labels[:1], 4).bfloat16()) == 0
    counts = [1, 6, 0, 3]
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=np.repeat(range(4), counts))
    assert make_class_weights(["balanced"], counts, "abcd") == pytest.approx([*expected[:2], 1.0, expected[2]])
    assert make_class_weights(["2", "0.5"], None, "ab") == [2.0, 0.5]
    with pytest.raises(ValueError, match="^class_weights: the labels of this stream are not known"):
        make_class_weights(["balanced"], None, "ab")


def test_training_uses_the_loss_and_evaluation_the_models_own(tmp_path):
    trainer = make_trainer(tmp_path, bce_loss=True, max_steps=1, save_strategy="no", learning_rate=0.0)
    first = trainer.train_dataset.order(7).keys(0, 0, 7)
    batch = torch.utils.data.default_collate([trainer.train_dataset[key] for key in first])
    labels = batch.pop("labels")
    trainer.model.train()
    logits = trainer.model(**batch).logits
    expected = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 10).float())
    trainer.train()
    logged = next(log["loss"] for log in trainer.state.log_history if "loss" in log)
    assert logged == pytest.approx(expected.item(), rel=1e-4)  # what is logged is rounded
    prediction = trainer.predict(trainer.eval_dataset)
    own = F.cross_entropy(torch.tensor(prediction.predictions), torch.tensor(prediction.label_ids))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own.item(), rel=1e-5)
    assert np.isfinite(prediction.predictions).all()
