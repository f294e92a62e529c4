"""`page.models`: what models are found to do, and which are refused."""

import pytest
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.page.models import abilities, check_used, open_models
from modeling_a2mim.page.uploads import as_seen

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit", (True, True)),
        ("resnet", (True, False)),
        ("several", (False, True)),
        ("number", (False, True)),
        ("plain", (False, False)),
        ("vit/pretraining", (True, False)),
    ],
)
def test_abilities(folder, name, expected):
    assert abilities(str(folder / name)) == expected


def test_a_folder_of_pretraining_alone(tmp_path):
    A2MIMForPreTraining(family_config("vit")).save_pretrained(tmp_path / "pretraining")
    assert abilities(str(tmp_path)) == (True, False)


def test_models_of_transformers(tmp_path, folder):
    config = ViTConfig(**SMALL, num_labels=3)
    ViTForImageClassification(config).save_pretrained(tmp_path / "classifier")
    ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False).save_pretrained(tmp_path / "classifier")
    ViTModel(config).save_pretrained(tmp_path / "encoder")
    assert abilities(str(tmp_path / "encoder")) == (False, False)
    (model,) = open_models([str(tmp_path / "classifier")])
    assert model.pretraining is None
    pixels, shown = as_seen(model.classifier.model, model.classifier.transform, str(folder / "image.png"))
    assert pixels.shape == (1, 3, 32, 32)
    assert shown.size == (256, 256)


def test_opened(folder):
    models = open_models([str(folder / name) for name in ("vit", "resnet", "plain")], ["a", "b", "c"])
    assert [(model.name, model.pretraining is not None, model.classifier is not None) for model in models] == [
        ("a", True, True),
        ("b", True, False),
        ("c", False, False),
    ]
    check_used(models, "c", "vectors.parquet")
    with pytest.raises(ValueError, match=r"plain: is an encoder alone, .*\s--embeddings"):
        check_used(models, None, None)
    with pytest.raises(ValueError, match=r"plain: neither .* vectors.parquet was written by another model; leave"):
        check_used(models, "a", "vectors.parquet")


def test_names(folder):
    vit = str(folder / "vit")
    with pytest.raises(ValueError, match=r"^names: there are several models called vit; .* --names"):
        open_models([vit, vit])
    with pytest.raises(ValueError, match="^names: expected one for each of 1 models, got 2"):
        open_models([vit], ["a", "b"])


def test_channels_that_nobody_can_upload(tmp_path):
    export_model(A2MIMForPreTraining(family_config("vit", num_channels=5)), tmp_path / "five")
    with pytest.raises(ValueError, match="five: takes images of 5 channels; those that are uploaded have 1, 3 or 4"):
        open_models([str(tmp_path / "five")])


def test_no_models(tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoint, it has no config.json"):
        abilities(str(tmp_path))
    for text, message in (("{", "its config.json cannot be read"), ("[1]", "its config.json is no JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            abilities(str(tmp_path))
