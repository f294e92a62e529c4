"""Encoders, classifiers and pre-training models from folders, exported or saved."""

import shutil

import pytest
import torch

from modeling_a2mim import A2MIMForImageClassification, A2MIMModel
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.loading import earlier_of, load_encoder, load_pretraining_model
from modeling_a2mim.models.start import load_into_encoder

from ..families import family_config
from .test_folder import models


def test_load_encoder(tmp_path):
    pretraining, _ = models("vit")
    export_model(pretraining, tmp_path)
    config, weights = load_encoder(str(tmp_path))
    assert config.architecture == "test_vit"
    assert weights.keys() == pretraining.a2mim.encoder.state_dict().keys()
    for path in (tmp_path / "pretraining").iterdir():
        path.unlink()
    (tmp_path / "pretraining").rmdir()
    config, weights = load_encoder(str(tmp_path))
    assert config.input_size == (64, 64)
    model = A2MIMModel(config)
    model.encoder.load_state_dict(weights)
    with pytest.raises(ValueError, match=r"^model_name_or_path: .* cannot be read"):
        load_encoder(str(tmp_path / "pretraining"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^model_name_or_path: .*empty holds no checkpoint"):
        load_encoder(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="is a file"):
        export_model(pretraining, tmp_path / "config.json")


def test_load_encoder_of_our_own_checkpoints(tmp_path):
    for model in models("resnet"):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        config, weights = load_encoder(str(folder))
        assert config.architecture == "test_resnet"
        classifier = A2MIMForImageClassification(family_config("resnet"))
        load_into_encoder(classifier, weights)
        assert torch.equal(classifier.a2mim.encoder.layer4[0].conv1.weight, model.a2mim.encoder.layer4[0].conv1.weight)


def test_a_broken_checkpoint_is_named(tmp_path):
    """Neither stands in for the other: the encoder in the root, and the pre-training model."""
    model = models("resnet")[0]
    export_model(model, tmp_path)
    (tmp_path / "pretraining" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no pre-training model there: .*model.safetensors"):
        load_pretraining_model(str(tmp_path))
    assert torch.equal(load_encoder(str(tmp_path))[1]["conv1.0.weight"], model.a2mim.encoder.conv1[0].weight)
    shutil.rmtree(tmp_path / "pretraining")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^model_name_or_path: .* no model\.safetensors"):
        load_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^model_name_or_path: .* is no timm checkpoint"):
        load_encoder(str(tmp_path))


def test_mean_pooled_vit_gets_a_new_norm():
    weights = models("vit")[0].a2mim.encoder.state_dict()
    model = A2MIMForImageClassification(family_config("vit", model_args={"global_pool": "avg", "fc_norm": True}))
    load_into_encoder(model, weights)
    assert torch.equal(model.a2mim.encoder.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])
    with pytest.raises(ValueError, match=r"^model_name_or_path: weights missing or left over: extra"):
        load_into_encoder(model, {**weights, "extra": torch.zeros(1)})


def test_the_method_of_weights_without_a_record(tmp_path):
    """Which the settings beside them tell, and nothing else."""
    pretraining, classifier = models("resnet", mask_fill="none", mask_token_mode="replace", mask_gamma_init=None)
    export_model(pretraining, tmp_path / "encoder")
    pretraining.save_pretrained(tmp_path / "checkpoint")
    export_model(classifier, tmp_path / "classifier")
    method = [{"task": "masked image modelling", "method": "a mixture of A2MIM and SimMIM"}]
    found = [earlier_of(str(tmp_path / name)) for name in ("encoder", "checkpoint", "classifier")]
    assert found == [method, method, []]
