"""The decoder that reads every stage: which maps, which errors, and its first values."""

import pytest
import torch
from timm.models.resnet import ResNet
from torch import nn

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.decoders import MultiscaleDecoder

from .families import HIERARCHICAL, family_config


@pytest.mark.parametrize("family", HIERARCHICAL)
def test_reads_every_stage_of_4_px_and_more(family):
    model = A2MIMForPreTraining(family_config(family, decoder="multiscale"))
    stages = model.a2mim.encoder.feature_info
    assert [stages[i]["reduction"] for i in model.decoder.indices] == [4, 8, 16]
    assert model.stride == 4
    images = torch.randn(2, 3, 64, 64)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert output.hidden_states is None
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_one_image_whose_deepest_map_is_one_cell():
    """One value has no variance, of which BatchNorm makes an error: the running statistics replace it."""
    model = A2MIMForPreTraining(family_config("convnext", decoder="multiscale", image_size=32, mask_patch_size=8))
    norms = [module for module in model.decoder.modules() if isinstance(module, nn.BatchNorm2d)]
    model.train()(torch.randn(1, 3, 32, 32)).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.decoder.parameters())
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 1, 1, 0]
    assert not norms[-1].running_mean.any()


def test_isotropic_encoders_are_refused():
    with pytest.raises(
        ValueError, match="^decoder: multiscale reads maps of several .*; test_vit has 16 px; use linear"
    ):
        A2MIMForPreTraining(family_config("vit", decoder="multiscale"))


def test_encoders_whose_maps_timm_does_not_give(monkeypatch):
    monkeypatch.delattr(ResNet, "forward_intermediates")
    with pytest.raises(ValueError, match="^decoder: multiscale needs timm's forward_intermediates; test_resnet has"):
        A2MIMForPreTraining(family_config("resnet", decoder="multiscale"))
    A2MIMForPreTraining(family_config("resnet"))


def test_unknown_decoder():
    with pytest.raises(ValueError, match="^decoder: must be one of linear, multiscale, got 'unet'"):
        A2MIMConfig(decoder="unet")


def test_deepest_first():
    """A map adds to the result of the deeper ones, enlarged to its size: with all convolutions the identity on one
    channel, and without norms, the last output is their sum under nested GELUs."""
    decoder = MultiscaleDecoder([0, 1], [64, 64, 64], 64, kernel_size=1).eval()
    with torch.no_grad():
        for lateral, fuse in zip(decoder.lateral, decoder.fuse, strict=True):
            lateral.weight.copy_(torch.eye(64)[:, :, None, None])
            lateral.bias.zero_()
            fuse[0].weight.zero_()
            fuse[0].weight[:, :, 1, 1].copy_(torch.eye(64))
            fuse[1].eps = 1e-30  # less than a rounding error; PyTorch 2.11 refuses 0
        decoder.predict.weight.copy_(torch.eye(64)[:, :, None, None])
        decoder.predict.bias.zero_()
    fine, middle, deep = (torch.randn(2, 64, size, size) for size in (8, 4, 3))
    gelu, enlarge = torch.nn.functional.gelu, torch.nn.functional.interpolate
    expected = gelu(fine + enlarge(gelu(middle + enlarge(gelu(deep), (4, 4))), (8, 8)))
    torch.testing.assert_close(decoder([fine, middle, deep]), expected)
