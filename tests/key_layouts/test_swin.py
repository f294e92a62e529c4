"""Swin and V2: the same features, the published sizes, and images that make no whole windows."""

import pytest

from modeling_a2mim.key_layouts import encoder_fields, timm_weights

from .models import SWIN, assert_published, assert_same_features, make, published, stored


pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {
    "tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "small": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "base": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
    "large": (192, [2, 2, 18, 2], [6, 12, 24, 48]),
}


def sized(model_type: str, size: str, window: int = 7, image: int = 224, **data) -> dict:
    dims = dict(zip(("embed_dim", "depths", "num_heads"), SIZES[size], strict=True))
    return {"model_type": model_type, "window_size": window, "image_size": image, **dims, **data}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("SwinModel", SWIN),
        ("SwinModel", SWIN | {"window_size": 8, "image_size": [64, 64], "patch_size": 4}),  # one window in the end
        ("SwinModel", SWIN | {"image_size": [64, 96], "num_channels": 1}),
        ("SwinForImageClassification", SWIN),
        ("SwinForMaskedImageModeling", SWIN | {"qkv_bias": False, "mlp_ratio": 3}),
        ("Swinv2Model", SWIN | {"hidden_act": "relu"}),
        # Windows as large as a map, with coordinates of others.
        ("Swinv2Model", SWIN | {"window_size": 16, "pretrained_window_sizes": [6, 6]}),
        ("Swinv2ForImageClassification", SWIN | {"qkv_bias": False, "patch_size": 2, "image_size": 32}),
        ("Swinv2ForMaskedImageModeling", SWIN | {"image_size": [64, 96]}),
    ],
)
def test_features(cls, config, tmp_path):
    _, _, left_over = assert_same_features(cls, config, tmp_path)
    kinds = {
        "classifier": "Classification" in cls,
        "decoder": "Masked" in cls,
        "embeddings.mask_token": "Masked" in cls,
    }
    for kind, expected in kinds.items():
        assert any(kind in name for name in left_over) is expected


@pytest.mark.parametrize("config", [{"out_indices": [1, 2]}, {"window_size": 8, "out_indices": [2]}])
def test_features_of_a_backbone(config, tmp_path):
    """Which shifts windows even where there is but one, and has a norm of its own for the last map."""
    _, encoder, left_over = assert_same_features("SwinBackbone", SWIN | config, tmp_path)
    assert encoder.layers[-1].blocks[1].shift_size == (config.get("window_size", 4) // 2,) * 2
    assert ("hidden_states_norms.stage1.weight" in left_over) is (1 in config["out_indices"])
    assert "swin.layernorm.weight" in left_over


def test_a_backbone_without_a_last_norm(tmp_path):
    """Has less than the encoder."""
    config, weights = stored(make("Swinv2Backbone", **SWIN), tmp_path)
    with pytest.raises(ValueError, match=r"^model_name_or_path: it has no weights for norm\.weight, norm\.bias"):
        timm_weights(config, weights)


RATE = {"drop_path_rate": 0.1}


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("data", "name", "args"),
    published(
        [
            ({"model_type": "swin"}, "swin_tiny_patch4_window7_224", {}),
            (sized("swin", "small"), "swin_small_patch4_window7_224", {}),
            (sized("swin", "base"), "swin_base_patch4_window7_224", {}),
            (sized("swin", "base", 12, 384), "swin_base_patch4_window12_384", {}),
            (sized("swin", "large"), "swin_large_patch4_window7_224", {}),
            (sized("swin", "large", 12, 384), "swin_large_patch4_window12_384", {}),
            (sized("swin", "base", 6, 192), "swin_base_patch4_window7_224", {"window_size": 6}),
            (sized("swin", "tiny", drop_path_rate=0.0), "swin_tiny_patch4_window7_224", {"drop_path_rate": 0.0}),
            ({"model_type": "swinv2"}, "swinv2_tiny_window8_256", {"window_size": 7}),
            (sized("swinv2", "tiny", 8, 256), "swinv2_tiny_window8_256", {}),
            (sized("swinv2", "tiny", 16, 256), "swinv2_tiny_window16_256", {}),
            (sized("swinv2", "small", 16, 256), "swinv2_small_window16_256", {}),
            (sized("swinv2", "base", 12, 192), "swinv2_base_window12_192", {}),
            (sized("swinv2", "large", 12, 192), "swinv2_large_window12_192", {}),
            (
                sized("swinv2", "base", 16, 256, pretrained_window_sizes=[12, 12, 12, 6]),
                "swinv2_base_window12to16_192to256",
                {},
            ),
            (
                sized("swinv2", "large", 24, 384, pretrained_window_sizes=[12, 12, 12, 6]),
                "swinv2_large_window12to24_192to384",
                {},
            ),
        ]
    ),
)
def test_published_sizes(data, name, args):
    assert_published(data, name, args)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        # Measured: features differ by 1 and more, since transformers pads before it shifts.
        ("swin", {"image_size": 80, "window_size": 8}),
        ("swinv2", {"image_size": 72, "window_size": 4}),
        ("swin", {"image_size": [32, 64], "window_size": 4}),
        ("swinv2", {"image_size": [32, 64], "window_size": 4}),
        ("swin", {"image_size": 32, "window_size": 8}),
        ("swin", {"image_size": 62}),
    ],
)
def test_images_without_whole_windows(model_type, config):
    with pytest.raises(ValueError, match=r"^model_name_or_path: image_size is .* in its config\.json, "):
        encoder_fields({"model_type": model_type, **SWIN, **config})
