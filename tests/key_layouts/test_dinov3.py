"""The ViTs of DINOv3: the same features, also of images of another size, the same changes of coordinates in training,
and the published sizes."""

import pytest
import torch

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.key_layouts import encoder_fields

from .models import VIT, assert_published, assert_same_features, features, images, published, timm_features


pytestmark = pytest.mark.usefixtures("one_thread")
PUBLISHED = VIT | {"num_register_tokens": 4}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
RESCALED = {"rope_rescale_coords": 2.0}  # pos_embed_rescale


def sized(*dims: int, **data) -> dict:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return {"model_type": "dinov3_vit", "num_register_tokens": 4, **dict(zip(names, dims, strict=True)), **data}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        PUBLISHED,
        PUBLISHED | GATED | {"query_bias": False, "value_bias": False},
        PUBLISHED | GATED | {"intermediate_size": 45},
        VIT | {"image_size": [48, 32], "rope_theta": 50.0, "num_register_tokens": 0},
    ],
)
def test_features(config, tmp_path):
    """Also of images of another size than the configuration's: positions are computed of it."""
    model, encoder, left_over = assert_same_features("DINOv3ViTModel", config, tmp_path)
    assert left_over == ["embeddings.mask_token"]
    for size in (32, [64, 40]):
        found, expected = timm_features(encoder, images(size)), features(model, images(size))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_features_of_a_backbone(tmp_path):
    assert_same_features("DINOv3ViTBackbone", PUBLISHED, tmp_path, patches=True)


@pytest.mark.parametrize(
    ("data", "name"),
    published(
        [
            (sized(384, 12, 6, 1536), "vit_small_patch16_dinov3_qkvb"),
            (sized(384, 12, 6, 1536, **GATED), "vit_small_plus_patch16_dinov3_qkvb"),
            (sized(768, 12, 12, 3072), "vit_base_patch16_dinov3_qkvb"),
            (sized(1024, 24, 16, 4096), "vit_large_patch16_dinov3_qkvb"),
            (sized(1280, 32, 20, 5120, **GATED), "vit_huge_plus_patch16_dinov3_qkvb"),
            (sized(4096, 40, 32, 8192, query_bias=False, value_bias=False, **GATED), "vit_7b_patch16_dinov3"),
            (sized(768, 12, 12, 3072, query_bias=False, value_bias=False), "vit_base_patch16_dinov3"),
            (sized(192, 12, 3, 768), "vit_tiny_patch16_dinov3_qkvb"),
        ]
    ),
)
def test_published_sizes(data, name):
    assert_published(data, name, RESCALED)


def test_other_sizes_are_arguments():
    """Also where timm has the name with biases alone, or without alone."""
    assert_published({"model_type": "dinov3_vit"}, "vit_small_patch16_dinov3_qkvb", RESCALED | {"num_reg_tokens": 0})
    data = sized(192, 12, 3, 768, query_bias=False, value_bias=False)
    assert_published(data, "vit_tiny_patch16_dinov3_qkvb", RESCALED | {"qkv_bias": False})
    gated = {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
    gated |= {"swiglu_mlp": True, "swiglu_align_to": 1}
    assert_published(sized(768, 12, 12, 3072, **GATED), "vit_base_patch16_dinov3_qkvb", RESCALED | gated)


def test_coordinates_are_changed_in_training_as_in_transformers(tmp_path):
    """By a factor of the same range for both axes: the features of an image differ from draw to draw. With a range of
    no width they do not."""
    settings = {"pos_embed_shift": 0.5, "pos_embed_jitter": 1.5, "pos_embed_rescale": None}
    args = encoder_fields({"model_type": "dinov3_vit", **settings})["model_args"]
    assert args == {"num_reg_tokens": 0, "rope_shift_coords": 0.5, "rope_jitter_coords": 1.5}
    for rescale, changes in ((2.0, True), (None, False)):
        config = PUBLISHED | {"pos_embed_rescale": rescale}
        for network in assert_same_features("DINOv3ViTModel", config, tmp_path)[:2]:
            forward = features if hasattr(network, "config") else timm_features
            network.train()
            one, two = (forward(network, images(48)) for _ in range(2))
            assert torch.equal(one, two) is not changes


def test_pre_training_goes_on(tmp_path):
    """With masked images, and gradients for all but what no image passes."""
    fields = encoder_fields({"model_type": "dinov3_vit", **PUBLISHED})
    model = A2MIMForPreTraining(A2MIMConfig.vit(**fields)).train()
    model(images(48)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
