"""Masks, what fills them, and the mask token."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_a2mim.encoders.layout import FeatureLayout
from modeling_a2mim.masking import MaskToken, as_grid, fill_masked, pixel_mask, random_mask, resize_mask

from .encoders.test_layout import LAYOUTS, as_layout


# Masks


@pytest.mark.parametrize(("grid", "masked"), [((7, 7), 30), ((4, 6), 1), ((1, 5), 4), ((3, 2), 0)])
def test_random_mask_count(grid, masked):
    mask = random_mask(16, grid, masked)
    assert mask.dtype == torch.bool
    assert mask.shape == (16, *grid)
    assert mask.sum((1, 2)).tolist() == [masked] * 16


def test_random_mask_is_uniform():
    """Every cell, and every pair of cells, is masked as often as any other."""
    draws, cells, masked = 4000, 24, 8
    mask = random_mask(draws, (4, 6), masked, torch.Generator().manual_seed(0)).flatten(1).double()
    together = mask.T @ mask / draws
    one, two = masked / cells, masked * (masked - 1) / (cells * (cells - 1))

    def five_sigma(p):  # one of 300 frequencies leaves it once in 6000 seeds
        return 5 * math.sqrt(p * (1 - p) / draws)

    assert (together.diagonal() - one).abs().max() < five_sigma(one)
    assert (together[~torch.eye(cells, dtype=torch.bool)] - two).abs().max() < five_sigma(two)


def test_random_mask_generator():
    first, again, other = (random_mask(4, (7, 7), 30, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    before = torch.get_rng_state()
    random_mask(4, (7, 7), 30, torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_as_grid():
    mask = torch.rand(3, 2, 4) > 0.5
    for given in (mask, mask.float(), mask.long(), mask.flatten(1), mask.flatten(1).int()):
        grid = as_grid(given, 3, (2, 4))
        assert grid.dtype == torch.bool
        assert torch.equal(grid, mask)
    finer = torch.rand(3, 6, 12) > 0.5
    for given in (finer, finer.flatten(1)):
        assert torch.equal(as_grid(given, 3, (2, 4)), finer)
    assert torch.equal(as_grid(mask, 3, (4, 16)), mask)  # coarser


SHAPES = [(2, 2, 4), (3, 7), (3, 9), (3, 16), (3, 4), (2, 8), (8,), (3, 1, 2, 4), ()]


@pytest.mark.parametrize("shape", [*SHAPES, (3, 4, 2), (3, 5, 7), (3, 2, 6), (3, 3, 4), (3, 1, 3), (3, 0, 4), (3, 0)])
def test_as_grid_refuses(shape):
    with pytest.raises(ValueError, match=r"^bool_masked_pos: expected \(3, 2, 4\) or \(3, 8\)"):
        as_grid(torch.ones(shape), 3, (2, 4))


@pytest.mark.parametrize("value", [0.3, -1.0, 2.0, math.nan])
def test_as_grid_refuses_floats_that_are_no_mask(value):
    mask = torch.zeros(3, 2, 4)
    mask[2, 1, 3] = value
    for given in (mask, mask.flatten(1), mask.bfloat16()):
        with pytest.raises(ValueError, match="^bool_masked_pos: expected 0 and 1, 1 = masked"):
            as_grid(given, 3, (2, 4))
    assert as_grid(torch.full((3, 2, 4), 255, dtype=torch.uint8), 3, (2, 4)).all()  # as images store masks
    for given in (np.ones((3, 2, 4), bool), [[[True]]]):
        with pytest.raises(
            ValueError, match=r"^bool_masked_pos: expected \(3, 2, 4\) .* as a tensor; got (ndar|list)"
        ):
            as_grid(given, 3, (2, 4))


def test_resize_mask_up_takes_the_nearest():
    mask = torch.rand(3, 2, 3) > 0.5
    assert torch.equal(resize_mask(mask, (8, 6)), mask.repeat_interleave(4, 1).repeat_interleave(2, 2))
    assert torch.equal(resize_mask(mask, (2, 3)), mask)


def test_resize_mask_down_takes_any():
    mask = torch.rand(3, 8, 6) > 0.8
    small = resize_mask(mask, (2, 3))
    assert small.dtype == torch.bool
    assert torch.equal(small, mask.view(3, 2, 4, 3, 2).any(4).any(2))
    assert small.any()
    assert not small.all()


def test_resize_mask_loses_no_cell():
    """Sizes that do not divide: a cell of the map is masked if, and only if, it overlaps a masked cell."""
    mask = torch.eye(7, dtype=torch.bool).view(7, 7, 1)  # row i of image i
    for rows in (2, 3, 4, 5, 6, 8, 10, 16):
        overlaps = [[row * 7 < (i + 1) * rows and (row + 1) * 7 > i * rows for row in range(rows)] for i in range(7)]
        assert resize_mask(mask, (rows, 1))[..., 0].tolist() == overlaps


def test_pixel_mask():
    mask = torch.rand(3, 2, 3) > 0.5
    pixels = pixel_mask(mask, (8, 15))
    assert pixels.dtype == torch.bool
    assert torch.equal(pixels, mask.repeat_interleave(4, 1).repeat_interleave(5, 2)[:, None])
    rows = torch.arange(10) * 4 // 10  # the nearest cell where sizes do not divide
    mask = torch.rand(3, 4, 4) > 0.5
    assert torch.equal(pixel_mask(mask, (10, 10)), mask[:, rows][:, :, rows][:, None])


@pytest.mark.parametrize("fill", ["mean", "zero", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fill_masked(fill, dtype):
    images = torch.randn(3, 2, 8, 12).to(dtype) + torch.arange(3).view(3, 1, 1, 1)
    before = images.clone()
    mask = torch.rand(3, 2, 3) > 0.5
    mask[:, 0, 0] = True
    filled = fill_masked(images, mask, fill)
    where = pixel_mask(mask, (8, 12)).expand_as(images)
    assert filled.dtype == dtype
    assert torch.equal(filled[~where], images[~where])
    value = {"mean": images.mean((2, 3), keepdim=True), "zero": torch.zeros_like(images), "none": images}[fill]
    assert torch.equal(filled[where], value.expand_as(images)[where])
    assert torch.equal(images, before)  # not in place


def test_fill_masked_by_the_mean_of_the_whole_image():
    images = torch.zeros(1, 1, 4, 4)
    images[..., :2] = 8  # the masked half
    mask = torch.tensor([[[True, False]]])
    assert fill_masked(images, mask)[0, 0, 0].tolist() == [4, 4, 0, 0]


# The token


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("mode", "gamma"), [("add", 0.25), ("add", None), ("replace", None)])
def test_mask_token(layout, mode, gamma):
    config = SimpleNamespace(mask_token_mode=mode, mask_gamma_init=gamma)
    token = MaskToken(config, layout).double()
    with torch.no_grad():
        for parameter in token.parameters():
            parameter.normal_()
    assert (token.gamma is None) == (gamma is None)
    image = torch.randn(4, 5, 2, 3, dtype=torch.float64)
    x = as_layout(image, layout)
    assert token.hook(None, (), x) is None  # no mask, no change

    mask = torch.rand(4, 2, 3) > 0.5
    token.state = (mask, layout.grid)
    changed = token.hook(None, (), x)
    m, t = mask[:, None].double(), token.token.view(-1, 1, 1)
    scale = 0 if mode == "replace" else 1 if gamma is None else token.gamma.view(-1, 1, 1)
    # Each term is multiplied by exactly 0 or 1, so the sum is exact.
    assert torch.equal(layout.to_map(changed, (2, 3)), image * (1 - m) + scale * image * m + t * m)
    before, after = layout.pick(x), layout.pick(changed)
    if layout.kind == "NLC":
        before, after = before.transpose(1, 2), after.transpose(1, 2)
    assert torch.equal(after[..., : layout.prefix], before[..., : layout.prefix])


def test_mask_token_resizes_the_mask():
    layout = FeatureLayout("NCHW", 2, (4, 4))
    token = MaskToken(SimpleNamespace(mask_token_mode="replace", mask_gamma_init=None), layout)
    torch.nn.init.ones_(token.token)
    token.state = (torch.tensor([[[True, False], [False, False]]]), token.layout.grid)
    expected = torch.zeros(1, 2, 4, 4)
    expected[..., :2, :2] = 1
    assert torch.equal(token.hook(None, (), torch.zeros(1, 2, 4, 4)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mask_token_keeps_the_precision_of_the_features(dtype):
    token = MaskToken(SimpleNamespace(mask_token_mode="add", mask_gamma_init=1.0), LAYOUTS[0])
    torch.nn.init.ones_(token.token)
    torch.nn.init.ones_(token.gamma)
    token.state = (torch.ones(1, 2, 3, dtype=torch.bool), token.layout.grid)
    z = torch.randn(1, 5, 2, 3).to(dtype)
    changed = token.hook(None, (), z)
    assert changed.dtype == dtype
    assert torch.equal(changed, z + 1)
