"""Weights as safetensors takes them."""

import torch


def without_sharing(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with copies of tensors that it has under several names, which safetensors refuses: modules that an
    encoder uses at several places (CoaT) are timm's keys at each of them."""
    seen, result = set(), {}
    for name, tensor in state_dict.items():
        place = (tensor.device, tensor.data_ptr())
        result[name] = tensor.clone() if place in seen and tensor.numel() else tensor
        seen.add(place)
    return result
