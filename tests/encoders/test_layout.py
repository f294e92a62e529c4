"""How the output of a module holds a feature map."""

from collections import namedtuple

import pytest
import torch

from modeling_a2mim.encoders.layout import FeatureLayout


LAYOUTS = [
    FeatureLayout("NCHW", 5, (2, 3)),
    FeatureLayout("NHWC", 5, (2, 3)),
    FeatureLayout("NLC", 5, (2, 3)),
    FeatureLayout("NLC", 5, (2, 3), 1),
    FeatureLayout("NLC", 5, (2, 3), 4),
    FeatureLayout("NCL", 5, (2, 3), 2),
    FeatureLayout("NHWC", 5, (2, 3), path=(1,)),
    FeatureLayout("NLC", 5, (2, 3), 1, path=("maps", 0)),
]


def as_layout(image, layout):
    """A map (batch, channels, rows, columns) as a module would give it: with random prefix tokens, between others."""
    if layout.kind == "NCHW":
        x = image
    elif layout.kind == "NHWC":
        x = image.permute(0, 2, 3, 1).contiguous()
    else:
        prefix = torch.randn(len(image), layout.channels, layout.prefix, dtype=image.dtype)
        x = torch.cat([prefix, image.flatten(2)], 2)
        x = x if layout.kind == "NCL" else x.transpose(1, 2)
    for key in reversed(layout.path):
        x = {key: x, "other": torch.zeros(2)} if isinstance(key, str) else [*range(key), x, None]
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout):
    image = torch.randn(3, 5, 2, 3)
    x = as_layout(image, layout)
    assert torch.equal(layout.to_map(x, (2, 3)), image)
    mask = torch.rand(3, 2, 3) > 0.5
    spread = layout.spread(mask)
    product = layout.put(x, layout.pick(x) * spread)
    assert torch.equal(layout.to_map(product, (2, 3)), image * mask[:, None])
    assert spread.sum() == mask.sum()  # no prefix token is masked


def test_nested_outputs_keep_their_form():
    pair = namedtuple("pair", ["first", "second"])
    layout = FeatureLayout("NCHW", 1, (1, 1), path=(0, 1))
    for old, new in [
        (([1, 2], 3), ([1, 5], 3)),
        (pair((1, 2), 3), pair((1, 5), 3)),
        ({0: [1, 2], "x": 3}, {0: [1, 5], "x": 3}),
    ]:
        assert layout.pick(old) == 2
        assert layout.put(old, 5) == new
        assert type(layout.put(old, 5)) is type(new)
