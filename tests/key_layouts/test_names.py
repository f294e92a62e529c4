"""Names of weights: what is unknown, missing, there twice or of another shape is an error that names it."""

import pytest
import torch

from modeling_a2mim.key_layouts import timm_weights
from modeling_a2mim.key_layouts.names import fuse_qkv, rename_all

from .models import BEIT, SWIN, VIT, make, stored


NORM = "encoder.layer.1.layernorm_before.weight"
KEY = "encoder.layer.2.attention.attention.key"


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return stored(make("ViTModel", **VIT), tmp_path_factory.mktemp("vit"))


@pytest.mark.parametrize("name", ["prompt_tokens", "encoder.layer.3.layernorm_before.weight", "vit.embeddings.scale"])
def test_unknown_weights(vit, name):
    config, weights = vit
    message = rf"^model_name_or_path: it holds {name}, which is not known as a weight of a vit of transformers"
    with pytest.raises(ValueError, match=message):
        timm_weights(config, weights | {name: torch.ones(32)})


def test_weights_of_another_family(vit, tmp_path):
    """Are no weights of this one, but for those of the same name."""
    config, _ = vit
    _, others = stored(make("SwinModel", **SWIN), tmp_path)
    with pytest.raises(ValueError, match=r"^model_name_or_path: it holds embeddings\.norm\.bias, which is not known"):
        timm_weights(config, others)


@pytest.mark.parametrize(
    ("missing", "named"), [(NORM, r"blocks\.1\.norm1\.weight"), ("embeddings.cls_token", "cls_token")]
)
def test_missing_weights(vit, missing, named):
    config, weights = vit
    with pytest.raises(ValueError, match=rf"^model_name_or_path: it has no weights for {named} \(timm's names\)"):
        timm_weights(config, {name: tensor for name, tensor in weights.items() if name != missing})


def test_no_weights(vit):
    """Or those of a head alone."""
    for weights in ({}, {"classifier.weight": torch.ones(2, 32)}):
        with pytest.raises(ValueError, match=r"^model_name_or_path: it has no weights for cls_token, pos_embed, "):
            timm_weights(vit[0], weights)


def test_a_part_of_an_attention_is_missing(vit):
    """The others are not fused, and named."""
    config, weights = vit
    part = {name: tensor for name, tensor in weights.items() if name != f"{KEY}.bias"}
    with pytest.raises(ValueError, match=r"it holds encoder\.layer\.2\.attention\.attention\.(query|value)\.bias, "):
        timm_weights(config, part)


def test_a_bias_of_keys_that_the_encoder_has_not(tmp_path):
    config, weights = stored(make("BeitModel", **BEIT), tmp_path)
    with pytest.raises(ValueError, match=rf"it holds {KEY}\.bias, which is not known as a weight of a beit"):
        timm_weights(config, weights | {f"{KEY}.bias": torch.ones(32)})


def test_weights_of_another_shape(vit):
    config, weights = vit
    message = rf"^model_name_or_path: {NORM} is of shape \(31,\), by its config\.json .* has \(32,\)"
    with pytest.raises(ValueError, match=message):
        timm_weights(config, weights | {NORM: torch.ones(31)})
    with pytest.raises(ValueError, match=r"position_embeddings is of shape \(1, 37, 32\), .* has \(1, 17, 32\)"):
        timm_weights(config | {"image_size": 32}, weights)


def test_a_weight_that_is_there_twice(vit):
    config, weights = vit
    twin = {"layers.1.layernorm_before.weight": torch.ones(32)}
    with pytest.raises(ValueError, match=r"it holds blocks\.1\.norm1\.weight of the encoder twice, as "):
        timm_weights(config, weights | twin)
    with pytest.raises(ValueError, match="it holds c of the encoder twice, as a and as b"):
        rename_all(["a", "b"], [("[ab]", "c")])


def test_several_files(vit, tmp_path):
    """The same weights of one file and of many."""
    one = timm_weights(*vit)
    many = timm_weights(*stored(make("ViTModel", **VIT), tmp_path, max_shard_size="20KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert one[1] == many[1]
    assert all(torch.equal(one[0][name], many[0][name]) for name in one[0])


def test_what_earlier_releases_stored(tmp_path):
    """Indices of relative positions are left over."""
    config, weights = stored(make("SwinModel", **SWIN), tmp_path / "swin")
    name = "encoder.layers.0.blocks.0.attention.self.relative_position_index"
    assert timm_weights(config, weights | {name: torch.zeros(16, 16)})[1] == [name]
    config, weights = stored(make("BeitModel", **BEIT), tmp_path / "beit")
    name = "encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"
    assert timm_weights(config, weights | {name: torch.zeros(37, 37)})[1] == [name]


def test_parts_are_fused_in_their_order():
    weights = {f"blocks.0.attn.{letter}.weight": torch.full((2, 3), i) for i, letter in enumerate("qkv")}
    weights |= {f"blocks.0.attn.{letter}.bias": torch.full((2,), i) for i, letter in enumerate("qkv")}
    fused = fuse_qkv(weights, separate_biases=False)
    assert fused["blocks.0.attn.qkv.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert fused["blocks.0.attn.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]
    assert fused.keys() == {"blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"}
    del weights["blocks.0.attn.k.bias"]
    fused = fuse_qkv(weights, separate_biases=True)
    assert fused["blocks.0.attn.q_bias"].tolist() == [0, 0]
    assert fused["blocks.0.attn.v_bias"].tolist() == [2, 2]
    assert len(fused) == 3
