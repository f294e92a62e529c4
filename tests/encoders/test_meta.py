"""Encoders without values, and how they get them."""

import pytest
import torch
from torch import nn

from modeling_a2mim.encoders.meta import NoValues, build_on_meta, fill_holes


def test_built_without_values_and_without_a_classifier():
    before = torch.get_rng_state()
    encoder = build_on_meta({"model_name": "test_vit", "depth": 2})
    assert all(tensor.is_meta for tensor in encoder.state_dict().values())
    assert not encoder.training
    assert isinstance(encoder.get_classifier(), nn.Identity)
    assert len(encoder.blocks) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_what_timm_cannot_build():
    with pytest.raises(ValueError, match=r"^model_args: timm cannot build test_vit with {'depht': 2}: .*depht"):
        build_on_meta({"model_name": "test_vit", "depht": 2})


def test_only_tensors_of_the_meta_device_are_left_unfilled():
    with NoValues():
        assert torch.zeros(3).fill_(2.0).tolist() == [2.0] * 3
        assert torch.empty(3, device="meta").fill_(2.0).is_meta


def test_holes_get_the_values_of_a_new_module():
    """What transformers has marked stays, and so does the global random state."""
    module = nn.Linear(3, 2)
    nn.init.constant_(module.weight, 5.0)
    module.weight._is_hf_initialized = True
    new = nn.Linear(3, 2)

    def make():
        torch.rand(1)  # as first values are drawn
        return new

    before = torch.get_rng_state()
    fill_holes(module, make)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(module.weight, torch.full((2, 3), 5.0))
    assert torch.equal(module.bias, new.bias)
    assert module.bias._is_hf_initialized


def test_on_the_meta_device_nothing_is_filled():
    module = nn.Linear(3, 2, device="meta")
    fill_holes(module, lambda: pytest.fail("nothing is to be built"))
    assert module.weight.is_meta
