"""Pooled features of a frozen encoder: the mean of any of its feature maps, or mean and deviation of every stage.

`ALL` reads, for each map from the first to the last, the mean of every channel over the positions, and then its
standard deviation: 2 * (channels of all maps) features. The maps are those that timm declares (`feature_info`), as
they are, without norm; but the last one, which is the map that the decoder reads, after the encoder's last norm. Where
more than four of them have one resolution (a ViT has one for each block), four are read, evenly spaced by depth, the
last among them. Class and register tokens are in none.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..modeling_a2mim import A2MIMModel


ALL = "all"
MOST_OF_A_STAGE = 4  # maps of one resolution that `ALL` reads

# An index into timm's `feature_info`, `None` for timm's own pooled features, or `ALL`.
Layer = int | str | None


def layer_index(core: A2MIMModel, layer: Layer, field: str = "layer") -> Layer:
    """A layer as a number from 0: negative ones count from the end of timm's `feature_info`; `None` and `ALL` stay.

    Raises:
        ValueError: beginning with `field`, if the encoder has no such layer.
    """
    if layer is None or layer == ALL:
        return layer
    count = len(core.encoder.feature_info)
    if not isinstance(layer, int) or not -count <= layer < count:
        raise ValueError(f"{field}: {core.config.architecture} has {count} feature maps, there is no index {layer}")
    return layer % count


def stage_indices(core: A2MIMModel) -> list[int]:
    """The maps that `ALL` reads, as indices into timm's `feature_info`."""
    by_stride: dict[int, list[int]] = {}
    for index, stage in enumerate(core.encoder.feature_info):
        by_stride.setdefault(stage["reduction"], []).append(index)
    chosen = []
    for indices in by_stride.values():
        count = min(len(indices), MOST_OF_A_STAGE)
        chosen += [indices[len(indices) * (i + 1) // count - 1] for i in range(count)]
    return sorted(chosen)


def layer_widths(core: A2MIMModel, layer: Layer) -> list[int]:
    """How many features of a layer (see `layer_features`) come from each map; of timm's own, how many there are."""
    encoder, top = core.encoder, len(core.encoder.feature_info) - 1
    layer = layer_index(core, layer)
    if layer is None:
        return [getattr(encoder, "head_hidden_size", None) or encoder.num_features]

    def channels(index: int) -> int:
        return core.plan.map_layout.channels if index == top else encoder.feature_info[index]["num_chs"]

    return [2 * channels(index) for index in stage_indices(core)] if layer == ALL else [channels(int(layer))]


def layer_features(
    core: A2MIMModel, pixel_values: torch.Tensor, layers: Sequence[Layer], field: str = "layer"
) -> list[torch.Tensor]:
    """Pooled features of several layers in one forward, which stops after the last one that is needed.

    Args:
        core: the encoder, in whatever mode.
        pixel_values: (batch, channels, height, width), normalised.
        layers: indices into timm's `feature_info`: the mean of that feature map over its positions; the last one is
            the map that the decoder reads, after the final norm. `ALL`: mean and standard deviation of every stage
            (see above). `None`: timm's own pooled features, which its classifier reads (of a ViT the class token or
            the mean, as it was built).

    Returns:
        (batch, features) in float32, for each layer.

    Raises:
        ValueError: if the encoder has no such layer, or the images have another number of channels or are integers.
    """
    core.mask_grid(pixel_values)
    layers = [layer_index(core, layer, field) for layer in layers]
    encoder, top = core.encoder, len(core.encoder.feature_info) - 1
    stages = stage_indices(core) if ALL in layers else []
    read = {layer for layer in layers if isinstance(layer, int)} | set(stages)
    indices = sorted(read - {top})
    needs_end = None in layers or (top in read and not core.plan.from_intermediates)
    if (top in read and core.plan.from_intermediates) or (indices and needs_end):
        indices.append(top)  # without it, some encoders (Hiera) stop at the last one of the others
    end, maps = None, []
    if not indices:
        end = encoder.forward_features(pixel_values)
    elif needs_end:
        end, maps = encoder.forward_intermediates(pixel_values, indices=indices, output_fmt="NCHW")
    else:
        options = {"output_fmt": "NCHW", "intermediates_only": True, "stop_early": True}
        maps = encoder.forward_intermediates(pixel_values, indices=indices, **options)
    by_index = dict(zip(indices, maps, strict=True))
    if top in read:
        last = by_index[top] if core.plan.from_intermediates else end
        by_index[top] = core.feature_map(last, tuple(pixel_values.shape[-2:]))
    pooled: dict[Layer, torch.Tensor] = {}
    for layer in set(layers):
        if layer is None:
            pooled[layer] = encoder.forward_head(end, pre_logits=True).float().flatten(1)
        elif layer == ALL:
            pooled[layer] = torch.cat([_mean_and_deviation(by_index[index]) for index in stages], dim=1)
        else:
            pooled[layer] = by_index[int(layer)].float().mean((2, 3))
    return [pooled[layer] for layer in layers]


def _mean_and_deviation(features: torch.Tensor) -> torch.Tensor:
    """(batch, channels, rows, columns) to (batch, 2 * channels): the deviation is divided by the number of positions,
    so that it is 0 for a map of one."""
    deviation, mean = torch.std_mean(features.float(), (2, 3), correction=0)
    return torch.cat([mean, deviation], dim=1)


def unit_maps(features: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """Features with the part of each map divided by its length, and by the root of the number of maps: vectors of
    length 1, whose cosine is the mean of the cosines of their maps, whatever the scale and width of those.

    Args:
        features: (images, features).
        widths: of the maps (`layer_widths`).
    """
    parts = [F.normalize(part, dim=1) for part in features.split(list(widths), dim=1)]
    return torch.cat(parts, dim=1) / len(parts) ** 0.5
