"""Training: both losses in its log, parameter groups, figures, precision, and runs that are killed and go on."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.arguments.training import A2MIMTrainingArguments
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.transforms import PreTrainTransform
from modeling_a2mim.training.optimization import parameter_groups
from modeling_a2mim.training.trainer import A2MIMTrainer

from ..families import FAMILIES, family_config
from ..processes import in_two_processes


ROOT = Path(__file__).resolve().parents[2]
# Stochastic depth, so that a resumed run needs the right random state for the same weights.
CONFIG = {
    "architecture": "test_convnext",
    "model_args": {"drop_path_rate": 0.2},
    "image_size": 32,
    "num_channels": 1,
    "mask_patch_size": 8,
    "mask_site": -3,
}


class Crash(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_trainer(folder, count=40, callbacks=None, dataset=None, shown=2, **kwargs):
    config = A2MIMConfig(**CONFIG)
    transform = PreTrainTransform(config)
    rows = load_images().select(range(count))
    samples = ImageSamples(rows, transform, "image")
    torch.manual_seed(0)
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "num_train_epochs": 3,
        "save_steps": 1,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "reconstruction_steps": 0,
    }
    return A2MIMTrainer(
        model=A2MIMForPreTraining(config),
        args=A2MIMTrainingArguments(output_dir=str(folder), **{**defaults, **kwargs}),
        train_dataset=dataset or samples,
        eval_dataset=samples if "eval_strategy" in kwargs else None,
        picture_samples=[samples[i] for i in range(shown)],
        callbacks=callbacks,
    )


def weights(trainer):
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


# 40 images in batches of 8 are 5 steps a pass: inside the first pass, and at the end of the second.
@pytest.mark.parametrize(("stop", "workers"), [(2, 0), (10, 2)])
def test_interrupted_runs_end_with_the_same_weights(uninterrupted, tmp_path, stop, workers):
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, callbacks=[Crash(stop + 1)], dataloader_num_workers=workers).train()
    resumed = make_trainer(tmp_path, dataloader_num_workers=workers)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint="last")
    expected = weights(uninterrupted)
    assert resumed.state.global_step == 15
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert losses(resumed) == losses(uninterrupted)


@pytest.mark.ci
def test_gradient_accumulation_resumes(tmp_path):
    whole = make_trainer(tmp_path / "whole", gradient_accumulation_steps=2)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", gradient_accumulation_steps=2, callbacks=[Crash(5)]).train()
    resumed = make_trainer(tmp_path / "cut", gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=True)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


def test_logs_hold_both_terms(uninterrupted):
    config = uninterrupted.model.config
    logs = [log for log in uninterrupted.state.log_history if "loss" in log]
    assert len(logs) == 15
    for log in logs:
        total = log["spatial_loss"] + config.frequency_loss_weight * log["frequency_loss"]
        assert log["loss"] == pytest.approx(total, rel=1e-5)  # sums of float32
    assert logs[-1]["loss"] < logs[0]["loss"]


def test_terms_of_steps_of_unequal_batches(tmp_path):
    """As those of samples of another class: 2 batches in a step, 1 in the last. The loss is the mean of the steps."""
    samples = evaluation_samples(20)
    steps = {"gradient_accumulation_steps": 2, "max_steps": 2, "logging_steps": 2, "save_strategy": "no"}
    trainer = make_trainer(tmp_path, dataset=[samples[i] for i in range(20)], **steps)
    trainer.train()
    log = next(log for log in trainer.state.log_history if "loss" in log)
    total = log["spatial_loss"] + trainer.model.config.frequency_loss_weight * log["frequency_loss"]
    assert log["loss"] == pytest.approx(total, rel=1e-5)  # sums of float32


def test_pictures(uninterrupted, tmp_path):
    picture = Image.open(Path(uninterrupted.args.output_dir) / "reconstruction.png")
    assert picture.size == (4 + 4 * (128 + 4), 16 + 4 + 2 * (128 + 4 + 14))  # 32 px, four times enlarged
    assert len(picture.getcolors(100_000)) > 10
    trainer = make_trainer(tmp_path, max_steps=3, reconstruction_steps=2, save_strategy="no")
    trainer.train()
    assert [p.name for p in (tmp_path / "reconstructions").iterdir()] == ["step-0000002.png"]


def test_output_folder_and_no_pickled_arguments(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, hub_token="hf_planted_secret")
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "README.md", "pretraining/config.json", "reconstruction.png"} <= names
    assert "![" in (tmp_path / "README.md").read_text()
    assert not [name for name in names if name.endswith("training_args.bin")]
    assert not [name for name in names if b"hf_planted_secret" in (tmp_path / name).read_bytes()]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameter_groups(family):
    model = A2MIMForPreTraining(family_config(family))
    groups = parameter_groups(model, learning_rate=2.0, weight_decay=0.3, token_lr_scale=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    seen = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    rate = {names[id(p)]: group.get("lr", 2.0) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        free = parameter.ndim <= 1 or name.endswith(("pos_embed", "cls_token", "reg_token", "bias_table"))
        assert decay[name] == (0.0 if free else 0.3), name
        assert rate[name] == (2.0 * 0.1 if ".mask_token." in name else 2.0), name
    assert decay["decoder.weight"] == 0.3


def test_learning_rate_follows_the_batch(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True}
    sizes = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 8}
    args = A2MIMTrainingArguments(**common, **sizes, base_learning_rate=1.5e-4)
    assert args.learning_rate == pytest.approx(1.5e-4 * 512 / 256)
    args = A2MIMTrainingArguments(**common, **sizes)
    assert args.learning_rate == args.usual_learning_rate()
    assert A2MIMTrainingArguments(**common, learning_rate=0.1).learning_rate == 0.1
    with pytest.raises(ValueError, match="^reconstruction_steps: must not be negative"):
        A2MIMTrainingArguments(**common, reconstruction_steps=-1)


COMPILED = pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [{"bf16": True}, COMPILED])
def test_precision_and_compilation(tmp_path, options):
    trainer = make_trainer(tmp_path, max_steps=2, **options)
    trainer.train()
    trainer.save_model()
    assert all(0 < loss < 10 for loss in losses(trainer))
    assert "conv" in "".join(load_file(tmp_path / "model.safetensors"))
    assert not any("_orig_mod" in name for name in load_file(tmp_path / "model.safetensors"))


def evaluation_samples(count):
    rows = load_images(split="test").select(range(count))
    return ImageSamples(rows, PreTrainTransform(A2MIMConfig(**CONFIG), train=False), "image")


def check_terms(metrics, prefix):
    weight = A2MIMConfig(**CONFIG).frequency_loss_weight
    total = metrics[f"{prefix}_spatial_loss"] + weight * metrics[f"{prefix}_frequency_loss"]
    # However a batch is averaged (frequency_batch_average): its loss and both terms count once for each of its images.
    # The model adds its terms in float32.
    assert metrics[f"{prefix}_loss"] == pytest.approx(total, rel=1e-6)


def test_terms_of_an_evaluation_count_each_image_once(tmp_path):
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=19)
    trainer.eval_dataset = evaluation_samples(20)
    first = trainer.evaluate()
    check_terms(first, "eval")
    check_terms(trainer.predict(evaluation_samples(7)).metrics, "test")
    assert trainer.evaluate()["eval_spatial_loss"] == first["eval_spatial_loss"]  # not of what was predicted before
    both = trainer.evaluate({"all": trainer.eval_dataset, "few": evaluation_samples(7)})
    check_terms(both, "eval_few")
    for name, value in first.items():
        if not name.endswith(("runtime", "_per_second", "_preparation_time")):
            assert both[name.replace("eval", "eval_all")] == value
    trainer.args.per_device_eval_batch_size = 20
    whole = trainer.evaluate()
    for name in ("masked_psnr", "masked_l1", "mean_fill_psnr", "blur_l1"):
        assert first[f"eval_{name}"] == pytest.approx(whole[f"eval_{name}"], rel=1e-5)  # convolutions of other sizes


def evaluate_in_two(rank, folder):
    torch.set_num_threads(1)
    trainer = make_trainer(Path(folder, str(rank)), per_device_eval_batch_size=4)
    trainer.eval_dataset = evaluation_samples(17)
    metrics = trainer.evaluate()
    check_terms(metrics, "eval")
    Path(folder, f"{rank}.json").write_text(json.dumps(metrics))


@pytest.mark.slow
def test_two_processes_evaluate_each_image_once(tmp_path):
    in_two_processes(evaluate_in_two, str(tmp_path))
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    trainer = make_trainer(tmp_path / "alone", per_device_eval_batch_size=4)
    trainer.eval_dataset = evaluation_samples(17)
    alone = trainer.evaluate()
    for name in ("loss", "spatial_loss", "frequency_loss", "masked_psnr", "masked_l1"):
        assert one[f"eval_{name}"] == two[f"eval_{name}"]
    for name in ("masked_psnr", "spatial_loss"):  # not the frequency loss, which averages over batches of other sizes
        assert one[f"eval_{name}"] == pytest.approx(alone[f"eval_{name}"], rel=1e-5)


def test_evaluation_is_repeatable_and_logs_both_terms(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.eval_dataset = evaluation_samples(20)
    one, two = trainer.evaluate(), trainer.evaluate()
    assert one["eval_loss"] == two["eval_loss"]
    log = trainer.state.log_history[-1]
    assert {"eval_spatial_loss", "eval_frequency_loss"} <= log.keys()
    assert "eval_bool_masked_pos" not in log
