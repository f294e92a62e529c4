"""The encoder under heads of transformers: the right maps, the right weights, a step of training."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.models.auto import auto_factory

from modeling_a2mim import A2MIMBackbone, A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.export.folder import export_model
from modeling_a2mim.models.backbone import four_stages

from ..families import FAMILIES, family_config


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def pretrained(family, **kwargs):
    """A pre-training model whose running statistics are not those of a new one, and some images."""
    model, images = A2MIMForPreTraining(family_config(family, **kwargs)).train(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model(images)
    return model.eval(), images


def load(cls, path, **kwargs):
    """The copy puts the weights at addresses at which all algorithms are the same (see test_modeling_a2mim.load)."""
    model, info = cls.from_pretrained(path, output_loading_info=True, **kwargs)
    assert not any(info.values())
    return copy.deepcopy(model)


def assert_same_weights(backbone, model):
    """Buffers that are not saved (the relative positions of a Swin) included"""
    one, two = (
        dict([*m.named_parameters(), *m.named_buffers()]) for m in (backbone.a2mim.encoder, model.a2mim.encoder)
    )
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def last_four(model):
    return list(range(len(model.a2mim.encoder.feature_info)))[-4:]


def upernet(backbone):
    config = UperNetConfig(
        backbone_config=backbone.config,
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_in_channels=backbone.channels[2],
        auxiliary_channels=8,
        num_labels=3,
    )
    model = UperNetForSemanticSegmentation(config)
    assert isinstance(model.backbone, A2MIMBackbone)
    model.backbone = backbone
    return model


def mask2former(backbone):
    config = Mask2FormerConfig(
        backbone_config=backbone.config,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_attention_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        num_queries=4,
        num_labels=3,
        train_num_points=16,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    model.model.pixel_level_module.encoder = backbone
    return model


def test_maps_are_timms(family, tmp_path):
    model, images = pretrained(family)
    model.save_pretrained(tmp_path)
    indices = last_four(model)
    backbone = load(A2MIMBackbone, tmp_path, out_indices=indices)
    assert_same_weights(backbone, model)
    with torch.no_grad():
        output = backbone(images)
        expected = model.a2mim.encoder.forward_intermediates(images, indices=indices, intermediates_only=True)
        states = backbone(images, output_hidden_states=True)
        given = backbone(images, return_dict=False)
    assert output.hidden_states is None
    infos = [model.a2mim.encoder.feature_info[index] for index in indices]
    shapes = [(2, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"]) for info in infos]
    assert [tuple(x.shape) for x in output.feature_maps] == shapes
    assert backbone.channels == [shape[1] for shape in shapes]
    assert backbone.out_features == [info["module"] for info in infos]
    for maps in (expected, given[0], states.feature_maps, [states.hidden_states[index] for index in indices]):
        assert all(map(torch.equal, output.feature_maps, maps))
    assert len(states.hidden_states) == len(model.a2mim.encoder.feature_info)


def test_load_from_an_export_and_a_classifier(family, tmp_path):
    model, _ = pretrained(family)
    export_model(model, tmp_path / "export")
    assert_same_weights(load(A2MIMBackbone, tmp_path / "export", subfolder="pretraining"), model)
    classifier = A2MIMForImageClassification(family_config(family, num_labels=3))
    classifier.save_pretrained(tmp_path / "classifier")
    backbone = A2MIMBackbone.from_pretrained(tmp_path / "classifier")
    weights = classifier.a2mim.encoder.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in backbone.a2mim.encoder.state_dict().items())
    assert backbone.out_indices == [len(backbone.stage_names) - 1]  # as for any backbone of transformers


@pytest.mark.few(4)
@pytest.mark.parametrize("head", [upernet, mask2former])
def test_head_trains_and_comes_back(family, head, tmp_path):
    model, images = pretrained(family)
    model.save_pretrained(tmp_path / "encoder")
    backbone = load(A2MIMBackbone, tmp_path / "encoder", out_indices=last_four(model))
    segmenter = head(backbone).train()
    assert_same_weights(backbone, model)
    labels = torch.randint(0, 3, (2, 64, 64))
    if head is upernet:
        targets = {"labels": labels}
    else:
        masks = [torch.stack([label == i for i in range(3)]).float() for label in labels]
        targets = {"mask_labels": masks, "class_labels": [torch.arange(3)] * 2}
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.1)
    before = copy.deepcopy(backbone.a2mim.encoder.state_dict())
    segmenter(images, **targets).loss.backward()
    optimizer.step()
    after = backbone.a2mim.encoder.state_dict()
    assert sum(not torch.equal(after[name], before[name]) for name in before) > 0.5 * len(before)
    unused = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert len(unused) <= 3, unused  # what comes after the last map: a norm, a convolution of the head

    segmenter.eval().save_pretrained(tmp_path / "segmenter")
    again = load(type(segmenter), tmp_path / "segmenter")
    with torch.no_grad():
        one, two = (m(images) for m in (again, segmenter))
    for name, value in two.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(one[name], value), name


def test_auto_backbone(tmp_path, monkeypatch):
    model, images = pretrained("resnet")
    export_model(model, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, subfolder="pretraining", out_features=["layer2", "layer4"])
    assert type(AutoBackbone.from_config(config)) is A2MIMBackbone
    # transformers asks the Hub whether there is such a repository, and takes all else for a name in timm.
    monkeypatch.setattr(auto_factory.hf_api(), "repo_exists", lambda *args, **kwargs: True)
    backbone = AutoBackbone.from_pretrained(tmp_path, subfolder="pretraining", out_indices=(1, -1))
    assert type(backbone) is A2MIMBackbone
    assert_same_weights(backbone, model)
    assert backbone.out_features == ["layer1", "layer4"]
    backbone.save_pretrained(tmp_path / "again")
    again = A2MIMBackbone.from_pretrained(tmp_path / "again")
    assert again.out_features == ["layer1", "layer4"]
    assert [tuple(x.shape) for x in again(images).feature_maps] == [(2, 32, 16, 16), (2, 96, 2, 2)]


def test_other_sizes():
    """Detectors give images of any size."""
    backbone = A2MIMBackbone(family_config("resnet", out_indices=[1, 2])).eval()
    assert [tuple(x.shape[2:]) for x in backbone(torch.randn(1, 3, 50, 97)).feature_maps] == [(13, 25), (7, 13)]


def test_gradient_checkpointing():
    model, images = pretrained("convnext")
    backbone = A2MIMBackbone(model.config).eval()
    plain = copy.deepcopy(backbone)
    backbone.a2mim.gradient_checkpointing = True
    assert backbone.a2mim.encoder.stages[0].grad_checkpointing
    for one, two in zip(backbone(images).feature_maps, plain(images).feature_maps, strict=True):
        assert torch.equal(one, two)
        one.square().mean().backward()
        two.square().mean().backward()
    for one, two in zip(backbone.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.equal(one.grad, two.grad)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"out_indices": [9]}, "^out_indices: test_resnet has the stages act1, layer1, layer2, layer3, layer4"),
        ({"out_indices": [2, 1]}, "^out_indices: .*same order"),
        ({"out_features": ["layer9"]}, "^out_features: .*layer9"),
    ],
)
def test_stages_that_there_are_not(choice, message):
    with pytest.raises(ValueError, match=message):
        A2MIMBackbone(family_config("resnet", **choice))


def test_what_it_cannot_do():
    backbone = A2MIMBackbone(family_config("resnet"))
    with pytest.raises(ValueError, match=r"^pixel_values: expected \(batch, 3, height, width\), got \(1, 1, 64, 64\)"):
        backbone(torch.randn(1, 1, 64, 64))
    with pytest.raises(ValueError, match="^pixel_values: expected normalised images, got torch.uint8"):
        backbone(torch.ones(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="^output_attentions: "):
        backbone(torch.randn(1, 3, 64, 64), output_attentions=True)


@pytest.mark.parametrize(
    ("strides", "maps", "distinct"),
    [
        ([2, 4, 8, 16, 32], [1, 2, 3, 4], [1, 2, 3, 4]),
        ([4, 8, 16, 32], [0, 1, 2, 3], [0, 1, 2, 3]),
        ([7, 14, 14, 14], [0, 1, 2, 3], [0, 3]),  # a Sequencer
        ([16] * 12, [2, 5, 8, 11], [2, 5, 8, 11]),
        ([16] * 6, [0, 2, 3, 5], [0, 2, 3, 5]),
        ([16] * 3, [0, 1, 2], [0, 1, 2]),
        ([16, 32], [0, 1], [0, 1]),
    ],
)
def test_four_stages(strides, maps, distinct):
    stages = [{"reduction": stride} for stride in strides]
    plan = SimpleNamespace(isotropic=len(set(strides)) == 1)
    core = SimpleNamespace(encoder=SimpleNamespace(feature_info=stages), plan=plan)
    assert four_stages(core) == maps
    assert four_stages(core, distinct=True) == distinct
