"""The gauge of the encoder: training goes on as without it, bit for bit; when it measures, and what it logs."""

import copy
import json
import math
import random

import numpy as np
import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.monitor import monitor_images
from modeling_a2mim.data.transforms import PreTrainTransform
from modeling_a2mim.evaluation.frozen import extract_features
from modeling_a2mim.evaluation.gauge import MORE_IS_BETTER, gauge, with_company
from modeling_a2mim.export.card_tables import monitor_section
from modeling_a2mim.export.monitor import monitor_log
from modeling_a2mim.models.pooled_features import layer_widths
from modeling_a2mim.training.monitor import pooled_features, steps_between, undisturbed
from modeling_a2mim.training.trainer import A2MIMTrainer

from ..families import checkpointed
from ..processes import in_two_processes
from .test_trainer import Crash, weights


pytestmark = pytest.mark.usefixtures("one_thread")
# The name that transformers 5.24 has for it, or that of 5.17.
CHECKPOINTING = next(
    f"{word}_checkpointing"
    for word in ("activation", "gradient")
    if hasattr(A2MIMTrainingArguments, f"{word}_checkpointing")
)
SMALL = {"image_size": 32, "num_channels": 1, "mask_patch_size": 8}
ENCODERS = {
    # BatchNorm with drop path; and a ViT with drop path and dropout.
    "cnn": {"architecture": "test_resnet", "model_args": {"drop_path_rate": 0.2}, "mask_site": -3, **SMALL},
    "vit": {
        "architecture": "test_vit",
        "model_args": {"drop_path_rate": 0.2, "proj_drop_rate": 0.1},
        **SMALL,
        "mask_patch_size": 16,
    },
}
NOISY = {"images_per_second", "data_wait", "time_left", "train_runtime", "train_samples_per_second"}
NOISY |= {"train_steps_per_second", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


def make_config(kind):
    return A2MIMConfig(**ENCODERS[kind])


def rows(count=24):
    return load_images(split="test").select(range(count))


def make_trainer(
    folder, kind="cnn", monitor=True, callbacks=None, evaluated=8, monitor_steps=2, probe_layers="last", **options
):
    config = make_config(kind)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    defaults = {"per_device_train_batch_size": 8, "max_steps": 7, "save_steps": 1, "logging_steps": 1}
    defaults |= {"disable_tqdm": True, "use_cpu": True, "reconstruction_steps": 0, "learning_rate": 1e-3}
    return A2MIMTrainer(
        model=A2MIMForPreTraining(config),
        args=A2MIMTrainingArguments(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=ImageSamples(load_images().select(range(40)), PreTrainTransform(config), "image"),
        eval_dataset=ImageSamples(rows(evaluated), PreTrainTransform(config, train=False), "image"),
        callbacks=callbacks,
        monitor=rows() if monitor else None,
        monitor_steps=monitor_steps,
        probe_layers=probe_layers,
    )


class Generators(TrainerCallback):
    """Keeps the states of all generators, and the mode of each module, after each step."""

    def __init__(self):
        self.states = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        numpy_state = np.random.get_state()[1].tolist()
        self.states.append((torch.get_rng_state().tolist(), random.getstate(), numpy_state))


def log_of(trainer, kept=lambda name: True):
    """The log without times and without the gauge; entries of which nothing is left are left out."""
    entries = []
    for entry in trainer.state.log_history:
        found = {k: v for k, v in entry.items() if k not in NOISY and k.removeprefix("eval_") not in MORE_IS_BETTER}
        if not any(name.startswith("monitor_") for name in found):
            entries.append(found)
    return entries


def steps(trainer):
    return [entry["step"] for entry in monitor_log(trainer.state.log_history)]


EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 2}


@pytest.mark.ci
@pytest.mark.parametrize(
    ("workers", "kind"),
    [
        pytest.param(w, kind, marks=[] if (w, kind) == (0, "cnn") else pytest.mark.slow)
        for w in (0, 2)
        for kind in ENCODERS
    ],
)
def test_training_is_the_same_bit_for_bit(tmp_path, kind, workers):
    """Weights, buffers, optimiser, generators and the log; whole, and resumed from step 3, where nothing is measured,
    and from step 4, where something is."""
    options = {"kind": kind, "dataloader_num_workers": workers, **EVERY_STEP, "lr_scheduler_type": "cosine"}
    without, measured = Generators(), Generators()
    plain = make_trainer(tmp_path / "plain", monitor=False, callbacks=[without], **options)
    plain.train()
    trainer = make_trainer(tmp_path / "measured", callbacks=[measured], **options)
    trainer.train()
    assert steps(trainer) == [0, 2, 4, 6, 7]
    expected = weights(plain)
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items())
    assert log_of(trainer) == log_of(plain)
    assert len(measured.states) == 7
    assert measured.states == without.states
    optimizers = [t.optimizer.state_dict()["state"] for t in (plain, trainer)]
    for one, other in zip(*(list(states.values()) for states in optimizers), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for stop in (4,) if workers else (3, 4):
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path / f"cut-{stop}", callbacks=[Crash(stop + 1)], **options).train()
        resumed = make_trainer(tmp_path / f"cut-{stop}", **options)
        torch.manual_seed(99)
        resumed.train(resume_from_checkpoint="last")
        assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
        assert log_of(resumed)[:-1] == log_of(plain)[:-1]  # of train_loss Trainer knows its own steps alone
        assert monitor_log(resumed.state.log_history) == monitor_log(trainer.state.log_history)
        lines = [json.loads(line) for line in (tmp_path / f"cut-{stop}" / "metrics.jsonl").read_text().splitlines()]
        assert monitor_log(lines) == monitor_log(trainer.state.log_history)


COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        COMPILED,
        {"bf16": True, CHECKPOINTING: True},
        {"gradient_accumulation_steps": 2},
        {"load_best_model_at_end": True, "save_steps": 2},
    ],
)
def test_training_is_the_same_in_other_modes(tmp_path, options):
    found = []
    for monitor in (False, True):
        torch._dynamo.reset()
        options = {"max_steps": 4, **EVERY_STEP, **options}
        trainer = make_trainer(tmp_path / str(monitor), "vit", monitor=monitor, **options)
        trainer.train()
        found.append((weights(trainer), log_of(trainer)))
    assert steps(trainer) == [0, 2, 4]
    assert all(torch.equal(value, found[0][0][name]) for name, value in found[1][0].items())
    assert found[0][1] == found[1][1]


def test_the_step_of_a_measurement_logs_its_own_loss(tmp_path):
    trainer = make_trainer(tmp_path, logging_steps=3, monitor_steps=3, save_strategy="no")
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [3, 6]
    assert steps(trainer) == [0, 3, 6, 7]
    for entry in trainer.state.log_history:
        if any(name.startswith("monitor_") for name in entry):
            assert entry.keys() == {*(f"monitor_{name}" for name in MORE_IS_BETTER), "step", "epoch"}


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {CHECKPOINTING: True}])
def test_what_is_measured(tmp_path, options):
    """The features of `extract_features`, in evaluation mode and without a mask."""
    trainer = make_trainer(tmp_path, max_steps=2, save_strategy="no", **options)
    trainer.train()
    images, model = trainer.monitor.images, trainer.unwrapped()
    taken = rows().select(np.flatnonzero(with_company(rows()["label"])))  # others cannot be told by their neighbors
    own = ImageSamples(taken, PreTrainTransform(model.config, train=False), "image", "label")
    dtype = torch.bfloat16 if options.get("bf16") else None
    features, labels = extract_features(model, own, trainer.args.eval_batch_size, dtype=dtype)
    np.testing.assert_array_equal(pooled_features(model, images, trainer.args.eval_batch_size, dtype), features)
    np.testing.assert_array_equal(images.labels, labels)
    assert monitor_log(trainer.state.log_history)[-1] == {"step": 2, **gauge(features, labels)}


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_stage_is_measured(tmp_path, kind):
    trainer = make_trainer(tmp_path, kind, max_steps=2, save_strategy="no", probe_layers="all")
    trainer.train()
    images, model = trainer.monitor.images, trainer.unwrapped()
    features = pooled_features(model, images, trainer.args.eval_batch_size, layer="all")
    widths = layer_widths(model.a2mim, "all")
    assert features.shape == (len(images), sum(widths))
    assert monitor_log(trainer.state.log_history)[-1] == {"step": 2, **gauge(features, images.labels, widths)}
    record = trainer.record()["monitor"]
    assert record["probe_layers"] == "all"
    assert monitor_section({**record, "data": "them"}).startswith(
        "Measured of the frozen encoder, mean and deviation of every stage, on "
    )
    with pytest.raises(ValueError, match="^probe_layers: expected last or all, got 'first'$"):
        make_trainer(tmp_path, kind, probe_layers="first")


def counting(monkeypatch):
    calls = []

    def counted(model, *args):
        calls.append(model.training)
        return pooled_features(model, *args)

    monkeypatch.setattr("modeling_a2mim.training.monitor.pooled_features", counted)
    return calls


def test_features_are_computed_once_for_a_step(tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    trainer = make_trainer(tmp_path, save_strategy="no", max_steps=4, eval_on_start=True, **EVERY_STEP)
    trainer.train()
    assert steps(trainer) == [0, 2, 4]
    assert len(calls) == 3
    logs = {entry["step"]: entry for entry in trainer.state.log_history if "eval_loss" in entry}
    for entry in monitor_log(trainer.state.log_history):
        assert {name: logs[entry["step"]][f"eval_{name}"] for name in MORE_IS_BETTER} == {
            name: entry[name] for name in MORE_IS_BETTER
        }
    # After training the weights may change without a step.
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.5)
    assert trainer.evaluate()["eval_rankme"] != logs[4]["eval_rankme"]
    assert len(calls) == 4


def test_the_best_weights_by_a_figure_are_those_evaluated(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "feature_cosine", **EVERY_STEP}
    trainer = make_trainer(tmp_path, save_steps=2, max_steps=6, **{**best, "save_strategy": "steps"})
    metrics = trainer.run()
    found = {e["step"]: e["eval_feature_cosine"] for e in trainer.state.log_history[:-1] if "eval_loss" in e}
    assert list(found) == [2, 4, 6]
    assert trainer.state.best_global_step == min(found, key=found.get)
    assert metrics["eval_feature_cosine"] == min(found.values())
    assert steps(trainer) == [0, 2, 4, 6]


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def test_the_end_of_a_run_that_stops_early(tmp_path):
    trainer = make_trainer(tmp_path / "callback", callbacks=[Stop()], save_strategy="no", monitor_steps=100)
    trainer.train()
    assert steps(trainer) == [0, 3]
    # Nothing is learned: the first evaluation is the best, and the second one the last.
    patience = {"eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.0, "load_best_model_at_end": True}
    patience |= {"early_stopping_patience": 1, "metric_for_best_model": "rankme", "greater_is_better": True}
    trainer = make_trainer(tmp_path / "patience", "vit", monitor_steps=100, **patience)
    trainer.train()
    assert steps(trainer) == [0, 2]
    kept = json.loads((tmp_path / "patience" / "checkpoint-2" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in monitor_log(kept["log_history"])] == [0, 2]


def test_a_run_that_was_not_measured_until_its_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, monitor=False, callbacks=[Crash(4)]).train()
    resumed = make_trainer(tmp_path, monitor_steps=100)
    resumed.train(resume_from_checkpoint="last")
    assert steps(resumed) == [3, 7]


@pytest.mark.ci
def test_other_images_are_said_when_a_run_resumes(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, callbacks=[Crash(4)]).train()
    resumed = make_trainer(tmp_path, monitor=False)
    resumed.train(resume_from_checkpoint="last")
    assert not resumed.resumption.changed
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "other", callbacks=[Crash(4)]).train()
    config = make_config("cnn")
    other = make_trainer(tmp_path / "other")
    other.monitor.images = monitor_images(rows(30), PreTrainTransform(config, train=False))
    other.train(resume_from_checkpoint="last")
    assert list(other.resumption.changed) == ["monitor_data"]
    assert "with monitor data 30-" in caplog.text


def test_off(tmp_path):
    trainer = make_trainer(tmp_path, monitor_steps=0, max_steps=1, save_strategy="no")
    assert trainer.monitor is None
    trainer.train()
    assert not steps(trainer)
    assert not MORE_IS_BETTER.keys() & {name.removeprefix("eval_") for name in trainer.evaluate()}
    assert "monitor" not in trainer.record()


def test_mistakes(tmp_path):
    for value in (-1, "often", 2.5, None):
        with pytest.raises(ValueError, match="^monitor_steps: expected a number of steps, 0 for none, or auto, got"):
            make_trainer(tmp_path, monitor_steps=value)
    model = A2MIMForImageClassification(A2MIMConfig(**{**ENCODERS["cnn"], "num_labels": 2}))
    args = A2MIMTrainingArguments(str(tmp_path / "classifier"), use_cpu=True)
    with pytest.raises(ValueError, match="^monitor: is for pre-training, the model is a A2MIMForImageClass"):
        A2MIMTrainer(model=model, args=args, monitor=rows())
    larger = A2MIMConfig(**{**ENCODERS["cnn"], "image_size": 64})
    images = monitor_images(rows(), PreTrainTransform(larger, train=False))
    with pytest.raises(ValueError, match=r"^monitor: the images are of shape \(1, 64, 64\), the model takes \(1, 32"):
        A2MIMTrainer(model=A2MIMForPreTraining(make_config("cnn")), args=args, monitor=images)


def test_auto_is_cheap_and_not_often():
    for images in (2, 256, 512):
        for batch in (1, 8, 64, 1024):
            for length in (1, 19, 20, 21, 100, 2000, 300_000):
                between, reason = steps_between(images, batch, length)
                measured = {0, length, *range(between, length + 1, between)}
                assert len(measured) <= 20
                assert images / (0.06 * batch) <= between
                # A forward pass is a third of a step.
                assert images / 3 / (between * batch) < 0.03
                assert math.ceil(images / (0.06 * batch)) == between or "20 times" in reason


def test_modes_and_generators_are_put_back():
    model = A2MIMForPreTraining(make_config("cnn")).train()
    model.a2mim.encoder.layer1.eval()  # as a frozen part is
    before = {name: module.training for name, module in model.named_modules()}
    assert len(set(before.values())) == 2
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def fail():
        with undisturbed(model):
            assert not any(module.training for module in model.modules())
            torch.rand(1), random.random(), np.random.rand()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_what_an_encoder_keeps_in_evaluation_mode_is_not_taken_for_new():
    """LeViT keeps its attention biases until `train` is called."""
    config = A2MIMConfig(architecture="levit_128s", image_size=64, mask_patch_size=16)
    model = A2MIMForPreTraining(config).train()
    images = monitor_images(rows(4), PreTrainTransform(config, train=False))
    first = pooled_features(model, images, 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention_bias" in name:
                parameter.add_(torch.randn(parameter.shape))
    assert not np.array_equal(pooled_features(model, images, 4), first)
    model.eval()
    assert np.array_equal(pooled_features(model, images, 4), pooled_features(model, images, 4))


def run_two(rank, folder):
    torch.set_num_threads(1)
    for monitor in (False, True):
        trainer = make_trainer(f"{folder}/{monitor}", monitor=monitor, per_device_train_batch_size=4, max_steps=3)
        trainer.train()
        torch.save(weights(trainer), f"{folder}/{monitor}-{rank}.pt")
        torch.save(trainer.state.log_history, f"{folder}/{monitor}-{rank}-log.pt")


@pytest.mark.slow
def test_two_processes(tmp_path):
    in_two_processes(run_two, str(tmp_path))
    for rank in (0, 1):
        one, two = (torch.load(tmp_path / f"{name}-{rank}.pt") for name in (False, True))
        assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [monitor_log(torch.load(tmp_path / f"True-{rank}-log.pt")) for rank in (0, 1)]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == [0, 2, 3]


def run_sharded(rank, folder):
    """Measured before the first step, which begins the sharding, and after it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = A2MIMForPreTraining(make_config("vit"))
    images = monitor_images(rows(4), PreTrainTransform(model.config, train=False))
    plain = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.a2mim.encoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = []
    for _ in range(2):
        found.append((pooled_features(model, images, 2), pooled_features(plain, images, 2)))
        for one in (plain, model):
            torch.manual_seed(1)
            one.train()(images.transform.normalize(images.pixel_values)).loss.backward()
            torch.optim.SGD(one.parameters(), lr=0.1).step()
            one.zero_grad()
    torch.save([[torch.from_numpy(one) for one in pair] for pair in found], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_sharded_weights(tmp_path):
    in_two_processes(run_sharded, str(tmp_path))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        np.testing.assert_array_equal(*found[0])
        np.testing.assert_allclose(*found[1], rtol=1e-5, atol=1e-5)  # gradients are added in another order
        assert not np.allclose(found[0][0], found[1][0])


def test_gradient_checkpointing_of_a_model_alone():
    model = checkpointed(A2MIMForPreTraining(make_config("vit")).train())
    images = monitor_images(rows(4), PreTrainTransform(model.config, train=False))
    checked = pooled_features(model, images, 2)
    np.testing.assert_array_equal(pooled_features(checkpointed(model, False), images, 2), checked)
