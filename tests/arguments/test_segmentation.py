"""What arguments of segmentation are refused, and the values of pixels that do not count."""

import pytest

from modeling_a2mim.arguments.segmentation import (
    SegmentationArguments,
    SegmentationTrainingArguments,
    ignored_value,
    parse_value,
)


def test_what_is_refused():
    with pytest.raises(ValueError, match="^resize_scale: "):
        SegmentationArguments(dataset_name=["x"], resize_scale=[2.0, 0.5])
    with pytest.raises(ValueError, match="^ignore_index: expected a value of pixels"):
        SegmentationArguments(dataset_name=["x"], ignore_index="wall")
    with pytest.raises(ValueError, match="^per_device_train_batch_size: must be at least 2"):
        SegmentationTrainingArguments(output_dir="x", per_device_train_batch_size=1)


def test_values():
    assert (parse_value("255"), parse_value("#0000fF")) == ((255, False), (255, True))
    assert not any(map(parse_value, ("", "-1", "65536", "#fff", "#00000g", "wall")))


def test_ignored_values():
    assert [ignored_value(given, (), False) for given in ("none", None, "auto", "255", 7)] == [None, None, 255, 255, 7]
    assert [ignored_value(given, (), False) for given in ("-1", -100)] == [-1, -100]  # that no pixel has
    assert ignored_value("auto", (0, 255), False) is None
    assert ignored_value("auto", (0, 255), True) is None  # which would be a blue
    assert ignored_value("#0000ff", (), True) == 255
    for given, colours, message in (
        ("all", False, "expected a value"),
        ("255", True, "#rrggbb"),
        ("#000000", False, ""),
    ):
        with pytest.raises(ValueError, match=f"^ignore_index: .*{message}"):
            ignored_value(given, (), colours)
