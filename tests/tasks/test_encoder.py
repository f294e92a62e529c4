"""Backbones on the encoder that the arguments name, and its weights."""

import json

import pytest
import torch

from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.arguments.dense import DenseModelArguments
from modeling_a2mim.arguments.model import ClassifierArguments
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.tasks.encoder import build_backbone, build_classifier
from modeling_a2mim.tasks.start import open_start

from ..families import family_config
from ..foreign_files import ENCODERS, forms, random_encoder


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


@pytest.mark.few(2)
@pytest.mark.parametrize("family", ENCODERS)
def test_a_file_of_weights(family, tmp_path):
    """Classifiers and backbones start from what pre-training starts from."""
    name, args, size = ENCODERS[family]
    weights = random_encoder(family).state_dict()
    torch.save(forms(weights, family)["DINO"], tmp_path / "in.pth")
    given = {"architecture": name, "model_args": json.dumps(args), "image_size": [size]}
    given["model_name_or_path"] = str(tmp_path / "in.pth")
    model, start = build_classifier(ClassifierArguments(**given), ["a", "b"])
    assert start.what == f"the weights of a {name} in the file in.pth"
    dense = DenseModelArguments(**given)
    for found in (model, build_backbone(dense, open_start(dense))):
        loaded = found.a2mim.encoder.state_dict()
        assert [key for key, value in weights.items() if not torch.equal(loaded[key], value)] == []
    grey, _ = build_classifier(ClassifierArguments(**given, num_channels=1), ["a", "b"])
    assert grey.config.image_mean == [pytest.approx(0.449)]


def test_pages_have_no_annotations_of_their_own():
    with pytest.raises(ValueError, match="^pages: the annotations are of files"):
        build_backbone(DenseModelArguments(architecture="test_resnet", pages="samples"))
