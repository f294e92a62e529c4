"""ResNet and RegNet: the same features, and the published sizes."""

import pytest

from modeling_a2mim.key_layouts import encoder_fields

from .models import RESNET, assert_published, assert_same_features, published


pytestmark = pytest.mark.usefixtures("one_thread")
REGNET = {"hidden_sizes": [24, 56, 152, 368], "depths": [1, 1, 4, 7], "groups_width": 8}
BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
# Of Y, published for transformers; X has the same form.
STAGES = {
    "regnety_040": ([2, 6, 12, 2], [128, 192, 512, 1088], 64),
    "regnety_008": ([1, 3, 8, 2], [64, 128, 320, 768], 16),
    "regnety_320": ([2, 5, 12, 1], [232, 696, 1392, 3712], 232),
    "regnety_640": ([2, 5, 12, 1], [328, 984, 1968, 4920], 328),
    "regnety_1280": ([2, 7, 17, 1], [528, 1056, 2904, 7392], 264),
    "regnetx_002": ([1, 1, 4, 7], [24, 56, 152, 368], 8),
    "regnetx_080": ([2, 5, 15, 1], [80, 240, 720, 1920], 120),
    "regnetx_320": ([2, 7, 13, 1], [336, 672, 1344, 2520], 168),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("ResNetModel", RESNET),
        ("ResNetModel", RESNET | {"layer_type": "basic", "num_channels": 2}),
        ("ResNetForImageClassification", BASIC | {"depths": [2, 2, 2, 2]}),
        ("ResNetBackbone", RESNET),
        ("RegNetModel", REGNET),
        ("RegNetModel", REGNET | {"layer_type": "x"}),
        ("RegNetForImageClassification", REGNET),
    ],
)
def test_features(cls, config, tmp_path):
    _, _, left_over = assert_same_features(cls, config, tmp_path)
    assert left_over == (["classifier.1.bias", "classifier.1.weight"] if "Classification" in cls else [])


@pytest.mark.parametrize(
    ("depths", "more", "name"),
    published(
        [
            ([2, 2, 2, 2], BASIC, "resnet18"),
            ([3, 4, 6, 3], BASIC, "resnet34"),
            ([2, 2, 2, 2], {}, "resnet26"),
            ([3, 4, 6, 3], {}, "resnet50"),
            ([3, 4, 23, 3], {}, "resnet101"),
            ([3, 8, 36, 3], {}, "resnet152"),
        ]
    ),
)
def test_published_resnets(depths, more, name):
    assert_published({"model_type": "resnet", "depths": depths, **more}, name)


@pytest.mark.parametrize("name", published([(name,) for name in STAGES]))
def test_published_regnets(name):
    depths, widths, groups = STAGES[name]
    data = {"model_type": "regnet", "depths": depths, "hidden_sizes": widths, "groups_width": groups}
    assert_published(data | {"layer_type": name[6]}, name)


def test_other_stages():
    args = {"layers": [2, 1, 1, 2], "channels": [16, 8, 24, 32]}
    assert_published({"model_type": "resnet", **RESNET}, "resnet50", args)
    with pytest.raises(ValueError, match=r"^model_name_or_path: hidden_sizes is \[2020, .* timm has no RegNet with"):
        encoder_fields({"model_type": "regnet", "hidden_sizes": [2020, 4040, 11110, 28280], "depths": [2, 7, 17, 1]})
