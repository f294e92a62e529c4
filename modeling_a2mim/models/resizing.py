"""Weights of an encoder for images of another size: what knows positions is resampled, as timm does it.

Positions are flat tables, whose shape does not tell the grid that they are of: one of 4 x 6 patches has as many
entries as one of 6 x 4. What is resampled follows therefore from both grids, and not from shapes.
"""

import math
import sys
import warnings

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from ..configuration_a2mim import A2MIMConfig
from ..encoders.layout import MOST_PREFIX_TOKENS
from ..encoders.meta import TimmEncoder
from ..encoders.plan import plan_encoder
from ..encoders.tracing import encoder_shapes
from ..modeling_a2mim import A2MIMModel


Weights = dict[str, torch.Tensor]
PATCHES = "patch_embed.proj.weight"  # timm's name of the convolution that makes patches


def resized_weights(weights: Weights, before: A2MIMConfig, after: A2MIMModel) -> Weights:
    """Weights of the encoder that `before` describes, as `after` takes them, which may be for images of another size.

    Absolute positions are resampled as timm resamples them when it loads a checkpoint, relative ones as its
    `set_window_size` does; what else changes its shape, as timm's loading has it.

    Raises:
        ValueError: naming `image_size`, if timm does not know how, or the weights are not of this encoder.
    """
    size = after.config.input_size
    if before.input_size == size or not _is_built_for_its_size(before, after):
        return weights
    old = A2MIMModel(before).encoder
    own = {name: value for name, value in weights.items() if name in old.state_dict()}
    try:
        old.load_state_dict(own)
    except RuntimeError as error:
        raise ValueError(f"model_name_or_path: its weights do not fit {before.architecture}: {error}") from error
    new = after.encoder
    found = {**_relative_positions(old, new), **_absolute_positions(old, new, before, after)}
    shapes = {name: value.shape for name, value in new.state_dict().items()}
    others = [name for name in own if name not in found and name in shapes]
    unfit = [name for name in others if own[name].shape != shapes[name]]
    if unfit:
        loaded = _loaded_by_timm(own, before, after)
        found |= {name: loaded[name] for name in unfit if name in loaded}
    unknown = [name for name in unfit if name not in found]
    if not unfit and not hasattr(old, "set_input_size"):  # which knows all that depends on the size
        unknown = _ambiguous(before, [name for name in others if own[name].numel() > 1])
    if unknown:
        sizes = [" x ".join(map(str, pair)) for pair in (before.input_size, size)]
        raise ValueError(
            f"image_size: {before.architecture} was pre-trained at {sizes[0]} px, and timm does not know how to bring "
            f"its weights to {sizes[1]} px ({', '.join(unknown[:3])})"
        )
    return {**weights, **found}


def _is_built_for_its_size(before: A2MIMConfig, after: A2MIMModel) -> bool:
    """Whether timm builds the two encoders otherwise; most take images of any size as they are."""
    plan = plan_encoder(before, for_masking=False)
    return plan.create_args.get("img_size") != after.plan.create_args.get("img_size")


def _relative_positions(old: TimmEncoder, new: TimmEncoder) -> Weights:
    """The tables of windows, each at the window of its counterpart."""
    found, twins, table = {}, dict(new.named_modules()), "relative_position_bias_table"
    for name, module in old.named_modules():
        window = getattr(twins.get(name), "window_size", None)
        if hasattr(module, "set_window_size") and window and isinstance(getattr(module, table, None), nn.Parameter):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of torch, on how timm interpolates
                module.set_window_size(tuple(window))
            found[f"{name}.{table}"] = getattr(module, table).detach()
    return found


def _absolute_positions(old: TimmEncoder, new: TimmEncoder, before: A2MIMConfig, after: A2MIMModel) -> Weights:
    """What the encoder itself holds for each patch, (1, prefix tokens + rows x columns, channels)."""
    grids, twins = set(), dict(new.named_modules())
    for name, module in old.named_modules():
        pair = [getattr(each, "grid_size", None) for each in (module, twins.get(name))]
        if all(isinstance(grid, tuple) for grid in pair):
            grids.add(tuple(pair))
    found = {}
    for name, value in old.named_parameters(recurse=False):
        twin = getattr(new, name, None)
        if value.ndim != 3 or twin is None or value.shape[::2] != twin.shape[::2]:
            continue
        for grid_before, grid_after in sorted(grids):
            prefix = value.shape[1] - math.prod(grid_before)
            if 0 <= prefix <= MOST_PREFIX_TOKENS and prefix == twin.shape[1] - math.prod(grid_after):
                found[name] = resample_abs_pos_embed(value.detach(), list(grid_after), list(grid_before), prefix)
    if found and _timm_reads_the_grid(old, before):
        # Some are resampled otherwise when they are loaded (FlexiViT).
        kept = {name: value for name, value in old.state_dict().items() if name in found or name == PATCHES}
        loaded = _loaded_by_timm(kept, before, after)
        found = {name: loaded[name] for name in found}
    return found


def _timm_reads_the_grid(encoder: TimmEncoder, config: A2MIMConfig) -> bool:
    """Whether timm, when it loads positions, takes their grid from the size in `pretrained_cfg` and the patches; other
    families take it for a square."""
    reads = any(hasattr(sys.modules[base.__module__], "get_pretrained_grid_size") for base in type(encoder).__mro__)
    kernel = encoder.state_dict().get(PATCHES, torch.empty(0)).shape[2:]
    grid = tuple(size // side for size, side in zip(config.input_size, kernel, strict=False))
    return reads and grid == tuple(encoder.patch_embed.grid_size)


def _loaded_by_timm(weights: Weights, before: A2MIMConfig, after: A2MIMModel) -> Weights:
    """Weights as timm has them when it has loaded them into an encoder like that of `after`; none if it cannot."""
    config, args = after.config, dict(after.plan.create_args)
    own = after.encoder.pretrained_cfg
    if own.get("fixed_input_size"):
        args.setdefault("img_size", list(own["input_size"][1:]))
    overlay = {"state_dict": dict(weights), "input_size": (config.num_channels, *before.input_size), "num_classes": 0}
    try:
        with torch.random.fork_rng(devices=[]):
            encoder = timm.create_model(
                **args, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay, pretrained_strict=False
            )
    except (RuntimeError, ValueError, AssertionError):  # shapes that do not fit
        return {}
    return {name: value for name, value in encoder.state_dict().items() if name in weights}


def _ambiguous(config: A2MIMConfig, names: list[str]) -> list[str]:
    """Which of these weights have an axis that goes through the rows and the columns of a grid: its length does not
    tell what it holds."""
    height, width = config.input_size
    sizes = ((height, width), (2 * height, width), (height, 2 * width))
    try:
        own, tall, wide = (encoder_shapes(config, size) for size in sizes)
    except ValueError:  # it takes squares alone, which the length of an axis tells
        return []
    axes = {name: zip(own[name], tall[name], wide[name], strict=True) for name in names}
    return [name for name, lengths in axes.items() if any(a not in (b, c) for a, b, c in lengths)]
