"""Small models of transformers of each family, with weights that all matter, and what they make of images."""

import json
import math
import re
from collections.abc import Sequence

import pytest
import timm
import torch
import transformers
from torch import nn

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.encoders.meta import NoValues
from modeling_a2mim.encoders.plan import plan_encoder
from modeling_a2mim.key_layouts import encoder_fields, timm_weights
from modeling_a2mim.pretrained.weight_files import read_weights


VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 72,
    "image_size": 48,
    "patch_size": 8,
}
DINOV2 = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 3, "image_size": 70}
DINOV2 |= {"patch_size": 14}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 3], "num_heads": [2, 4], "window_size": 4}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1], "image_size": 64}
RESNET = {"hidden_sizes": [64, 32, 96, 128], "depths": [2, 1, 1, 2]}
BEIT = VIT | {"use_relative_position_bias": True}


def make(cls: str, seed: int = 0, **config):
    """A model in evaluation mode: no weight, statistic or token of it is neutral."""
    model_class = getattr(transformers, cls)
    model = model_class(model_class.config_class(**config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in model.state_dict():
                _randomise(name, tensor, generator)
    return model


def _randomise(name: str, tensor: torch.Tensor, generator: torch.Generator):
    noise = torch.randn(tensor.shape, generator=generator)
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        tensor.fill_(7)
    elif last == "running_var":
        tensor.copy_(noise.abs() + 0.5)
    elif last == "logit_scale":
        tensor.copy_(math.log(10) + 0.3 * noise)
    elif last in ("bias", "running_mean"):
        tensor.copy_(0.3 * noise)
    elif last == "weight" and tensor.ndim >= 2 and "grn" not in name:
        tensor.copy_(noise / math.sqrt(tensor[0].numel()))
    elif tensor.ndim == 1:  # norms and layer scales
        tensor.copy_(0.8 + 0.3 * noise)
    else:  # tokens, positions, tables of them
        tensor.copy_(0.5 * noise)


def images(size, channels: int = 3) -> torch.Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(model, pixels: torch.Tensor, **kwargs) -> torch.Tensor:
    """The last feature map of a model of transformers, (batch, tokens, channels)."""
    if hasattr(model, "out_features"):
        return _as_tokens(model(pixels, **kwargs).feature_maps[-1])
    bare = model if type(model).__name__.endswith("Model") else getattr(model, model.base_model_prefix)
    return _as_tokens(bare(pixels, **kwargs).last_hidden_state)


@torch.no_grad()
def timm_features(encoder: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The same of timm's."""
    nhwc = getattr(encoder, "output_fmt", "") == "NHWC"
    output = encoder.forward_features(pixels)
    return output.flatten(1, 2) if nhwc else _as_tokens(output)


def _as_tokens(output: torch.Tensor) -> torch.Tensor:
    return output.flatten(2).transpose(1, 2) if output.ndim == 4 else output


def stored(model, folder, **kwargs) -> tuple[dict, dict]:
    """What `save_pretrained` makes of a model: its config.json and its weights."""
    model.save_pretrained(folder, **kwargs)
    return json.loads((folder / "config.json").read_text()), read_weights(str(folder))


def load(config: dict, weights: dict) -> tuple[nn.Module, list[str]]:
    """timm's encoder with these weights, strictly, built as this package builds it, and the names left over."""
    found, left_over = timm_weights(config, weights)
    plan = plan_encoder(A2MIMConfig.for_encoder(**encoder_fields(config)), for_masking=False)
    encoder = plan.create().eval()
    encoder.load_state_dict(found, strict=True)
    return encoder, left_over


def assert_same_features(cls: str, config: dict, folder, patches: bool = False, head=None, **kwargs):
    """transformers and timm make the same last feature map of random images.

    Args:
        cls: of transformers.
        config: its configuration.
        folder: where the model may be saved, under the names of earlier releases and of its modules.
        patches: whether transformers gives those of the patches alone.
        head: what transformers' model does to its last map before timm's encoder has it.
        kwargs: of the forward pass of transformers.

    Returns:
        transformers' model, timm's encoder and the names left over.
    """
    model = make(cls, **config)
    pixels = images(config.get("image_size", 64), config.get("num_channels", 3))
    expected = features(model, pixels, **kwargs)
    with torch.no_grad():
        expected = head(model)(expected) if head else expected
    assert 0.3 < expected.std() < 3  # so that 1e-4 says something
    for original in (True, False):
        encoder, left_over = load(*stored(model, folder, save_original_format=original))
        found = timm_features(encoder, pixels)
        found = found[:, -expected.shape[1] :] if patches else found
        # The order of sums differs: 5e-6 at most were measured.
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    return model, encoder, left_over


LARGE = re.compile(r"large|huge|giant|_7b_|resnet1|regnet._(320|640|1280)")


def published(cases: Sequence[tuple]) -> list:
    """Parameters of a test for each size, of which the architecture is the text. Large ones take a second each, differ
    from the others in numbers alone, and so take `make test-all`."""
    large = [any(isinstance(value, str) and LARGE.search(value) for value in case) for case in cases]
    return [pytest.param(*case, marks=[pytest.mark.slow] * slow) for case, slow in zip(cases, large, strict=True)]


def assert_published(data: dict, architecture: str, model_args: dict | None = None):
    """A configuration of this size is this architecture of timm, which has all its weights in their shapes, with no
    more arguments, and heads of the same width."""
    config = transformers.CONFIG_MAPPING[data["model_type"]].from_dict(dict(data))
    fields = encoder_fields(data)
    assert (fields["architecture"], fields["model_args"]) == (architecture, model_args or {})
    with torch.device("meta"), NoValues():
        model = transformers.AutoModel.from_config(config)
    encoder = plain(fields)
    found, _ = timm_weights(config.to_dict(), model.state_dict())
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    assert heads(encoder) == heads(model)


def plain(fields: dict) -> nn.Module:
    """timm's encoder by its public function alone, on the meta device."""
    args = {"in_chans": fields["num_channels"], **fields["model_args"]}
    if not fields["architecture"].startswith(("resnet", "regnet", "convnext")):
        args["img_size"] = fields["image_size"]
    with torch.device("meta"), NoValues():
        return timm.create_model(fields["architecture"], num_classes=0, **args)


def heads(model: nn.Module) -> list[int]:
    """How many heads each attention has."""
    names = ("num_attention_heads", "num_heads")
    found = [next((getattr(m, name) for name in names if hasattr(m, name)), None) for m in model.modules()]
    return [
        number for number, m in zip(found, model.modules(), strict=True) if "Attention" in type(m).__name__ and number
    ]
