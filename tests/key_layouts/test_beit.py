"""BEiT and data2vec: the same features with each kind of positions and norms, and the published sizes."""

import pytest
import torch

from modeling_a2mim.key_layouts import encoder_fields

from .models import BEIT, VIT, assert_published, assert_same_features, images, published


pytestmark = pytest.mark.usefixtures("one_thread")
SHARED = VIT | {"use_shared_relative_position_bias": True}
RELATIVE = {"use_relative_position_bias": True, "use_mean_pooling": True}
RATE = {"drop_path_rate": 0.1}  # transformers' default


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config", "left_over"),
    [
        ("BeitModel", BEIT, []),
        ("BeitModel", BEIT | {"use_mean_pooling": False, "use_mask_token": True}, ["embeddings.mask_token"]),
        ("BeitModel", SHARED | BEIT | {"layer_scale_init_value": 0.0}, []),
        ("BeitModel", VIT | {"use_absolute_position_embeddings": True}, []),
        ("BeitForImageClassification", SHARED, ["classifier.bias", "classifier.weight"]),
        (
            "BeitForMaskedImageModeling",
            BEIT | {"use_mean_pooling": False},
            ["layernorm.bias", "layernorm.weight", "lm_head.bias", "lm_head.weight"],
        ),
        ("Data2VecVisionModel", SHARED, []),
        ("Data2VecVisionModel", BEIT | {"use_mean_pooling": False}, []),
        ("Data2VecVisionForImageClassification", SHARED | BEIT, ["classifier.bias", "classifier.weight"]),
    ],
)
def test_features(cls, config, left_over, tmp_path):
    _, _, found = assert_same_features(cls, config, tmp_path)
    assert found == left_over


def test_the_norm_before_visual_tokens_is_the_encoders(tmp_path):
    """Where it has none of the tokens of its own, as in the published models before fine-tuning."""
    config = BEIT | {"use_mask_token": True}
    _, _, left_over = assert_same_features(
        "BeitForMaskedImageModeling", config, tmp_path, head=lambda model: model.layernorm
    )
    assert left_over == ["beit.embeddings.mask_token", "lm_head.bias", "lm_head.weight"]


def test_features_of_a_backbone(tmp_path):
    """With a pyramid, which is none of the encoder's."""
    config = BEIT | SHARED | {"num_hidden_layers": 4, "add_fpn": False, "out_indices": [4]}
    assert_same_features("BeitBackbone", config, tmp_path, patches=True)


def test_the_norm_after_pooling(tmp_path):
    """Is the pooler's, and a new one where there is no pooler."""
    model, encoder, _ = assert_same_features("BeitModel", BEIT, tmp_path)
    with torch.no_grad():
        found, expected = encoder(images(48)), model(images(48)).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    _, encoder, _ = assert_same_features("Data2VecVisionModel", BEIT, tmp_path)
    assert set(encoder.fc_norm.weight.tolist()) == {1.0}
    assert set(encoder.fc_norm.bias.tolist()) == {0.0}


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("data", "name", "args"),
    published(
        [
            (RELATIVE, "beit_base_patch16_224", {}),
            (RELATIVE | {"image_size": 384}, "beit_base_patch16_384", {}),
            (RELATIVE | {"hidden_size": 1024}, "beit_large_patch16_224", {}),
            (RELATIVE | {"hidden_size": 1024, "image_size": 512}, "beit_large_patch16_512", {}),
            # Before fine-tuning, all blocks share one table.
            (
                {"use_shared_relative_position_bias": True, "use_mean_pooling": False, "use_mask_token": True},
                "beit_base_patch16_224",
                {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"},
            ),
            ({}, "beit_base_patch16_224", {"use_rel_pos_bias": False}),
        ]
    ),
)
@pytest.mark.parametrize("model_type", ["beit", "data2vec-vision"])
def test_published_sizes(model_type, data, name, args):
    large = {"num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    data = data | large if data.get("hidden_size") == 1024 else data
    assert_published({"model_type": model_type, **data}, name, args | RATE)


def test_stochastic_depth():
    assert encoder_fields({"model_type": "beit", **RELATIVE, "drop_path_rate": 0.0})["model_args"] == {}
