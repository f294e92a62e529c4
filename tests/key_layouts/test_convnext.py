"""ConvNeXt, V2 and DINOv3's: the same features, also after pooling, and the published sizes."""

import pytest
import torch

from modeling_a2mim.key_layouts import encoder_fields, timm_weights

from .models import (
    CONVNEXT,
    assert_published,
    assert_same_features,
    images,
    load,
    make,
    published,
    stored,
    timm_features,
)


pytestmark = pytest.mark.usefixtures("one_thread")
ATTO = {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2], "image_size": 32}
SIZES = {
    "atto": ([2, 2, 6, 2], 40),
    "femto": ([2, 2, 6, 2], 48),
    "pico": ([2, 2, 6, 2], 64),
    "nano": ([2, 2, 8, 2], 80),
    "tiny": ([3, 3, 9, 3], 96),
    "small": ([3, 3, 27, 3], 96),
    "base": ([3, 3, 27, 3], 128),
    "large": ([3, 3, 27, 3], 192),
    "xlarge": ([3, 3, 27, 3], 256),
    "huge": ([3, 3, 27, 3], 352),
}


def sized(model_type: str, size: str) -> dict:
    depths, width = SIZES[size]
    return {"model_type": model_type, "depths": depths, "hidden_sizes": [width * 2**i for i in range(4)]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("ConvNextModel", CONVNEXT | {"num_channels": 1, "image_size": [64, 96]}),
        ("ConvNextModel", CONVNEXT | {"layer_scale_init_value": 0.0, "hidden_act": "relu"}),
        ("ConvNextModel", ATTO),  # which timm builds of convolutions alone
        ("ConvNextForImageClassification", CONVNEXT),
        ("ConvNextV2Model", CONVNEXT),
        ("ConvNextV2Model", ATTO),
        ("ConvNextV2ForImageClassification", CONVNEXT),
    ],
)
def test_features(cls, config, tmp_path):
    """And what a classifier gets of them."""
    model, encoder, left_over = assert_same_features(cls, config, tmp_path)
    assert left_over == (["classifier.bias", "classifier.weight"] if "Classification" in cls else [])
    bare = model if cls.endswith("Model") else getattr(model, model.base_model_prefix)
    pixels = images(config["image_size"], config.get("num_channels", 3))
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), bare(pixels).pooler_output, atol=1e-4, rtol=0)


def test_features_of_dinov3(tmp_path):
    """transformers puts the mean of all tokens before them, and normalises both."""
    model = make("DINOv3ConvNextModel", **CONVNEXT, layer_norm_eps=1e-3)
    config, _ = stored(model, tmp_path)
    assert encoder_fields(config)["model_args"]["norm_eps"] == 1e-3
    for original in (True, False):
        encoder, left_over = load(*stored(model, tmp_path, save_original_format=original))
        assert left_over == []
        with torch.no_grad():
            expected = model(images(64)).last_hidden_state
            tokens = encoder.head.norm(encoder.forward_features(images(64))).flatten(2).transpose(1, 2)
            found = torch.cat([encoder(images(64))[:, None], tokens], dim=1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cls", ["ConvNextBackbone", "ConvNextV2Backbone", "DINOv3ConvNextBackbone"])
def test_features_of_backbones(cls, tmp_path):
    """Before the norms that some have of each map, which are no norm of pooled features."""
    model = make(cls, **CONVNEXT)
    encoder, left_over = load(*stored(model, tmp_path))
    norms = (
        [] if cls.startswith("DINOv3") else ["hidden_states_norms.stage4.bias", "hidden_states_norms.stage4.weight"]
    )
    assert left_over == norms
    with torch.no_grad():
        expected = model(images(64), output_hidden_states=True).hidden_states[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(timm_features(encoder, images(64)), expected, atol=1e-4, rtol=0)
    assert set(encoder.head.norm.weight.tolist()) == {1.0}


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("data", "name"),
    published(
        [
            *((sized("convnext", size), f"convnext_{size}") for size in ("tiny", "small", "base", "large", "xlarge")),
            *((sized("convnextv2", size), f"convnextv2_{size}") for size in SIZES if size not in ("small", "xlarge")),
            *((sized("dinov3_convnext", size), f"convnext_{size}") for size in ("tiny", "small", "base", "large")),
            ({"model_type": "convnext"}, "convnext_tiny"),
            ({"model_type": "convnextv2"}, "convnextv2_tiny"),
            ({"model_type": "dinov3_convnext"}, "convnext_tiny"),
        ]
    ),
)
def test_published_sizes(data, name):
    assert_published(data, name)


def test_sizes_without_a_name():
    """timm has no V1 of the largest size of V2, and the other way round."""
    for model_type, size in (("convnext", "huge"), ("convnextv2", "xlarge")):
        depths, width = SIZES[size]
        args = {"depths": depths, "dims": [width * 2**i for i in range(4)]}
        assert_published(sized(model_type, size), f"{model_type}_tiny", args)
    data = sized("convnext", "base") | {"drop_path_rate": 0.2}
    assert encoder_fields(data)["model_args"] == {"drop_path_rate": 0.2}


def test_weights_are_not_shared_with_what_was_read(tmp_path):
    """Nothing that was read is changed."""
    config, weights = stored(make("ConvNextV2Model", **CONVNEXT), tmp_path)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    timm_weights(config, weights)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in before)
