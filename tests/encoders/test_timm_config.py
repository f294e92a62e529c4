"""The config.json of a timm checkpoint, as fields of our configuration."""

import pytest

from modeling_a2mim.encoders.timm_config import fields_of_timm, is_timm, without_tag


def test_names_in_files_of_timm():
    cfg = {"input_size": [3, 8, 8], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "label_names": {"1": "b", "0": "a"}}
    data = {
        "architecture": "resnet10t.c3_in1k",
        "num_classes": 2,
        "pretrained_cfg": cfg,
        "model_args": {"in_chans": 1},
    }
    fields = fields_of_timm(data)
    assert fields["id2label"] == {0: "a", 1: "b"}
    assert fields["architecture"] == "resnet10t"  # the tag is that of weights which the file replaces
    assert fields["image_mean"] == [pytest.approx(0.2)]  # as timm takes it
    assert fields["num_channels"] == 1


def test_the_arguments_of_the_model_hold():
    """Not what is said of the weights that it came from."""
    cfg = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9}
    args = {"img_size": [64, 32], "global_pool": "", "num_classes": 0, "drop_path_rate": 0.1}
    fields = fields_of_timm({"architecture": "test_vit", "pretrained_cfg": cfg, "model_args": args})
    assert fields["image_size"] == [64, 32]
    # A size of its own: else timm would build positions for that of its name and resample them.
    assert fields["model_args"] == {"drop_path_rate": 0.1, "dynamic_img_size": False}
    assert (fields["num_channels"], fields["crop_pct"], fields["image_mean"]) == (3, 0.9, [0.5] * 3)
    assert "id2label" not in fields


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"architecture": "test_vit", "pretrained_cfg": {"input_size": [3, 8, 8]}}, True),
        ({"architecture": "test_vit", "input_size": [3, 8, 8]}, True),
        ({"architecture": "test_vit", "pretrained_cfg": {}}, False),
        ({"input_size": [3, 8, 8]}, False),
        ({"architecture": "test_vit", "input_size": [3, 8, 8], "model_type": "a2mim"}, False),
        ({"architecture": "test_vit", "input_size": [3, 8, 8], "model_type": "a2mim_detector"}, False),
        ({"model_type": "bert"}, False),
    ],
)
def test_is_timm(data, expected):
    assert is_timm(data) is expected


def test_tags_of_known_names_are_dropped():
    assert without_tag("resnet10t.c3_in1k") == without_tag("resnet10t") == "resnet10t"
    assert without_tag("no_model.tag") == "no_model.tag"
    assert without_tag(None) is None
