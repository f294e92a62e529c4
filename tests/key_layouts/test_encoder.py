"""The two functions of the room, on any family: what is not known here, what is logged, other types of numbers."""

import logging

import pytest
import torch

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.encoders.plan import plan_encoder
from modeling_a2mim.key_layouts import encoder_fields, timm_weights
from modeling_a2mim.key_layouts.encoder import LAYOUTS

from .models import DINOV2, VIT, features, images, load, make, stored, timm_features


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("data", [{"model_type": "bert"}, {"model_type": "a2mim"}, {}, {"model_type": None}])
def test_other_models(data):
    assert encoder_fields(data) is None


@pytest.mark.few(4)
@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_a_configuration_of_defaults(model_type):
    """A config.json holds what differs from the class, which may be nothing: the plan of it is an encoder that can be
    pre-trained."""
    fields = encoder_fields({"model_type": model_type})
    plan = plan_encoder(A2MIMConfig.for_encoder(**fields))
    assert plan.sites


def test_another_eps_is_logged(caplog):
    with caplog.at_level(logging.INFO, "a2mim"):
        encoder_fields({"model_type": "dinov2"})
        encoder_fields({"model_type": "resnet"})
        assert caplog.text == ""
        encoder_fields({"model_type": "vit"})
    assert "layer_norm_eps: 1e-12 in the config.json, timm's norms have 1e-06" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_another_type_keep_it(dtype, tmp_path):
    """Only the sum of a class token and its position is of float32, as transformers adds them after loading."""
    model = make("Dinov2WithRegistersModel", **DINOV2).to(dtype)
    config, weights = stored(model, tmp_path)
    found, _ = timm_weights(config, weights)
    assert {found[name].dtype for name in found} == {dtype, torch.float32}
    assert {name for name in found if found[name].dtype == torch.float32} == {"cls_token", "pos_embed"}
    encoder, _ = load(config, weights)
    model = model.float()
    torch.testing.assert_close(timm_features(encoder, images(70)), features(model, images(70)), atol=1e-4, rtol=0)


def test_small_tokens_show_the_eps(tmp_path):
    """The bound of what is stated: with positions and a class token of standard deviation 0.02, as at the start of
    training, features differ by less than 2e-3, and with an eps of timm's own not at all."""
    distances = []
    for eps in (1e-12, 1e-6):
        model = make("ViTModel", **VIT, layer_norm_eps=eps)
        with torch.no_grad():
            model.embeddings.position_embeddings.mul_(0.04)
            model.embeddings.cls_token.mul_(0.04)
        encoder, _ = load(*stored(model, tmp_path))
        distances.append((timm_features(encoder, images(48)) - features(model, images(48))).abs().max().item())
    assert 1e-5 < distances[0] < 2e-3
    assert distances[1] < 1e-5
