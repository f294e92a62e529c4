"""Interaction strength and its intervals, of a result."""

import numpy as np
import pytest
import torch
from torch import nn

from modeling_a2mim.analysis.measurement import interaction_strength

from .test_measurement import Net


pytestmark = pytest.mark.usefixtures("one_thread")


SMALL = {"grid": 3, "ratios": (0, 0.3, 0.6, 1), "pairs": 6, "contexts": 4}


def pictures(count: int = 3, size: int = 12) -> torch.Tensor:
    return torch.randn(count, 3, size, size, dtype=torch.float64) + 0.3


def test_interactions_of_one_order():
    """A model that looks at whether a pair is shown while exactly 4 others are: its only order is 4."""

    class Counting(nn.Module):
        def forward(self, pixel_values):
            shown = (pixel_values[:, 0, ::4, ::4] != 0).double().sum((1, 2))
            return torch.stack([(shown == 6).double(), torch.zeros_like(shown)], 1)

    options = {"grid": 3, "ratios": [m / 7 for m in range(8)], "pairs": None, "contexts": 5, "value": "logit"}
    result = interaction_strength(Counting(), torch.ones(1, 3, 12, 12), [0], **options)
    # v is 1 for 6 cells: S+i+j where m = 4, minus S+i and S+j where m = 5, S where m = 6.
    np.testing.assert_allclose(result.mean, [0, 0, 0, 0, 1, 2, 1, 0])
    np.testing.assert_allclose(result.strength, [0, 0, 0, 0, 2, 4, 2, 0])


def test_intervals():
    images, labels = pictures(12), torch.arange(12) % 5
    result = interaction_strength(Net(), images, labels, **SMALL)
    low, high = result.strength_interval().T
    assert (low < result.strength).all()
    assert (result.strength < high).all()
    np.testing.assert_array_equal(result.strength_interval(), np.stack([low, high], 1))  # the same draws again
    narrow, wide = (np.diff(result.mean_interval(c)).sum() for c in (0.5, 0.99))
    assert narrow < wide
    # A normal approximation of the same: half as many degrees of freedom as images, so within a third.
    error = 1.96 * result.per_image.std(0, ddof=1) / np.sqrt(12)
    half = np.diff(result.mean_interval())[:, 0] / 2
    assert (np.abs(half / error - 1) < 0.33).all()
    # A model beside itself differs by nothing; beside one that is almost the same, by much less than either is known.
    assert (result.difference_interval(result) == 0).all()
    torch.manual_seed(0)
    model = Net()
    one = interaction_strength(model, images, labels, **SMALL)
    model.layers[1].weight.data *= 1.01
    other = interaction_strength(model, images, labels, **SMALL)
    low, high = one.difference_interval(other).T
    assert ((low <= one.strength - other.strength) & (one.strength - other.strength <= high)).all()
    assert (high - low).max() < 0.2 * np.diff(one.strength_interval()).max()
    with pytest.raises(ValueError, match="^other: expected a measurement of the same images"):
        one.difference_interval(interaction_strength(model, images[:5], labels[:5], **SMALL))
    record = result.to_dict()
    assert record["images"] == 12
    assert record["settings"]["ratios"] == SMALL["ratios"]
    assert np.shape(record["strength_interval"]) == (4, 2)
