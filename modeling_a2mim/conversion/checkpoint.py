"""Official A2MIM and SimMIM checkpoints (.pth of OpenMixup) to this package.

    python -m modeling_a2mim.conversion IN.pth OUT_FOLDER

What the files hold, as the official code writes them, and what becomes of it:

    pre-training checkpoint   backbone.* with mask_token (and mask_gamma), neck.*    A2MIMForPreTraining
    extracted backbone        the same without "backbone." and neck.*                A2MIMModel, with its token
    fine-tuned classifier     backbone.*, head.*                                     A2MIMForImageClassification

The weights are under `state_dict` beside mmcv's `meta` and `optimizer`, or at top level; in a zip or a legacy pickle.
Names may begin with `module.`; `ema_*` are left out, since the plain names hold the averaged weights already. Files
are read with `weights_only=True`, and what torch does not read so is refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ..encoders.meta import NoValues
from ..encoders.plan import classifier_parameters
from ..export.eval_results import IMAGENET
from ..export.methods import EITHER
from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel
from ..models.classifier import A2MIMForImageClassification
from ..pretrained.weight_files import read_pickle
from .config import official_config, official_family
from .published import Published, published_for


Converted = A2MIMForPreTraining | A2MIMModel | A2MIMForImageClassification

# official name (a regular expression) -> timm name, applied in this order to every key of the encoder
RENAMES: dict[str, list[tuple[str, str | Callable[[re.Match], str]]]] = {
    "convnext": [
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.depthwise_conv\.", ".conv_dw."),
        (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
        (r"^norm3\.", "head.norm."),
    ],
    "vit": [
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^layers\.", "blocks."),
        (r"\.ln([12])\.", r".norm\1."),
        (r"^ln1\.", "norm."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    ],
    "swin": [
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^stages\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
        (r"^stages\.", "layers."),
        (r"\.attn\.w_msa\.", ".attn."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"^norm3\.", "norm."),
    ],
    "resnet": [],
}
# What `publish_dir_models.py` makes of these names when it cuts "fc" out of others.
MANGLED = {"fc_norm.wht": "fc_norm.weight", "fc_norm.b": "fc_norm.bias"}
DECODERS = {"neck.decoder_pred.0": "A2MIM", "neck.decoder.0": "SimMIM"}
POSITIONS = "relative_position_index"  # what timm computes itself
HEADS = ("head.fc", "head.layers.head", "head")  # the last one by `publish_dir_models.py`


class Official(NamedTuple):
    """What was read from an official file."""

    model: Converted
    kind: str  # in words
    method: str | None  # "A2MIM" or "SimMIM", `None` if the file does not tell
    by_name: bool = False  # whether the method is known by the file's name alone
    in_format: bool = True  # of OpenMixup; else its names are any ResNet's

    @property
    def published(self) -> list[Published]:
        """The paper's numbers for this encoder, none where it is not known to be the paper's."""
        classifier = isinstance(self.model, A2MIMForImageClassification)
        return [] if self.method is None else published_for(self.model.config, classifier, self.method)

    @property
    def told(self) -> str:
        """What it is, in words."""
        if self.method is None:
            return f"{self.kind}, of which the file does not tell how it was trained"
        return f"{self.kind} of {self.method}{', by the name of the file' if self.by_name else ''}"

    @property
    def record(self) -> dict:
        """For the model card (`records`)."""
        imagenet = any(row.pretraining.startswith("ImageNet-1K") for row in self.published)
        has_token = getattr(getattr(self.model, "a2mim", self.model), "mask_token", None) is not None
        return {
            "origin": f"converted from {'OpenMixup' if self.in_format else 'torchvision'}'s format: {self.told}",
            "method": self.method or (EITHER if has_token else None),
            "license": None if self.method is None else "apache-2.0",  # of the official release
            "datasets": [IMAGENET] if imagenet else [],
            "classifier": isinstance(self.model, A2MIMForImageClassification),
            "published": [asdict(row) for row in self.published],
        }


class _Parts(NamedTuple):
    """The weights of a file under their official names; those of decoder and head are `weight` and `bias`."""

    encoder: dict[str, torch.Tensor]
    token: torch.Tensor | None
    gamma: torch.Tensor | None
    decoder: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    method: str | None  # as the decoder tells
    in_format: bool  # whether its names, or a token, are only OpenMixup's


def load_official(path: str | Path, mask_site: int | str | None = None, encoder_only: bool = False) -> Converted:
    """Read an official checkpoint; which kind it is decides what is returned, in evaluation mode.

    Args:
        path: a .pth file.
        mask_site: overrides the site of the mask token, which is read from the configuration text inside the file
            (`mask_layer`) where there is one, and otherwise told from the token's width.
        encoder_only: leave out the decoder or classifier.

    Raises:
        ValueError: if the file cannot be read without running code from it, is no official checkpoint, or a weight is
            missing, left over or of another shape. The message begins with the path.
        OSError: if the file cannot be opened.
    """
    return read_official(path, mask_site, encoder_only).model


def read_official(path: str | Path, mask_site: int | str | None = None, encoder_only: bool = False) -> Official:
    """The same with what else is known about the file."""
    path = Path(path)
    content = read_pickle(path)
    try:
        return convert(content, mask_site, encoder_only, path.name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def convert(
    content: Mapping, mask_site: int | str | None = None, encoder_only: bool = False, name: str = ""
) -> Official:
    """What an official file holds to a model. Arguments and errors as in `load_official`, except `name`, the file's,
    which tells the method where the file does not."""
    state, config_text = _unwrap(content)
    parts = _split(state, encoder_only)
    method, by_name = parts.method or _method(parts, config_text), False
    in_format = bool(parts.in_format or config_text)
    if method is None and in_format:  # a ResNet of torchvision or timm may be called anything
        method = _named_method(name)
        by_name = method is not None
    config = official_config(
        parts.encoder,
        token=parts.token,
        has_gamma=parts.gamma is not None,
        num_labels=parts.head["bias"].numel() if parts.head else 0,
        simmim=method == "SimMIM",
        mask_site=mask_site,
        config_text=config_text,
    )
    build: Callable[..., Converted]
    if parts.decoder:
        kind, build = "pre-training checkpoint", A2MIMForPreTraining
    elif parts.head:
        kind, build = "fine-tuned classifier", A2MIMForImageClassification
    else:
        kind, build = "encoder", partial(A2MIMModel, use_mask_token=parts.token is not None)
    weights = _place(parts, partial(build, config))
    return Official(_fill(partial(build, config), weights), kind, method, by_name, in_format)


def _unwrap(content) -> tuple[dict[str, torch.Tensor], str]:
    """The weights and the text of the official configuration, if it is there."""
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a dict of weights, found a {type(content).__name__}")
    meta, weights = content.get("meta"), content.get("state_dict", content)
    text = meta.get("config") if isinstance(meta, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError(f"state_dict: expected a dict of weights, found a {type(weights).__name__}")
    state = {}
    for key, tensor in weights.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"expected weights by their names, found {key!r} with a {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{key}: not a plain tensor, but {tensor.layout} on {tensor.device}")
        name = key.removeprefix("module.")
        if name in state:
            raise ValueError(f"{name} is there twice, with and without 'module.'")
        if not name.startswith("ema_"):
            state[name] = tensor
    # A few bytes can call themselves many tensors of any size.
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    claimed, stored = sum(tensor.numel() * tensor.element_size() for tensor in state.values()), sum(storages.values())
    if claimed > stored:
        raise ValueError(f"state_dict: the weights call themselves {claimed:,} bytes and are {stored:,}")
    return state, text if isinstance(text, str) else ""


def _split(state: dict[str, torch.Tensor], encoder_only: bool) -> _Parts:
    is_whole = any(key.startswith("backbone.") for key in state)
    encoder: dict[str, torch.Tensor] = {}
    neck: dict[str, torch.Tensor] = {}
    head: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        group = {"neck": neck, "head": head, "backbone": encoder}.get(key.partition(".")[0])
        if group is None and not is_whole:  # extracted
            group = encoder
        if group is None:
            others = [k for k in state if not k.startswith(("backbone.", "neck.", "head."))]
            raise ValueError(f"weights left over: {', '.join(others[:5])}")
        name = MANGLED.get(key, key.removeprefix("backbone."))
        if name in group:
            raise ValueError(f"weights left over: {key} is {name}, which is there, too")
        group[name] = tensor
    token, gamma = encoder.pop("mask_token", None), encoder.pop("mask_gamma", None)
    method = next((method for layer, method in DECODERS.items() if f"{layer}.weight" in neck), None)
    if encoder_only:
        neck, head = {}, {}
    if neck and head:
        raise ValueError(f"weights left over: both a decoder and a classifier, {min(neck)} and {min(head)}")
    if neck and _layer(neck, DECODERS) is None:
        raise ValueError(
            f"its decoder ({', '.join(sorted(neck)[:5])}) is not the single convolution that A2MIMForPreTraining has; "
            "--encoder_only (encoder_only=True) converts the encoder and drops the decoder"
        )
    if head and _layer(head, HEADS) is None:
        raise ValueError(f"its classifier ({', '.join(sorted(head)[:5])}) is not a single linear layer")
    if token is None and (neck or gamma is not None):
        raise ValueError("weights missing: mask_token")
    if token is not None and head:
        raise ValueError("weights left over: a mask_token beside a classifier")
    in_format = is_whole or token is not None or official_family(encoder) != "resnet"
    return _Parts(encoder, token, gamma, _unnamed(neck), _unnamed(head), method, in_format)


def _layer(weights: Mapping, names) -> str | None:
    """Which of the names is that of the one layer that these weights are."""
    return next((name for name in names if set(weights) == {f"{name}.weight", f"{name}.bias"}), None)


def _unnamed(layer: Mapping) -> dict[str, torch.Tensor]:
    return {key.rpartition(".")[2]: tensor for key, tensor in layer.items()}


def _method(parts: _Parts, config_text: str) -> str | None:
    if parts.gamma is not None:
        return "A2MIM"
    found = re.search(r"type\s*=\s*['\"](A2MIM|SimMIM)['\"]", config_text)
    return found[1] if found else None


def _named_method(name: str) -> str | None:
    found = re.search("(a2mim|simmim)", name.lower())
    return {"a2mim": "A2MIM", "simmim": "SimMIM"}[found[1]] if found else None


def _place(parts: _Parts, build: Callable[[], Converted]) -> dict[str, torch.Tensor]:
    """The weights, and the indices of relative positions, under the names of the model that `build` makes. Each must
    find its place, and none may be missing."""
    family = official_family(parts.encoder)
    found = {_rename(k, family): v for k, v in parts.encoder.items()}
    if len(found) < len(parts.encoder):
        raise ValueError("weights left over: some are there twice, under official names and timm's")
    with torch.device("meta"), NoValues():  # so that what does not fit takes no memory
        empty = build()
    core = "" if isinstance(empty, A2MIMModel) else "a2mim."
    if parts.head:
        for name in classifier_parameters(empty.get_submodule(f"{core}encoder")):
            found[name] = parts.head[name.rpartition(".")[2]]
    weights = {f"{core}encoder.{name}": tensor for name, tensor in found.items()}
    weights |= {f"decoder.{name}": tensor for name, tensor in parts.decoder.items()}
    for name, tensor in {"token": parts.token, "gamma": parts.gamma}.items():
        if tensor is not None:
            weights[f"{core}mask_token.{name}"] = tensor.flatten()
    indices = {name: index for name, index in empty.named_buffers() if name.endswith(POSITIONS)}
    _check(weights, empty.state_dict() | indices, empty.config.architecture)
    if family == "swin":
        weights = {k: _reorder_merging(v) if ".downsample." in k else v for k, v in weights.items()}
    return weights


def _fill(build: Callable[[], Converted], weights: Mapping) -> Converted:
    model = build()
    buffers = dict(model.named_buffers())
    for name, index in weights.items():
        if name.endswith(POSITIONS) and not torch.equal(buffers[name], index):
            raise ValueError(f"{name}: the relative positions are not those of timm's encoder")
    model.load_state_dict({name: tensor for name, tensor in weights.items() if not name.endswith(POSITIONS)})
    return model.eval()


def _check(weights: Mapping, expected: Mapping, architecture: str):
    wrong = {
        "left over": [name for name in weights if name not in expected],
        "missing": [name for name in expected if name not in weights],
        "of another shape or type": [
            f"{name} {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            for name, tensor in weights.items()
            if name in expected and _form(tensor) != _form(expected[name])
        ],
    }
    if any(wrong.values()):
        text = "; ".join(f"weights {what}: {', '.join(names[:5])}" for what, names in wrong.items() if names)
        raise ValueError(f"the file does not fit {architecture} (with the names of weights here): {text}")


def _form(tensor: torch.Tensor) -> tuple:
    return tensor.shape, tensor.is_floating_point(), tensor.is_complex()


def _rename(key: str, family: str) -> str:
    for pattern, replacement in RENAMES[family]:
        key = re.sub(pattern, replacement, key)
    return key


def _reorder_merging(weight: torch.Tensor) -> torch.Tensor:
    """Inputs of Swin's patch merging: the official order is (channel, row, column), timm's (column, row, channel)."""
    channels = weight.shape[-1] // 4
    return weight.unflatten(-1, (channels, 2, 2)).movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)
