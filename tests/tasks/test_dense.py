"""What segmentation and detection share: the encoder and its weights, and what the Hub gets."""

import re

import pytest
import torch

from modeling_a2mim import A2MIMBackbone, A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.arguments.dense import DenseArguments, DenseModelArguments, DenseTrainingArguments
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.export.hub import uploaded_files
from modeling_a2mim.export.model_card import DenseTask, dense_card
from modeling_a2mim.tasks.encoder import build_backbone, open_start

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("architecture", "indices", "channels", "pyramid"),
    [
        ("test_resnet", [1, 2, 3, 4], [32, 48, 192, 96], False),
        ("test_convnext", [0, 1, 2, 3], [24, 32, 48, 64], False),
        ("test_vit", [0, 2, 3, 5], [64] * 4, True),
    ],
)
def test_four_maps_of_four_sizes(architecture, indices, channels, pyramid):
    args = DenseModelArguments(architecture=architecture, image_size=[64, 96], num_channels=1, drop_path=0.25)
    backbone = build_backbone(args)
    assert (backbone.out_indices, backbone.channels) == (indices, channels)
    assert (backbone.pyramid is not None) == pyramid
    maps = backbone(torch.randn(1, 1, 64, 96)).feature_maps
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert backbone.config.model_args == {"drop_path_rate": 0.25}
    chosen = build_backbone(DenseModelArguments(architecture="test_resnet", out_indices=[2, 4]))
    assert chosen.out_indices == [2, 4]


SMALL_VIT = {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 32, "depth": 4, "num_heads": 2}}


def pretrained_backbone(folder, **kwargs):
    args = DenseModelArguments(model_name_or_path=str(folder), **kwargs)
    return build_backbone(args, open_start(args))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_weights_at_another_size(family, tmp_path):
    """timm resamples positions: at the size of pre-training all weights are the same, at others all but those."""
    model = A2MIMForPreTraining(family_config(family, **(SMALL_VIT if family == "vit" else {})))
    if family == "vit":
        ramp = torch.arange(16.0).view(1, 4, 4, 1).expand(-1, -1, -1, 32)
        model.a2mim.encoder.pos_embed.data[:, 1:] = ramp.reshape(1, 16, 32)
    export_model(model, tmp_path)
    kept = model.a2mim.encoder.state_dict()
    same = pretrained_backbone(tmp_path).a2mim.encoder.state_dict()
    assert all(torch.equal(same[name], kept[name]) for name in kept)
    large = pretrained_backbone(tmp_path, image_size=[128])
    assert large.config.input_size == (128, 128)
    found = large.a2mim.encoder.state_dict()
    other = [name for name in found if found[name].shape != kept[name].shape]
    assert other == (["pos_embed"] if family == "vit" else [])
    assert all(torch.equal(found[name], kept[name]) for name in kept if name not in other)
    if family == "vit":
        grid = found["pos_embed"][0, 1:, 0].view(8, 8)
        assert grid[4].diff().min() > 0  # still a ramp
        assert grid[:, 4].diff().min() > 0
        assert grid.mean() == pytest.approx(7.5, abs=0.1)


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: open_start(DenseModelArguments()), "^model_name_or_path: give either it or"),
        (lambda: DenseModelArguments(architecture="test_vit", drop_path=1.0), "^drop_path: "),
        (lambda: DenseArguments(), "^dataset_name: annotated images are needed"),
        (lambda: DenseArguments(dataset_name=["a", "b"]), "^dataset_name: annotated images come from one"),
        (lambda: DenseArguments(train_dir=["a"], crop_scale=[0.5, 1.0]), "^crop_scale: "),
        (lambda: DenseTrainingArguments("x", layer_decay=0.0), "^layer_decay: "),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_goes_to_the_hub(tmp_path):
    """Exactly the files of a dense export, whatever else is there; pictures of the data only if they may."""
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
