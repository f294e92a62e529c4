"""The encoder with timm's own classifier: its logits, its losses, and what trains when the encoder is frozen."""

import pytest
import torch
from torch.nn import functional as F

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification

from ..families import FAMILIES
from ..small_models import assert_equal, classifier, gradients, make, make_images, run, timm_encoder


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_freeze_encoder(family):
    model, images = make(family, A2MIMForImageClassification), make_images(4)
    logits = run(model.eval(), images).logits
    model.freeze_encoder()
    assert len(classifier(model)) == 2
    trained = {f"a2mim.encoder.{name}" for name in classifier(model)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(2):
        model.train()
        assert model.training
        output = model(images, torch.tensor([0, 1, 2, 0]))
        assert torch.equal(output.logits, logits)  # no batch statistics, no stochastic depth
        assert gradients(model, output.loss).keys() == trained
        model.eval()
    assert_equal(dict(model.named_buffers()), before)


def test_freeze_encoder_with_two_classifiers():
    deit = {"architecture": "deit_tiny_distilled_patch16_224", "model_args": {"depth": 1}}
    model = A2MIMForImageClassification(A2MIMConfig(image_size=32, mask_patch_size=16, **deit))
    model.freeze_encoder()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "a2mim.encoder.head.weight",
        "a2mim.encoder.head.bias",
        "a2mim.encoder.head_dist.weight",
        "a2mim.encoder.head_dist.bias",
    ]


@pytest.mark.parametrize(
    ("problem", "labels", "loss"),
    [
        ("single_label_classification", torch.tensor([0, 2, 1, 2]), F.cross_entropy),
        ("multi_label_classification", torch.eye(4, 3), F.binary_cross_entropy_with_logits),
        ("regression", torch.eye(4, 3), F.mse_loss),
        (None, torch.tensor([0, 2, 1, 2]), F.cross_entropy),
        (None, torch.eye(4, 3), F.binary_cross_entropy_with_logits),
    ],
)
def test_classification_loss(problem, labels, loss):
    model, images = make("convnext", A2MIMForImageClassification, problem_type=problem).eval(), make_images(4)
    with torch.no_grad():
        model.a2mim.encoder.get_classifier().weight.mul_(50)  # logits that are far from equal
    assert run(model, images).loss is None
    output = run(model, images, labels=labels)
    assert output.logits.shape == (4, 3)
    assert torch.equal(output.loss, loss(output.logits, labels))


def test_logits_are_timms(family):
    model, images = make(family, A2MIMForImageClassification).eval(), make_images()
    encoder = timm_encoder(family, num_classes=3).eval()
    encoder.load_state_dict(model.a2mim.encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(run(model, images).logits, encoder(images))
