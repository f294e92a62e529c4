"""BatchNorms that would have one value a channel are found before training."""

import pytest
import torch
from torch import nn

import run_pretraining
from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification
from modeling_a2mim.models.linear_probe import LinearProbe
from modeling_a2mim.training.batch_norm import check_batch_norms, single_value_norms

from ..integration.test_scripts import FAST


def classifier(size=32):
    return A2MIMForImageClassification(
        A2MIMConfig.for_encoder(architecture="test_resnet", image_size=size, num_labels=2)
    )


def test_the_modules_that_torch_stops_at_are_found(one_thread):
    model, pixels = classifier().eval(), torch.zeros(1, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    names = single_value_norms(model, {"pixel_values": pixels})
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model.train()(pixel_values=pixels)
    model.get_submodule(names[0])
    for name in names:  # and these are all
        model.set_submodule(name, nn.Identity())
    model(pixel_values=pixels)
    assert single_value_norms(classifier(64), {"pixel_values": torch.zeros(1, 3, 64, 64)}) == []
    probe = LinearProbe.from_encoder(classifier())  # which is frozen, and whose own takes single values
    assert single_value_norms(probe, {"pixel_values": pixels}) == []


@pytest.mark.parametrize(
    ("images", "batch", "said"),
    [
        (8, 1, "a batch has one image, of which the BatchNorm a2mim.encoder.layer4.0.bn1 .*; give at least 2, or a"),
        (3, 2, "the smallest batch of 3 images in batches of 2 has one image, .*--dataloader_drop_last True"),
        (1, 8, "each batch of 1 images in all has one image, .*; more images are needed"),
    ],
)
def test_what_is_said(images, batch, said, one_thread):
    with pytest.raises(ValueError, match=f"^per_device_train_batch_size: {said}"):
        check_batch_norms(classifier(), {"pixel_values": torch.zeros(1, 3, 32, 32)}, images, batch)


def test_it_is_said_before_training(tmp_path, one_thread):
    argv = ["--architecture", "test_resnet", "--image_size", "32", "--mask_patch_size", "8", *FAST]
    argv += ["--max_train_samples", "3", "--num_train_epochs", "1", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match="^per_device_train_batch_size: the smallest batch of 3 images in"):
        run_pretraining.main([*argv, "--per_device_train_batch_size", "2"])
    assert list(tmp_path.iterdir()) == []
    run_pretraining.main([*argv, "--per_device_train_batch_size", "2", "--max_train_samples", "4"])
