"""Values of a configuration that timm's encoder cannot have: each is named, none is passed over."""

import pytest

from modeling_a2mim.key_layouts import encoder_fields
from modeling_a2mim.key_layouts.config import mlp_ratio


GATED = {"use_gated_mlp": True}


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        *(
            (name, "hidden_act", "selu")
            for name in ("vit", "deit", "vit_mae", "ijepa", "dinov2", "convnext", "swinv2")
        ),
        # Encoders whose activation is no argument.
        *((name, "hidden_act", "relu") for name in ("beit", "data2vec-vision", "swin", "dinov3_vit")),
        *((name, "hidden_act", "gelu") for name in ("resnet", "regnet")),
        *((name, "layer_norm_eps", 1e-3) for name in ("vit", "dinov2_with_registers", "dinov3_vit", "beit", "swin")),
        ("vit", "layer_norm_eps", 1e-5),
        ("convnextv2", "layer_norm_eps", 1e-3),
        *((name, "hidden_dropout_prob", 0.1) for name in ("vit", "deit", "dinov2", "beit", "swin", "swinv2")),
        *((name, "attention_probs_dropout_prob", 0.1) for name in ("vit_mae", "ijepa", "data2vec-vision")),
        ("dinov3_vit", "attention_dropout", 0.1),
        *((name, "drop_path_rate", 0.2) for name in ("dinov2", "dinov2_with_registers", "dinov3_vit")),
        *((name, "patch_size", [16, 8]) for name in ("vit", "dinov2", "dinov3_vit", "beit", "swin")),
        ("convnext", "patch_size", 2),
        *((name, "image_size", [224, 448]) for name in ("dinov2", "dinov2_with_registers", "beit", "data2vec-vision")),
        *(("dinov3_vit", field, value) for field, value in (("key_bias", True), ("value_bias", False))),
        *(("dinov3_vit", field, False) for field in ("proj_bias", "mlp_bias")),
        *((name, "use_absolute_embeddings", True) for name in ("swin", "swinv2")),
        *(("resnet", field, True) for field in ("downsample_in_first_stage", "downsample_in_bottleneck")),
        ("resnet", "embedding_size", 32),
        ("resnet", "depths", [3, 4, 6]),
        ("resnet", "hidden_sizes", [250, 512, 1024, 2048]),
        ("convnext", "depths", [3, 3, 9]),
        ("regnet", "downsample_in_first_stage", False),
        ("regnet", "groups_width", 32),
    ],
)
def test_what_timm_cannot_have(model_type, field, value):
    with pytest.raises(ValueError, match=r"^model_name_or_path: \w+ is .* in its config\.json, ") as error:
        encoder_fields({"model_type": model_type, field: value})
    # Stages of groups are found by all of their values.
    named = "hidden_sizes" if field == "groups_width" else field
    assert f"{named} is " in str(error.value)
    assert field == "groups_width" or f"is {value!r} in" in str(error.value)


def test_an_activation_of_a_gated_mlp():
    with pytest.raises(ValueError, match=r"^model_name_or_path: hidden_act is 'gelu' in .* as with 'silu'"):
        encoder_fields({"model_type": "dinov3_vit", **GATED})


def test_what_acts_in_training_only_says_so():
    with pytest.raises(ValueError, match="it acts in training only: set it to 0 there"):
        encoder_fields({"model_type": "dinov2", "drop_path_rate": 0.2})


def test_what_transformers_cannot_read():
    with pytest.raises(ValueError, match=r"^model_name_or_path: transformers cannot read its config\.json: "):
        encoder_fields({"model_type": "vit", "hidden_size": "wide"})


def test_ratios_give_the_width_again():
    """timm cuts the product to an integer."""
    for width in range(8, 400, 24):
        for hidden in range(width, 6 * width, 7):
            assert int(width * mlp_ratio(hidden, width)) == hidden
