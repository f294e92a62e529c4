"""The official encoders at their full size, without running them: which model here they become, whether every weight
finds its place, and the numbers that were published for them."""

import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.conversion import checkpoint as conversion
from modeling_a2mim.conversion.checkpoint import Official, convert
from modeling_a2mim.conversion.published import PAPER, PUBLISHED, published_for
from modeling_a2mim.encoders.meta import NoValues

from .. import official


pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = json.loads((Path(__file__).parents[1] / "fixtures" / "official_keys.json").read_text())


@pytest.mark.parametrize("section", KEYS)
def test_the_lists_built_here_are_the_official_ones(section):
    keys = official.SECTIONS[section]
    assert {"keys": len(keys), "sha256": official.digest(keys)} == KEYS[section]


FURTHER = {
    "r101": official.pretraining(official.resnet((3, 4, 23, 3)), (1, 1024, 1, 1), 2048, 32, gamma=True),
    "ft_r152": official.classifier(official.resnet((3, 8, 36, 3)), 2048),
    "r200": official.pretraining(official.resnet((3, 24, 36, 3)), (1, 1024, 1, 1), 2048, 32, gamma=True),
    "ft_vit_large": official.classifier(official.vit(1024, 24, 16, norm="fc_norm"), 1024),
    "convnext_s": official.pretraining(official.convnext((3, 3, 27, 3)), (1, 768, 1, 1), 768, 32, gamma=True),
    "ft_convnext_b": official.classifier(official.convnext((3, 3, 27, 3), 128), 1024),
}
FOUND = {  # architecture, site, method, image size, published numbers
    "a2mim_r50_l3": ("resnet50", "layer3", "A2MIM", 224, ["80.4", "78.8", "78.9", "89.32", "39.8", "34.9", "38.3"]),
    "simmim_r50": ("resnet50", "maxpool", "SimMIM", 224, ["79.9"]),
    "ft_r50": ("resnet50", None, None, 224, ["80.4", "78.8", "78.9", "79.9"]),
    "r101": ("resnet101", "layer3", "A2MIM", 224, ["81.9"]),
    "ft_r152": ("resnet152", None, None, 224, ["82.5", "81.9"]),
    "r200": ("resnet200", "layer3", "A2MIM", 224, ["83.0"]),
    "a2mim_vit_small_l0": ("beit_base_patch16_224", "patch_embed", "A2MIM", 224, ["82.1"]),
    "a2mim_vit_base_l0": ("beit_base_patch16_224", "patch_embed", "A2MIM", 224, ["84.2-84.3", "49.4", "43.5", "49.0"]),
    "simmim_vit_base": ("beit_base_patch16_224", "patch_embed", "SimMIM", 224, ["83.8"]),
    "ft_vit_base_p16": ("beit_base_patch16_224", None, None, 224, ["84.2-84.3", "83.8"]),
    "ft_vit_large": ("beit_base_patch16_224", None, None, 224, ["86.1", "85.6"]),
    "a2mim_deit_small_l8": ("beit_base_patch16_224", "patch_embed", "A2MIM", 192, ["87.24"]),
    "simmim_deit_small": ("beit_base_patch16_224", "patch_embed", "SimMIM", 224, []),
    "ft_deit_small_p16": ("beit_base_patch16_224", None, None, 224, []),
    "convnext_s": ("convnext_small", "stages.3.downsample", "A2MIM", 224, ["83.7"]),
    "simmim_convnext_t": ("convnext_tiny", "stem", "SimMIM", 224, []),
    "ft_convnext_tiny": ("convnext_tiny", "stages.3.downsample", None, 224, []),
    "ft_convnext_b": ("convnext_base", "stages.3.downsample", None, 224, ["84.1", "83.6"]),
    "a2mim_swin_tiny_l0": ("swin_tiny_patch4_window7_224", "patch_embed", "A2MIM", 192, []),
    "a2mim_swin_base_l0": ("swin_tiny_patch4_window7_224", "patch_embed", "A2MIM", 192, []),
    "ft_swin_base": ("swin_tiny_patch4_window7_224", "patch_embed", None, 224, []),
}
PLACED = ["a2mim_r50_l3", "r200", "a2mim_vit_small_l0", "ft_vit_base_p16", "ft_deit_small_p16"]
PLACED += ["simmim_convnext_t", "ft_convnext_b", "ft_swin_base"]


def empty_weights(name):
    keys, types = (FURTHER | official.SECTIONS)[name], {True: torch.int64, False: torch.float32}
    return {key: torch.empty(shape, dtype=types[official.is_integer(key)]) for key, shape in keys.items()}


@pytest.fixture
def unfilled(monkeypatch):
    """Conversion up to the model itself: the configuration and the weights that it would be given."""
    monkeypatch.setattr(conversion, "_fill", lambda build, weights: (build.args[0], weights))
    return monkeypatch


@pytest.mark.parametrize("name", FOUND)
def test_which_model_it_is(unfilled, name):
    unfilled.setattr(conversion, "_place", lambda parts, build: None)
    (config, _), kind, method, *_ = convert(empty_weights(name))
    classes = 1000 if name.startswith("ft_") else 0
    assert kind == ("fine-tuned classifier" if classes else "pre-training checkpoint")
    assert (config.num_labels == 1000) == bool(classes)
    methods = ["A2MIM", "SimMIM"] if method is None else [method]
    published = [row.value for m in methods for row in published_for(config, bool(classes), m)]
    assert (config.architecture, config.mask_site, method, config.image_size, published) == FOUND[name]


@pytest.mark.few(3)
@pytest.mark.parametrize("name", PLACED)
def test_every_weight_finds_its_place(unfilled, name):
    state = empty_weights(name)
    (_, weights), *_ = convert(state)
    assert len(weights) == len(state)
    assert sum(w.numel() for w in weights.values()) == sum(w.numel() for w in state.values())


def test_resnet_200_is_torchvisions_resnet_with_more_blocks():
    """Names, their order, and shapes; that the blocks compute the same is tested with a ResNet-50. Measured once on
    the whole: with the same random weights, not one bit of the logits differs."""
    blocks = torchvision.models.resnet.ResNet, torchvision.models.resnet.Bottleneck
    with torch.device("meta"), NoValues():
        ours, theirs = timm.create_model("resnet200"), blocks[0](blocks[1], [3, 24, 36, 3])
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    assert sum(p.numel() for p in ours.parameters()) == 64_673_832


def values(*args, **kwargs):
    return [row.value for row in published_for(*args, **kwargs)]


def test_published_numbers_of_resnets_and_convnexts():
    assert values(A2MIMConfig.resnet("resnet200")) == ["83.0"]
    assert values(A2MIMConfig.simmim("resnet101")) == ["81.3"]
    assert values(A2MIMConfig.simmim("convnext_base")) == ["83.6"]
    assert values(A2MIMConfig.convnext("convnext_base"), method="SimMIM") == ["83.6"]
    with pytest.raises(FrozenInstanceError):
        PUBLISHED[0].value = "100"


def test_classifiers_have_the_numbers_of_their_dataset():
    config = A2MIMConfig.resnet("resnet50", num_labels=100)
    assert values(config, is_classifier=True) == ["89.32"]
    assert values(config, is_classifier=True, method="SimMIM") == []
    config.num_labels = 1000
    assert values(config, is_classifier=True) == ["80.4", "78.8", "78.9"]
    config.num_labels = 10
    assert values(config, is_classifier=True) == []
    assert len(values(config)) == 7


@pytest.mark.parametrize(
    "config",
    [
        A2MIMConfig.vit("vit_base_patch16_224"),  # not the official encoder: no relative positions
        A2MIMConfig.vit("beit_base_patch16_224"),  # nor this one: no absolute ones
        A2MIMConfig.resnet("resnet50d"),
        A2MIMConfig.resnet("resnet50", model_args={"output_stride": 16}),
        A2MIMConfig.swin(),
        A2MIMConfig.convnext("convnext_tiny"),
        A2MIMConfig.convnext("convnextv2_base"),
    ],
)
def test_encoders_without_a_published_number(config):
    assert published_for(config) == []


def test_the_papers_vit_s_is_the_official_small():
    """It states 48.8M parameters; DeiT-S has 22M."""
    keys = official.classifier(official.vit(depth=8, heads=8, hidden=2304, norm="fc_norm"), 768)
    parameters = sum(math.prod(shape) for key, shape in keys.items() if not official.is_integer(key))
    assert round(parameters / 1e6, 1) == 48.8


def test_the_paper_gives_no_number_for_a_vit_at_another_size():
    args = {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
    args |= {"use_abs_pos_emb": True, "use_rel_pos_bias": True}
    config = A2MIMConfig.vit("beit_base_patch16_224", model_args=args)
    assert values(config)[0] == "84.2-84.3"
    config.image_size = 192
    assert published_for(config) == []


def test_a_file_that_does_not_say_its_method_gets_no_numbers():
    keys = official.classifier(official.vit(32, 2, 2, grid=4, norm="fc_norm"), 32, 10)
    converted = convert(official.random_weights(keys))
    converted.model.config.update({"architecture": "resnet101", "model_args": {}, "num_labels": 1000})
    assert (converted.published, converted.record["license"], converted.record["datasets"]) == ([], None, [])
    known = Official(converted.model, "", "SimMIM")
    assert [row.value for row in known.published] == ["81.3"]
    assert (known.record["license"], known.record["method"]) == ("apache-2.0", "SimMIM")


def test_every_number_says_whose_it_is():
    for row in PUBLISHED:
        assert row.source == PAPER
        assert f"{row.method} {row.architecture}: {row.value} {row.metric} on {row.dataset}, {row.protocol}" in str(
            row
        )
    assert len(set(PUBLISHED)) == len(PUBLISHED)
