"""How timm lays out its encoders: how one is built for a size of images, which of its modules gives which feature map,
and where the mask token goes. The only module that knows; it knows no model by name.

An encoder is built and run once on the meta device, where tensors have shapes but no values, and the outputs of all of
its modules are looked at.
"""

import functools
import json
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from .layout import Layout, Site, _outputs
from .sites import _find_sites
from .tracing import _describe, _read, _Trace, _trace


@dataclass(frozen=True)
class EncoderPlan:
    """What was found out about an encoder before any of its weights were made."""

    create_args: dict[str, Any]  # keyword arguments of timm.create_model, except num_classes
    sites: tuple[Site, ...]  # where the mask token may enter, the preferred one first
    map_layout: Layout  # of the last feature map, in what `forward_features` (or `run_last_map`) gives
    stride: int  # pixels per cell of the last feature map
    head_norm: str | None  # name of the norm that the head applies after pooling
    from_intermediates: bool  # whether `forward_features` gives no map, so that it takes `run_last_map`
    isotropic: bool  # whether the encoder keeps one resolution from its first to its last feature map
    names: frozenset[str]  # of parameters and buffers of the encoder without a classifier

    def create(self, num_classes: int = 0) -> nn.Module:
        """Make the timm encoder."""
        return timm.create_model(**self.create_args, pretrained=False, num_classes=num_classes)


def scale_grid(layout: Layout, size: tuple[int, int], planned: tuple[int, int]) -> tuple[int, int]:
    """The grid of a token layout for an image of another size than the planned one."""
    return tuple(g * s // p for g, s, p in zip(layout.grid, size, planned, strict=True))


def plan_encoder(config, for_masking: bool = True) -> EncoderPlan:
    """Find out, without making weights, how to build an encoder, where its mask token goes and what is decoded.

    `for_masking=False` leaves out what only masked images need: the token's site, and that the cells of the last map
    cover the image.

    Raises:
        ValueError: naming the field (`architecture`, `model_args`, `image_size`, `mask_site`) that does not work.
    """
    fields = ("architecture", "model_args", "input_size", "num_channels", "mask_site", "decoder_norm")
    return _plan(json.dumps({name: getattr(config, name) for name in fields}), for_masking)


@functools.lru_cache(maxsize=4)
def _plan(fields: str, for_masking: bool) -> EncoderPlan:
    config = _read(fields)
    kept = {name: value for name, value in vars(config).items() if name not in ("mask_site", "decoder_norm")}
    trace = _trace(json.dumps(kept))
    if trace.final is None:
        raise ValueError(
            f"architecture: {config.architecture} ends in no feature map that a decoder could read "
            f"(it gives {_describe([output.shape for output in _outputs(trace.output)])})"
        )
    sites = ()
    if for_masking:
        _check_cover(config, trace)
        sites = tuple(_find_sites(config, trace))
    return EncoderPlan(
        create_args=trace.args,
        sites=sites,
        map_layout=trace.final,
        stride=trace.strides[-1],
        head_norm=_head_norm(config, trace),
        from_intermediates=trace.from_intermediates,
        isotropic=len(set(trace.strides)) == 1,
        names=frozenset(trace.encoder.state_dict()),
    )


def _check_cover(config, trace: _Trace):
    """Cells that leave a border of the image out lie elsewhere than the decoder's; only an encoder that does so at its
    own size is taken as it is."""
    size, stride, grid = config.input_size, trace.strides[-1], trace.final.grid
    if all(g * stride >= s for g, s in zip(grid, size, strict=True)):
        return
    if trace.own_size != size:
        fits = [s // stride * stride + extra for s in size for extra in (0, stride)]
        raise ValueError(
            f"image_size: {config.architecture} sees only {grid[0] * stride} x {grid[1] * stride} of "
            f"{size[0]} x {size[1]} px; use a multiple of {stride}, such as {', '.join(map(str, sorted(set(fits))))}"
        )


def _head_norm(config, trace: _Trace) -> str | None:
    """The norm that the head applies after pooling (ConvNeXt and its kin), if it works on the whole map as well."""
    norm = getattr(getattr(trace.encoder, "head", None), "norm", None)
    if not config.decoder_norm or not isinstance(norm, nn.LayerNorm) or norm.weight is None:
        return None
    try:
        with torch.no_grad():
            same = norm(trace.output).shape == trace.output.shape
    except (RuntimeError, TypeError, AttributeError):
        return None
    return "head.norm" if same and tuple(norm.weight.shape) == (trace.final.channels,) else None


def supports_gradient_checkpointing(encoder: nn.Module) -> bool:
    """Whether timm can checkpoint this encoder."""
    if not hasattr(encoder, "set_grad_checkpointing"):
        return False
    try:
        encoder.set_grad_checkpointing(enable=True)
        encoder.set_grad_checkpointing(enable=False)
    except AssertionError:  # how timm says no
        return False
    return True


def classifier_parameters(encoder: nn.Module) -> set[str]:
    """Names of the parameters of timm's classifier (a distilled encoder has two)."""
    found = encoder.get_classifier()
    heads = found if isinstance(found, (tuple, list)) else (found,)
    own = {id(p) for head in heads for p in head.parameters()}
    return {name for name, p in encoder.named_parameters() if id(p) in own}
