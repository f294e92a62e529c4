"""DINOv2 without and with registers: the same features, also of images of another size, and the published sizes."""

import pytest
import timm
import torch

from modeling_a2mim.key_layouts import encoder_fields, timm_weights

from .models import (
    DINOV2,
    assert_published,
    assert_same_features,
    features,
    images,
    make,
    published,
    stored,
    timm_features,
)


pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
SWIGLU = {"use_swiglu_ffn": True}


def sized(model_type: str, size: str) -> dict:
    dims = dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads"), SIZES[size], strict=True))
    data = {"model_type": model_type, "image_size": 518, "patch_size": 14, "mlp_ratio": 4, **dims}
    return data | SWIGLU if size == "giant" else data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config", "left_over"),
    [
        ("Dinov2Model", DINOV2, ["embeddings.mask_token"]),
        ("Dinov2Model", DINOV2 | {"use_mask_token": False, "qkv_bias": False, "hidden_act": "gelu_new"}, []),
        ("Dinov2Model", DINOV2 | SWIGLU | {"patch_size": 10}, None),
        (
            "Dinov2ForImageClassification",
            DINOV2,
            ["classifier.bias", "classifier.weight", "dinov2.embeddings.mask_token"],
        ),
        ("Dinov2WithRegistersModel", DINOV2, ["embeddings.mask_token"]),
        ("Dinov2WithRegistersModel", DINOV2 | {"num_register_tokens": 0}, None),
        ("Dinov2WithRegistersModel", DINOV2 | SWIGLU | {"num_register_tokens": 3}, None),
        ("Dinov2WithRegistersForImageClassification", DINOV2, None),
    ],
)
def test_features(cls, config, left_over, tmp_path):
    _, _, found = assert_same_features(cls, config, tmp_path)
    assert left_over in (None, found)


@pytest.mark.parametrize("cls", ["Dinov2Backbone", "Dinov2WithRegistersBackbone"])
def test_features_of_backbones(cls, tmp_path):
    assert_same_features(cls, DINOV2, tmp_path, patches=True)


@pytest.mark.parametrize(
    ("data", "name"),
    published(
        [
            (sized("dinov2", "small"), "vit_small_patch14_dinov2"),
            (sized("dinov2", "base"), "vit_base_patch14_dinov2"),
            (sized("dinov2", "large"), "vit_large_patch14_dinov2"),
            (sized("dinov2", "giant"), "vit_giant_patch14_dinov2"),
            (sized("dinov2_with_registers", "small"), "vit_small_patch14_reg4_dinov2"),
            (sized("dinov2_with_registers", "base"), "vit_base_patch14_reg4_dinov2"),
            (sized("dinov2_with_registers", "large"), "vit_large_patch14_reg4_dinov2"),
            (sized("dinov2_with_registers", "giant"), "vit_giant_patch14_reg4_dinov2"),
        ]
    ),
)
def test_published_sizes(data, name):
    assert_published(data, name)
    assert encoder_fields(data)["image_size"] == 518  # what its positions are of


def test_defaults_of_the_classes():
    """Images of 224 px; with registers, patches of 16 px."""
    assert_published({"model_type": "dinov2"}, "vit_base_patch14_dinov2")
    assert_published({"model_type": "dinov2_with_registers"}, "vit_base_patch14_reg4_dinov2", {"patch_size": 16})


@pytest.mark.parametrize("size", [70, 98, 42])
def test_images_of_another_size(size, tmp_path):
    """With registers, transformers resamples positions as timm does."""
    model = make("Dinov2WithRegistersModel", **DINOV2)
    config, weights = stored(model, tmp_path)
    encoder = resampling(config, weights)
    found, expected = timm_features(encoder, images(size)), features(model, images(size))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_positions_without_registers_are_resampled_otherwise(tmp_path):
    """transformers leaves out the antialias of timm: a difference for other sizes alone, which here, with positions
    that are noise, is 0.1 of the features' size. Everything else is the same: with constant positions, all of it."""
    model = make("Dinov2Model", **DINOV2)
    config, weights = stored(model, tmp_path)
    assert 1e-3 < distance(model, resampling(config, weights), 42) < 0.2
    assert distance(model, resampling(config, weights), 70) < 1e-6
    with torch.no_grad():
        model.embeddings.position_embeddings[:, 1:] = model.embeddings.position_embeddings[:, 1:2]
    config, weights = stored(model, tmp_path)
    assert distance(model, resampling(config, weights), 42) < 1e-6


def resampling(config: dict, weights: dict):
    """timm's encoder, which takes images of any size."""
    fields = encoder_fields(config)
    args = fields["model_args"] | {"img_size": fields["image_size"], "dynamic_img_size": True}
    encoder = timm.create_model(fields["architecture"], num_classes=0, **args).eval()
    encoder.load_state_dict(timm_weights(config, weights)[0])
    return encoder


def distance(model, encoder, size: int) -> float:
    """Root mean square of the difference, as a share of the features'."""
    expected = features(model, images(size))
    return ((timm_features(encoder, images(size)) - expected).norm() / expected.norm()).item()
