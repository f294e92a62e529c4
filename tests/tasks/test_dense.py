"""What segmentation and detection share: the card, and what the Hub gets."""

import re

import pytest

from modeling_a2mim import A2MIMBackbone, A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.arguments.dense import DenseModelArguments
from modeling_a2mim.export.hub import uploaded_files
from modeling_a2mim.export.model_card import DenseTask, dense_card
from modeling_a2mim.tasks.encoder import build_backbone

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")


def test_pyramid_from_pretrained_has_values(tmp_path):
    """What is not in a checkpoint gets torch's own first values, and not whatever was in memory."""
    A2MIMForPreTraining(family_config("vit")).save_pretrained(tmp_path)
    config = A2MIMConfig.from_pretrained(tmp_path, out_indices=[0, 2, 3, 5])
    config.feature_pyramid = True
    backbone = A2MIMBackbone.from_pretrained(tmp_path, config=config)
    for name, parameter in backbone.pyramid.named_parameters():
        bound = 1.0 if "levels.0.1" in name else (2 * 2 * 64) ** -0.5  # of torch: by the inputs of each output
        assert parameter.abs().max() <= bound, name
    assert (backbone.pyramid.levels[0][1].weight == 1).all()
    weights = backbone.pyramid.levels[1].weight
    assert weights.std().item() == pytest.approx((2 * 2 * 64) ** -0.5 / 3**0.5, rel=0.05)
    plain = A2MIMBackbone.from_pretrained(tmp_path, out_indices=[0, 2, 3, 5])
    assert plain.pyramid is None


def test_what_goes_to_the_hub(tmp_path):
    """Exactly the files of a dense export, whatever else is there; figures of the data only if they may."""
    for name in ("README.md", "config.json", "model.safetensors", "preprocessor_config.json", "predictions.png"):
        (tmp_path / name).write_text("")
    for name in ("optimizer.pt", "processor.json", "predictions.jpg", "pytorch_model.bin"):
        (tmp_path / name).write_text("")
    expected = ["README.md", "config.json", "model.safetensors", "predictions.png", "preprocessor_config.json"]
    assert uploaded_files(tmp_path) == expected
    assert uploaded_files(tmp_path, pictures_of_data=False) == [e for e in expected if e != "predictions.png"]


TASK = DenseTask("object-detection", "a detector", "map", "AutoModelForObjectDetection", "print(model)", ("One.",))
LOG = [{"loss": 1.0, "step": 1}]


def record(**kwargs):
    known = {"steps": 1, "epochs": 1, "images": 4, "total_batch_size": 2, "processes": 1, "optimizer": "adamw"}
    known |= {"learning_rate": 0.1, "adam_betas": [0.9, 0.999], "weight_decay": 0.0, "max_grad_norm": 1.0}
    known |= {"lr_scheduler_type": "cosine", "warmup_steps": 0, "crop_scale": None, "precision": "float32", "seed": 1}
    return {**known, "data_seed": 1, "hardware": "CPU", "versions": {}, "log": LOG, **kwargs}


def test_cards():
    backbone = build_backbone(DenseModelArguments(architecture="test_resnet"))
    backbone.config.id2label = {0: "cat | dog", 1: "two\nlines"}
    text = str(dense_card(backbone, TASK, record(task="training from scratch"), "org/name"))
    assert "trained from scratch, with 2 classes: cat | dog, two lines." in text
    assert 'pipeline("object-detection", model="org/name")("photo.jpg")' in text
    assert "import modeling_a2mim" not in text
    assert "predictions.png" not in text
    assert text.count("```") % 2 == 0
    assert not re.search(r"{{|{%|\n\n\n", text)

    ours = str(dense_card(backbone, TASK, record(base_model="org/encoder"), "org/name", ["predictions.png"], False))
    assert "fine-tuned from `org/encoder`" in ours
    assert ours.count("import modeling_a2mim") == 2  # for the model, and for the pipeline
    assert "![Images, their annotations" in ours
    assert "transformers alone cannot build" in ours

    task = DenseTask("object-detection", "a detector", "map", "A2MIMForX", "", (), own_class=True, pipeline=False)
    own = str(dense_card(backbone, task, record(), None, (), False))
    assert "from modeling_a2mim import A2MIMForX\n" in own
    assert 'A2MIMForX.from_pretrained("ORG/NAME")' in own
    assert "pipeline(" not in own
