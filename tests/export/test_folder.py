"""The exported folder, loaded by people who have never heard of this package."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.loading import load_pretraining_model
from modeling_a2mim.models.start import load_into_encoder

from ..families import family_config


NAMES = ["cat", "dog", "hen"]


def models(family, **kwargs):
    config = family_config(family, **kwargs)
    pretraining = A2MIMForPreTraining(config).eval()
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    classifier = A2MIMForImageClassification(family_config(family, **kwargs, **labels)).eval()
    load_into_encoder(classifier, pretraining.a2mim.encoder.state_dict())
    return pretraining, classifier


def test_files_and_contents(tmp_path):
    pretraining, _ = models("resnet")
    export_model(pretraining, tmp_path)
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "README.md",
        "config.json",
        "model.safetensors",
        "pretraining/config.json",
        "pretraining/model.safetensors",
    ]
    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == pretraining.a2mim.encoder.state_dict().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == 0
    assert "img_size" not in config["model_args"]
    for file in tmp_path.rglob("*.[jm][sd]*"):
        assert str(tmp_path) not in file.read_text(), file
    for file in tmp_path.rglob("*.safetensors"):
        assert file.stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_pretraining_folder_continues(tmp_path):
    pretraining, _ = models("swin")
    export_model(pretraining, tmp_path)
    again = A2MIMForPreTraining.from_pretrained(tmp_path, subfolder="pretraining").eval()
    pixels, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 4, 4) < 0.5
    with torch.no_grad():
        assert torch.equal(again(pixels, mask).reconstruction, pretraining(pixels, mask).reconstruction)
    for source in (tmp_path, tmp_path / "pretraining"):
        loaded = load_pretraining_model(str(source))
        assert all(map(torch.equal, loaded.state_dict().values(), pretraining.state_dict().values()))


def test_a_folder_of_before_there_was_a_choice_of_decoders(tmp_path):
    pretraining, _ = models("resnet")
    export_model(pretraining, tmp_path)
    path = tmp_path / "pretraining" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("decoder") == "linear"
    path.write_text(json.dumps(config))
    again = load_pretraining_model(str(tmp_path))
    assert again.config.decoder == "linear"
    assert torch.equal(again.decoder.weight, pretraining.decoder.weight)


def test_export_again_replaces_and_leaves_the_rest(tmp_path):
    first, _ = models("resnet")
    export_model(first, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    torch.manual_seed(1)
    second, _ = models("resnet")
    export_model(second, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["conv1.0.weight"], second.a2mim.encoder.conv1[0].weight
    )
    assert not list(tmp_path.glob(".export*"))


def test_a_failed_export_changes_nothing(tmp_path, monkeypatch):
    model, _ = models("resnet")
    export_model(model, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(A2MIMForPreTraining, "save_pretrained", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        export_model(models("resnet")[0], tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
