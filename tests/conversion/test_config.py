"""Configurations from the names and shapes of official weights."""

import pytest
import torch
from timm.data import ImageNetInfo

from modeling_a2mim.conversion.checkpoint import convert
from modeling_a2mim.conversion.config import imagenet_labels, official_config

from .. import official
from ..golden.golden import load


pytestmark = pytest.mark.usefixtures("one_thread")


# Encoders as the official ones, but small: 64 px
VIT = {"width": 32, "depth": 3, "heads": 2, "grid": 4}


@pytest.fixture(scope="module")
def resnet():
    return load("a2mim_r18_l3")[0]


@pytest.fixture(scope="module")
def vit():
    return official.random_weights(official.pretraining(official.vit(**VIT), (1, 1, 32), 32, 16))


def bare(state):
    return {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}


def test_site_of_the_token(resnet, vit):
    assert convert(resnet, mask_site="layer3.0").model.a2mim.site.module == "layer3.0"
    text = {"config": "backbone=dict(mask_layer=3)"}
    assert convert(vit).model.a2mim.site.module == "patch_embed"
    assert convert({"state_dict": vit, "meta": text}).model.a2mim.site.module == "blocks.1"
    # Without the text, a CNN's token tells by its width.
    encoder = {k: v for k, v in bare(resnet).items() if not k.startswith("mask_")}
    for width, site in ((64, "maxpool"), (128, "layer2"), (256, "layer3")):
        assert official_config(encoder, torch.zeros(1, width, 1, 1)).mask_site == site
    with pytest.raises(ValueError, match="mask_token: it has 5 channels, the stages have 64, 64, 128, 256"):
        official_config(encoder, torch.zeros(5))


def test_other_depths_are_refused(resnet):
    shallow = {k: v for k, v in resnet.items() if ".layer4.1." not in k}
    with pytest.raises(ValueError, match=r"timm has no ResNet with \(\(2, 2, 2, 1\), False\)"):
        convert(shallow)


def test_names_of_imagenets_classes():
    names, words = imagenet_labels(), ImageNetInfo().label_descriptions()
    assert len(set(names)) == len(names) == 1000
    assert [i for i in range(1000) if names[i] != words[i]] == [134, 517]
    assert names[0] == "tench, Tinca tinca"
    assert (names[134], names[517]) == ("crane (n02012849)", "crane (n03126707)")
    config = convert(official.random_weights(official.classifier(official.vit(32, 2, 2, grid=4), 32))).model.config
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: i for i, name in enumerate(names)}
