"""Weights as safetensors takes them."""

import torch
from safetensors.torch import load, save

from modeling_a2mim.utils.weights import without_sharing


def test_tensors_of_several_names_are_copied():
    weight, empty = torch.arange(3.0), torch.empty(0)
    state = {"one": weight, "other": weight, "own": weight.clone(), "empty": empty, "empty_too": empty}
    found = without_sharing(state)
    assert found["one"] is weight
    assert len({tensor.data_ptr() for tensor in found.values() if tensor.numel()}) == 3
    read = load(save(found))
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
