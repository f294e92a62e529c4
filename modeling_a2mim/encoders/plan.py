"""The plan of an encoder: how timm builds it for a size of images, where the mask token goes, what the decoder reads.

The plan follows from one run on the meta device (`tracing`), in which the outputs of all modules are looked at; no
model is known by name.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from .layout import FeatureLayout, Site, output_tensors
from .meta import NoValues, TimmEncoder
from .sites import find_sites
from .tracing import EncoderSpec, EncoderTrace, describe_shapes, trace_encoder


@dataclass(frozen=True)
class EncoderPlan:
    """What was found out about an encoder before any of its weights were made."""

    create_args: dict[str, Any]  # keyword arguments of timm.create_model, except num_classes
    sites: tuple[Site, ...]  # where the mask token may enter, the preferred one first
    map_layout: FeatureLayout  # of the last feature map, in what `forward_features` (or `run_last_map`) gives
    stride: int  # pixels per cell of the last feature map
    head_norm: str | None  # name of the norm that the head applies after pooling
    from_intermediates: bool  # whether `forward_features` gives no map, so that it takes `run_last_map`
    isotropic: bool  # whether the encoder keeps one resolution from its first to its last feature map
    names: frozenset[str]  # of parameters and buffers of the encoder without a classifier

    def create(self, num_classes: int = 0) -> TimmEncoder:
        """Make the timm encoder."""
        with NoValues():  # of the meta device, on which `from_pretrained` makes models first
            return timm.create_model(**self.create_args, pretrained=False, num_classes=num_classes)


def scale_grid(layout: FeatureLayout, size: Sequence[int], planned: tuple[int, int]) -> tuple[int, int]:
    """The grid of a token layout for an image of another size than the planned one."""
    (rows, columns), (height, width) = layout.grid, size
    return rows * height // planned[0], columns * width // planned[1]


def plan_encoder(config: Any, for_masking: bool = True) -> EncoderPlan:
    """Find out, without making weights, how to build an encoder, where its mask token goes and what is decoded.

    `for_masking=False` leaves out what only masked images need: the token's site, and that the cells of the last map
    cover the image.

    Raises:
        ValueError: naming the field (`architecture`, `model_args`, `image_size`, `mask_site`) that does not work.
    """
    return _plan(EncoderSpec.from_config(config), config.mask_site, config.decoder_norm, for_masking)


@functools.lru_cache(maxsize=4)
def _plan(spec: EncoderSpec, mask_site: int | str | None, decoder_norm: bool, for_masking: bool) -> EncoderPlan:
    trace, create_args = trace_encoder(spec)
    if trace.final is None:
        raise ValueError(
            f"architecture: {spec.architecture} ends in no feature map that a decoder could read "
            f"(it gives {describe_shapes([output.shape for output in output_tensors(trace.output)])})"
        )
    sites: tuple[Site, ...] = ()
    if for_masking:
        _check_cover(spec, trace)
        sites = tuple(find_sites(spec.architecture, mask_site, trace))
    return EncoderPlan(
        create_args=create_args,
        sites=sites,
        map_layout=trace.final,
        stride=trace.strides[-1],
        head_norm=_find_head_norm(trace) if decoder_norm else None,
        from_intermediates=trace.from_intermediates,
        isotropic=len(set(trace.strides)) == 1,
        names=frozenset(trace.encoder.state_dict()),
    )


def _check_cover(spec: EncoderSpec, trace: EncoderTrace) -> None:
    """Cells that leave a border of the image out lie elsewhere than the decoder's; only an encoder that does so at its
    own size is taken as it is."""
    size, stride, grid = spec.input_size, trace.strides[-1], trace.final.grid
    if all(g * stride >= s for g, s in zip(grid, size, strict=True)):
        return
    if trace.own_size != size:
        fits = [s // stride * stride + extra for s in size for extra in (0, stride)]
        raise ValueError(
            f"image_size: {spec.architecture} sees only {grid[0] * stride} x {grid[1] * stride} of "
            f"{size[0]} x {size[1]} px; use a multiple of {stride}, such as {', '.join(map(str, sorted(set(fits))))}"
        )


def _find_head_norm(trace: EncoderTrace) -> str | None:
    """The norm that the head applies after pooling (ConvNeXt and its kin), if it works on the whole map as well."""
    norm = getattr(getattr(trace.encoder, "head", None), "norm", None)
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None:
        return None
    try:
        with torch.no_grad():
            same = norm(trace.output).shape == trace.output.shape
    except (RuntimeError, TypeError, AttributeError):
        return None
    return "head.norm" if same and tuple(norm.weight.shape) == (trace.final.channels,) else None


def supports_gradient_checkpointing(encoder: TimmEncoder) -> bool:
    """Whether timm can checkpoint this encoder."""
    if not hasattr(encoder, "set_grad_checkpointing"):
        return False
    try:
        encoder.set_grad_checkpointing(enable=True)
        encoder.set_grad_checkpointing(enable=False)
    except AssertionError:  # how timm says no
        return False
    return True


def classifier_parameters(encoder: TimmEncoder) -> set[str]:
    """Names of the parameters of timm's classifier (a distilled encoder has two)."""
    found = encoder.get_classifier()
    heads = found if isinstance(found, (tuple, list)) else (found,)
    own = {id(p) for head in heads for p in head.parameters()}
    return {name for name, p in encoder.named_parameters() if id(p) in own}
