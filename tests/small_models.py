"""Small models of the five families, built once for each kind, what they give, and what is compared of them."""

import copy
import functools

import pytest
import timm
import torch

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel

from .families import FAMILIES


CLASSES = [A2MIMModel, A2MIMForPreTraining, A2MIMForImageClassification]
MASK = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
MASKS = torch.stack([MASK, ~MASK, MASK.T, MASK.flip(0)])


def make_config(family, **kwargs):
    return A2MIMConfig(**{"image_size": 64, "mask_patch_size": 16, "num_labels": 3, **FAMILIES[family], **kwargs})


@functools.cache
def made(family, cls, use_mask_token, kwargs):
    torch.manual_seed(0)
    config = make_config(family, **dict(kwargs))
    return cls(config, use_mask_token=True) if use_mask_token else cls(config)


def make(family, cls=A2MIMForPreTraining, use_mask_token=False, **kwargs):
    """A model of its own for each test; only the first of its kind takes the time to be built."""
    return copy.deepcopy(made(family, cls, use_mask_token, tuple(kwargs.items())))


def make_images(batch=2, channels=3, height=64, width=64):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def timm_encoder(family, **kwargs):
    """What timm makes of the same arguments; a Swin must know the size."""
    args = {"model_name": FAMILIES[family]["architecture"], **FAMILIES[family].get("model_args", {})}
    sized = {"img_size": 64} if family == "swin" else {}
    return timm.create_model(**args, **sized, **{"num_classes": 0, **kwargs})


def run(model, images, **kwargs):
    """Forward without gradients, with the mask where the model takes one."""
    if isinstance(model, A2MIMForPreTraining):
        kwargs.setdefault("bool_masked_pos", MASKS[: len(images)])
    with torch.no_grad():
        return model(images, **kwargs)


def tensors(model):
    """Everything a module holds, the buffers that are not saved included"""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []


def values(output):
    """An output as named tensors"""
    flat = {}
    for name, value in output.items():
        flat.update({f"{name}.{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value})
    return flat


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_close(actual, expected):
    # The same operations in the same order; threads may add in another one, 1e-7 of the largest per addition.
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=1e-5 * gradient.abs().max().item(), msg=name)


def classifier(model):
    """The parameters of timm's classifier, named as in the encoder"""
    own = {id(p) for p in model.a2mim.encoder.get_classifier().parameters()}
    return {name: p for name, p in model.a2mim.encoder.named_parameters() if id(p) in own}


def check_own_weights(model):
    """The first values of token, gamma and decoder"""
    token, gamma = model.a2mim.mask_token.token.detach(), model.a2mim.mask_token.gamma
    weight = model.decoder.weight.detach()
    # At least 48 draws: four standard errors of their standard deviation are 0.02 * 4 / sqrt(2 * 48) = 0.008.
    assert token.std().item() == pytest.approx(0.02, abs=0.008)
    assert token.abs().max() <= 2
    assert torch.equal(gamma, torch.full_like(gamma, 1e-6))
    # At least 49152 draws: four standard errors are 0.00026, those of the mean 0.00036.
    assert weight.std().item() == pytest.approx(0.02, abs=0.00026)
    assert weight.mean().item() == pytest.approx(0, abs=0.00036)
    assert not model.decoder.bias.any()


def check_new_classifier(model, labels):
    weight, bias = classifier(model).values()
    assert weight.shape[0] == len(bias) == labels
    # timm draws from distributions between these; what happens to be in memory would hardly be.
    assert 0.005 < weight.std() < 1
    assert weight.unique().numel() > 0.9 * weight.numel()
    assert bias.abs().max() < 1
    assert run(model, make_images()).logits.isfinite().all()
