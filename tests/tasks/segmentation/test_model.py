"""UperNet on an encoder: with and without this package, and what of it is trained."""

import json
import logging
import re

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from benchmarks import shapes
from modeling_a2mim.arguments.segmentation import (
    SegmentationModelArguments,
)
from modeling_a2mim.models.backbone import FeaturePyramid
from modeling_a2mim.tasks.segmentation.model import build_segmenter, without_package

from ...families import FAMILIES


pytestmark = pytest.mark.usefixtures("one_thread")


NAMES = list(shapes.id2label().values())


SIZE = 40


def small(architecture="test_resnet", channels=3, size=SIZE, **kwargs):
    args = SegmentationModelArguments(
        architecture=architecture,
        image_size=[size],
        num_channels=channels,
        head_channels=8,
        auxiliary_channels=4,
        **kwargs,
    )
    torch.manual_seed(0)
    return build_segmenter(args, NAMES).eval()


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_plain_models_are_the_same(architecture):
    model = small(architecture, channels=1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    twin = without_package(model)
    images = torch.randn(2, 1, 50, 70)
    with torch.no_grad():
        assert torch.equal(twin(images).logits, model(images).logits)
    assert twin.config.backbone_config.model_type == "timm_backbone"


@pytest.mark.parametrize(
    ("family", "reason"), [("vit", "feature pyramid"), ("swin", "it has no"), ("convnext", "it has no")]
)
def test_models_that_need_the_package(family, reason, caplog, tmp_path):
    arguments = {"size": 64, "model_args": json.dumps(FAMILIES[family].get("model_args", {}))}
    if family == "convnext":
        arguments["model_args"] = '{"depths": [1, 1, 1, 1]}'
    model = small(FAMILIES[family]["architecture"], **arguments)
    with caplog.at_level(logging.WARNING, "a2mim"):
        assert without_package(model) is None
    assert re.search(f"{reason}.*import modeling_a2mim", caplog.text)
    model.save_pretrained(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        # Not bit for bit: safetensors hands out weights at addresses where kernels round differently.
        assert torch.allclose(again(images).logits, model(images).logits, atol=1e-5)


def test_feature_pyramid():
    pyramid = FeaturePyramid([4, 4, 6, 4])
    maps = pyramid(tuple(torch.randn(2, channels, 5, 6) for channels in (4, 4, 6, 4)))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 20, 24), (4, 10, 12), (6, 5, 6), (4, 3, 3)]
    with pytest.raises(ValueError, match="^out_indices: a feature pyramid is made of four maps, not of 2"):
        small("test_vit", size=64, out_indices=[2, 5])


def test_ignored_images_do_no_harm():
    """The mean over no pixels is NaN, but its gradient is zero."""
    model = small().train()
    labels = torch.full((2, SIZE, SIZE), 255)
    model(torch.randn(2, 3, SIZE, SIZE), labels=labels).loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads
    assert not any(grad.any() for grad in grads)


def test_a_frozen_encoder_is_not_trained():
    """Neither its weights nor its running statistics move, also not in a model that is in training mode."""
    model = small(freeze_encoder=True)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, labels = torch.randn(2, 3, SIZE, SIZE), torch.zeros(2, SIZE, SIZE, dtype=torch.long)
    model(pixel_values=images, labels=labels).loss.backward()
    moved = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert moved  # statistics of the head
    moved |= {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not [name for name in moved if name.startswith("backbone.")]
