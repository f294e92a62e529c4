"""The encoder stays as it is for the first steps, to the bit, and learns afterwards."""

import logging
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.arguments.training import A2MIMTrainingArguments, FineTuningArguments
from modeling_a2mim.tasks.classification.trainer import FineTuningTrainer
from modeling_a2mim.training.trainer import A2MIMTrainer

from ..families import family_config
from ..processes import in_two_processes


pytestmark = pytest.mark.usefixtures("one_thread")
DROPS = {"drop_path_rate": 0.2}


class Images(torch.utils.data.Dataset):
    def __init__(self, labels=False):
        generator = torch.Generator().manual_seed(0)
        self.rows = [{"pixel_values": torch.rand(3, 64, 64, generator=generator)} for _ in range(8)]
        for i, row in enumerate(self.rows):
            row |= {"labels": i % 2} if labels else {}

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def trained(family, folder, steps, frozen, accumulation=1, size=4, **kwargs):
    set_seed(0)
    model = A2MIMForPreTraining(family_config(family, **({"model_args": DROPS} if family == "vit" else {})))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = A2MIMTrainingArguments(
        output_dir=str(folder), max_steps=steps, freeze_encoder_steps=frozen, per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation, learning_rate=1e-3, warmup_steps=0, use_cpu=True, disable_tqdm=True,
        report_to="none", save_strategy="steps", save_steps=2, **kwargs,
    )  # fmt: skip
    trainer = A2MIMTrainer(model, args, train_dataset=Images())
    trainer.train(resume_from_checkpoint=kwargs.get("resume_from_checkpoint"))
    return before, model.state_dict()


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(("family", "accumulation"), [("resnet", 1), ("vit", 2)])
def test_only_what_is_new_learns_at_first(family, accumulation, tmp_path, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    kept, new = "a2mim.encoder.", {"decoder.weight", "decoder.bias", "a2mim.mask_token.token"}
    before, after = trained(family, tmp_path, 4, 3, accumulation)  # the last step changes all
    assert not before.keys() - changed(before, after)
    checkpoint = tmp_path / "checkpoint-2"
    stored = load_file(checkpoint / "model.safetensors")
    assert new <= changed(before, stored)
    assert not {name for name in changed(before, stored) if name.startswith(kept)}
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    names = [name for name, _ in A2MIMForPreTraining(family_config(family)).named_parameters()]
    assert len(moments) == sum(not name.startswith(kept) for name in names)
    assert "the encoder stays as it is until step 3 of 4" in caplog.text


def test_a_share_of_the_steps_and_resuming(tmp_path):
    _, whole = trained("resnet", tmp_path / "a", 6, 0.5)
    checkpoint = tmp_path / "a" / "checkpoint-2"
    _, resumed = trained("resnet", tmp_path / "b", 6, 0.5, resume_from_checkpoint=str(checkpoint))
    assert not changed(whole, resumed)
    _, other = trained("resnet", tmp_path / "c", 6, 0)
    assert changed(whole, other)


class OwnLoss(FineTuningTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss * 2


LOSSES = [
    {},
    {"label_smoothing_factor": 0.1},
    {"class_weights": [1.0, 3.0]},
    {"mixup": 0.5, "label_smoothing_factor": 0.1},
    {"bce_loss": True},
    {"trainer": OwnLoss},
]


@pytest.mark.parametrize("options", LOSSES, ids="_".join)
def test_the_classifier_is_new_as_well(options, tmp_path):
    """Whatever its loss: the statistics of BatchNorm, too, are those that there were."""
    options = dict(options)
    kind, weights = options.pop("trainer", FineTuningTrainer), options.pop("class_weights", None)
    set_seed(0)
    model = A2MIMForImageClassification(family_config("resnet", num_labels=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = FineTuningArguments(
        output_dir=str(tmp_path), max_steps=2, freeze_encoder_steps=1, per_device_train_batch_size=4, use_cpu=True,
        disable_tqdm=True, report_to="none", eval_strategy="no", save_strategy="steps", save_steps=1, warmup_steps=0,
        **options,
    )  # fmt: skip
    kind(model, args, train_dataset=Images(labels=True), class_weights=weights).train()
    stored = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert changed(before, stored) == {"a2mim.encoder.fc.weight", "a2mim.encoder.fc.bias"}
    assert "a2mim.encoder.layer1.0.conv1.weight" in changed(before, model.state_dict())


def test_what_model_init_makes_is_what_is_frozen_and_averaged(tmp_path):
    """Which `Trainer` calls when it is made, and again when it trains: here for another number of classes."""
    made = []

    def model_init():
        model = A2MIMForImageClassification(family_config("resnet", num_labels=2 + len(made)))
        model.config.decision = {"threshold": 0.5}
        made.append((model, {name: value.clone() for name, value in model.state_dict().items()}))
        return model

    args = FineTuningArguments(
        output_dir=str(tmp_path), max_steps=2, freeze_encoder_steps=1, per_device_train_batch_size=4, use_cpu=True,
        disable_tqdm=True, report_to="none", eval_strategy="no", save_strategy="steps", save_steps=1, warmup_steps=0,
        model_ema_decay=0.5,
    )  # fmt: skip
    trainer = FineTuningTrainer(args=args, model_init=model_init, train_dataset=Images(labels=True))
    trainer.train()
    assert trainer.model is made[1][0]
    stored = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert changed(made[1][1], stored) == {"a2mim.encoder.fc.weight", "a2mim.encoder.fc.bias"}
    trained = load_file(tmp_path / "checkpoint-1" / "trained.safetensors")
    assert not changed(stored, trained)  # they begin with the first step's
    assert getattr(trainer.model.config, "decision", None) is None


def test_an_encoder_that_would_never_learn_is_refused(tmp_path):
    with pytest.raises(ValueError, match="^freeze_encoder_steps: 3 are all of the 3 steps"):
        trained("resnet", tmp_path, 3, 3)
    for wrong in (-1, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="^freeze_encoder_steps: expected a number of steps"):
            A2MIMTrainingArguments(output_dir=str(tmp_path), freeze_encoder_steps=wrong, use_cpu=True)


def train_part(rank, folder):
    torch.set_num_threads(1)
    before, after = trained("vit", f"{folder}/{rank}", 3, 2, accumulation=1, size=2)
    torch.save({"before": before, "after": after}, f"{folder}/weights-{rank}.pth")


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Gradients that are dropped are reduced like the others, and the encoders stay alike afterwards."""
    in_two_processes(train_part, str(tmp_path))
    one, two = (torch.load(tmp_path / f"weights-{rank}.pth", weights_only=True) for rank in (0, 1))
    assert not changed(one["after"], two["after"])
    assert "a2mim.encoder.blocks.0.attn.qkv.weight" in changed(one["before"], one["after"])
