"""ViT, DeiT, MAE and I-JEPA: the same features, and the names of the published sizes."""

import pytest
import torch

from modeling_a2mim.key_layouts import encoder_fields

from .models import VIT, assert_published, assert_same_features, published


pytestmark = pytest.mark.usefixtures("one_thread")
MAE = VIT | {"mask_ratio": 0.0, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
MAE |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
}


def sized(model_type: str, size: str, patch: int = 16, image: int = 224) -> dict:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    dims = dict(zip(names, SIZES[size], strict=True))
    return {"model_type": model_type, "patch_size": patch, "image_size": image, **dims}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config", "left_over"),
    [
        ("ViTModel", VIT, ["pooler.dense.bias", "pooler.dense.weight"]),
        ("ViTModel", VIT | {"image_size": [32, 48], "num_channels": 2, "qkv_bias": False}, None),
        ("ViTForImageClassification", VIT | {"hidden_act": "gelu_new"}, ["classifier.bias", "classifier.weight"]),
        ("ViTForImageClassification", VIT | {"hidden_act": "quick_gelu"}, None),
        (
            "ViTForMaskedImageModeling",
            VIT | {"hidden_act": "relu"},
            ["decoder.0.bias", "decoder.0.weight", "vit.embeddings.mask_token"],
        ),
        ("DeiTModel", VIT, ["pooler.dense.bias", "pooler.dense.weight"]),
        ("DeiTForImageClassification", VIT, ["classifier.bias", "classifier.weight"]),
        ("DeiTForImageClassificationWithTeacher", VIT | {"hidden_act": "silu"}, None),
        ("DeiTForMaskedImageModeling", VIT, None),
        ("IJepaModel", VIT, []),
        ("IJepaForImageClassification", VIT, ["classifier.bias", "classifier.weight"]),
    ],
)
def test_features(cls, config, left_over, tmp_path):
    _, _, found = assert_same_features(cls, config, tmp_path)
    assert left_over in (None, found)


@pytest.mark.parametrize("cls", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_features_of_mae(cls, tmp_path):
    """Of all patches, in their order."""
    noise = torch.arange(36.0).expand(2, 36)
    _, _, left_over = assert_same_features(cls, MAE, tmp_path, noise=noise)
    assert all(name.startswith("decoder.") for name in left_over)
    assert bool(left_over) == cls.endswith("ForPreTraining")


@pytest.mark.parametrize(
    ("data", "name"),
    published(
        [
            ({"model_type": "vit"}, "vit_base_patch16_224"),
            (sized("vit", "tiny"), "vit_tiny_patch16_224"),
            (sized("vit", "small"), "vit_small_patch16_224"),
            (sized("vit", "base", image=384), "vit_base_patch16_384"),
            (sized("vit", "base", patch=32), "vit_base_patch32_224"),
            (sized("vit", "base", patch=8), "vit_base_patch8_224"),
            (sized("vit", "base", image=512), "vit_base_patch16_224"),
            (sized("vit", "large"), "vit_large_patch16_224"),
            (sized("vit", "large", patch=32, image=384), "vit_large_patch32_384"),
            (sized("vit", "huge", patch=14), "vit_huge_patch14_224"),
            ({"model_type": "deit"}, "deit_base_distilled_patch16_224"),
            (sized("deit", "tiny"), "deit_tiny_distilled_patch16_224"),
            (sized("deit", "small"), "deit_small_distilled_patch16_224"),
            (sized("deit", "base", image=384), "deit_base_distilled_patch16_384"),
            ({"model_type": "vit_mae"}, "vit_base_patch16_224"),
            (sized("vit_mae", "large"), "vit_large_patch16_224"),
            (sized("vit_mae", "huge", patch=14), "vit_huge_patch14_224"),
            (sized("ijepa", "huge", patch=14), "vit_huge_patch14_gap_224"),
            (sized("ijepa", "huge", image=448), "vit_huge_patch16_gap_448"),
            (sized("ijepa", "giant"), "vit_giant_patch16_gap_224"),
        ]
    ),
)
def test_published_sizes(data, name):
    assert_published(data, name)


def test_other_sizes_are_arguments():
    fields = encoder_fields(sized("vit", "small", patch=14) | {"intermediate_size": 1000})
    args = {"embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_ratio": fields["model_args"]["mlp_ratio"]}
    assert fields["model_args"] == args | {"patch_size": 14}
    assert int(384 * args["mlp_ratio"]) == 1000
    # timm's base of this kind has 16 heads.
    assert encoder_fields({"model_type": "ijepa"})["model_args"]["num_heads"] == 12
