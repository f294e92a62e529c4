"""What arguments of detection are refused."""

import pytest

from modeling_a2mim.arguments.detection import DetectionArguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shortest_edge": [0]}, "^shortest_edge: must be positive"),
        ({"shortest_edge": [800], "longest_edge": 600}, "^longest_edge: 600 is less than"),
        ({"horizontal_flip": 2.0}, r"^horizontal_flip: must be in \[0, 1\]"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DetectionArguments(dataset_name=["x"], **given)


def test_evaluation_takes_the_largest_edge():
    assert DetectionArguments(dataset_name=["x"], shortest_edge=[96, 48, 64]).shortest_edge == [48, 64, 96]
