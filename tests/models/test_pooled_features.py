"""Pooled features: of one map and of every stage, in one forward; what each feature is, for every family of timm."""

import numpy as np
import pytest
import torch

from modeling_a2mim import A2MIMModel
from modeling_a2mim.models.pooled_features import (
    ALL,
    layer_features,
    layer_index,
    layer_widths,
    stage_indices,
    unit_maps,
)

from ..families import FAMILIES, family_config
from ..sample_families import NAMES, awake_sample
from .test_linear_probe import assert_close, pretrained


pytestmark = pytest.mark.usefixtures("one_thread")
# Maps in another layout (swin, hiera), smaller than their stride says (pit), of two branches (crossvit), or with
# tokens before them (deit, dinov3).
QUICK = ["swinv2_cr_tiny_224", "hiera_tiny_224", "pit_ti_224", "crossvit_tiny_240", "vit_tiny_patch16_dinov3_qkvb"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_features_of_all_layers(family):
    model, images = pretrained(family)
    core, top = model.a2mim, len(model.a2mim.encoder.feature_info) - 1
    output = core(images, output_hidden_states=True)
    maps = [*output.hidden_states[:-1], core.feature_map(output.last_hidden_state, (64, 64))]
    expected = {i: features.mean((2, 3)) for i, features in enumerate(maps)}
    expected[None] = output.pooler_output
    for layer, features in zip(expected, layer_features(core, images, list(expected)), strict=True):
        assert_close(features, expected[layer])
        assert_close(layer_features(core, images, [layer])[0], features)
    assert torch.equal(layer_features(core, images, [-1])[0], layer_features(core, images, [top])[0])
    first = layer_features(core, images.double().float(), [0, -1, 0])
    assert torch.equal(first[0], first[2])

    # Every stage: the means of a map, then its deviations, from the first map to the last.
    (found,) = layer_features(core, images, [ALL])
    parts = [maps[index].flatten(2).double().numpy() for index in stage_indices(core)]
    moments = [moment for part in parts for moment in (part.mean(2), part.std(2))]
    assert_close(found, torch.from_numpy(np.concatenate(moments, 1)).float())
    assert layer_widths(core, ALL) == [2 * part.shape[1] for part in parts]
    together = layer_features(core, images, [0, ALL, -1, None])
    assert_close(together[1], found)
    for features, layer in zip(together, (0, ALL, top, None), strict=True):
        assert features.shape == (4, sum(layer_widths(core, layer)))
        if layer != ALL:
            assert_close(features, expected[layer])


@torch.no_grad()
def check_sample(name):
    model = awake_sample(A2MIMModel, name)
    size, indices, widths = tuple(model.config.input_size), stage_indices(model), layer_widths(model, ALL)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    (found,) = layer_features(model, images, [ALL])
    assert found.shape == (2, sum(widths))
    assert found.isfinite().all()
    _, maps = model.encode(images, output_hidden_states=True)
    (last,) = layer_features(model, images, [-1])
    assert indices[-1] == len(maps) - 1
    for index, part in zip(indices, found.split(widths, dim=1), strict=True):
        mean, deviation = part.chunk(2, dim=1)
        assert_close(mean, last if index == len(maps) - 1 else maps[index].mean((2, 3)))
        assert (deviation >= 0).all()
        assert (deviation[:, maps[index].flatten(2).std(2).amin(0) > 1e-3] > 0).all()  # positions differ
    # At most four maps of one resolution, each resolution among them.
    strides = [stage["reduction"] for stage in model.encoder.feature_info]
    chosen = [strides[index] for index in indices]
    assert {stride: chosen.count(stride) for stride in chosen} == {s: min(4, strides.count(s)) for s in strides}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_every_family(name):
    check_sample(name)


@pytest.mark.parametrize(("depth", "expected"), [(1, [0]), (3, [0, 1, 2]), (6, [0, 2, 3, 5]), (12, [2, 5, 8, 11])])
def test_blocks_of_a_vit_are_evenly_spaced(depth, expected):
    config = family_config("vit", model_args={"depth": depth})
    assert stage_indices(A2MIMModel(config)) == expected


@torch.no_grad()
def test_a_map_of_one_position_has_no_deviation():
    model, images = pretrained("resnet", size=32)
    (found,) = layer_features(model.a2mim, images, [ALL])
    deviation = found.split(layer_widths(model.a2mim, ALL), dim=1)[-1].chunk(2, dim=1)[1]
    assert not deviation.any()


def test_layers_that_there_are():
    core = A2MIMModel(family_config("resnet"))
    assert [layer_index(core, layer) for layer in (0, -1, None, ALL)] == [0, 4, None, ALL]
    for wrong in (5, -6, "first"):
        with pytest.raises(ValueError, match=f"^probe_layers: test_resnet has 5 feature maps, .* no index {wrong}$"):
            layer_index(core, wrong, "probe_layers")


def test_every_map_weighs_the_same():
    """The cosine is the mean of the cosines of the maps, whatever their scale and width."""
    one, other = torch.randn(6, 3).double(), torch.randn(6, 40).double()
    cosines = [torch.nn.functional.cosine_similarity(x[:1], x) for x in (one, other)]
    for scale in (1e-3, 1.0, 1e3):
        units = unit_maps(torch.cat([scale * one, other], dim=1), [3, 40])
        torch.testing.assert_close(units.norm(dim=1), torch.ones(6).double())
        torch.testing.assert_close(units[:1] @ units.T, (sum(cosines) / 2)[None])
