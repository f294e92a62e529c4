"""Modules of an encoder that give a feature map: the sites where the mask token can enter, and the layers by depth."""

import copy
import difflib
from collections.abc import Iterator

from timm.models import group_parameters
from torch import nn

from .layout import FeatureLayout, Site, possible_grids
from .meta import TimmEncoder
from .tracing import EncoderTrace, describe_shapes


def block_layouts(encoder: TimmEncoder, size: tuple[int, int], num_channels: int = 3) -> dict[str, FeatureLayout]:
    """The layers of a timm encoder by depth, as timm counts them for layer-wise decay (`group_matcher`): for each the
    last of its modules that gives a feature map of images of this size, and the layout of that. Where timm does not
    count, the stages that it declares.

    Raises:
        ValueError: naming `image_size`, if the encoder cannot take such images.
    """
    # Hooks, which a model may hang on its encoder, look at values.
    twin = copy.deepcopy(encoder).to("meta").eval().requires_grad_()
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        trace = EncoderTrace(twin, (size[0], size[1]), num_channels)
    except Exception as error:  # timm refuses sizes with many kinds of errors
        raise ValueError(
            f"image_size: {type(encoder).__name__} cannot take images of {size[0]} x {size[1]} px with {num_channels} "
            f"channel(s): {error}"
        ) from error
    layer_of = {}
    if hasattr(twin, "group_matcher"):
        layers = group_parameters(twin, twin.group_matcher(coarse=False))
        layer_of = {name: layer for layer, names in layers.items() for name in names}
    strides, found = sorted(set(trace.strides)), {}
    for name in trace.calls:  # in the order in which they end: the whole of a layer after its parts
        own = {layer_of.get(f"{name}.{parameter}") for parameter, _ in trace.modules[name].named_parameters()}
        layout = trace.layout(name, strides) if len(own) == 1 and None not in own else None
        if layout is not None:
            found[own.pop()] = (name, layout)
    if len(found) < 2:
        stages = [_stage(trace, index) for index in range(len(trace.strides))]
        return {site.module: site.layout for site in stages if site is not None}
    return dict(found[layer] for layer in sorted(found))


def find_sites(name: str, site: int | str | None, trace: EncoderTrace) -> list[Site]:
    """Where the mask token may enter, the preferred site first.

    Args:
        name: of the architecture, for errors.
        site: `A2MIMConfig.mask_site`.
        trace: a run of the encoder.

    Raises:
        ValueError: naming `mask_site`, if there is no such module, or it gives no feature map.
    """
    strides = trace.strides
    isotropic = len(set(strides)) == 1
    if isinstance(site, int):
        if not -len(strides) <= site < len(strides):
            raise ValueError(f"mask_site: {name} has {len(strides)} feature maps, there is no index {site}")
        found = [_stage(trace, site)]
        site = trace.features[site]["module"]
    elif site is None and not isotropic:
        # The further ones are for encoders whose stages hold their cells in another order than the image.
        stems = filter(None, _stems(trace))
        found = [_stage(trace, -2), *sorted(stems, key=lambda stem: not _has_stride(stem.layout, trace, -2))]
    elif site is None or site == "stem":
        found = list(_stems(trace))
    elif site in trace.modules:
        found = [trace.site(site, sorted(set(strides)))]
    else:
        close = difflib.get_close_matches(site, trace.modules, n=3) or [info["module"] for info in trace.features]
        raise ValueError(f"mask_site: {name} has no module {site!r}; for example {', '.join(close)}")
    found = list(dict.fromkeys(filter(None, found)))
    if not found:
        what = "it is never called"
        if site in trace.calls:
            what = describe_shapes([output.shape for output in trace.calls[site]])
        usable = ", ".join(list(trace.usable())[:8]) or "nothing in this encoder"
        raise ValueError(f"mask_site: what {name}'s {site!r} gives is no feature map, {what}; try one of {usable}")
    return found


def _has_stride(layout: FeatureLayout, trace: EncoderTrace, index: int) -> bool:
    return layout.grid in possible_grids(trace.size, trace.strides[index : index + 1])


def _stage(trace: EncoderTrace, index: int) -> Site | None:
    """The site after a stage that timm declares. Where the declared name leads to no such map: the last module with
    parameters that gives one, outside of any module that already ends in the final resolution."""
    channels, stride = trace.features[index]["num_chs"], trace.strides[index]
    site = trace.site(trace.features[index]["module"], [stride], channels)
    if site is not None:
        return site
    outer = [name for name in trace.calls if stride != trace.strides[-1] and trace.layout(name, trace.strides[-1:])]
    for name in reversed(trace.calls):
        inside = any(name.startswith(f"{other}.") for other in outer)
        if not inside and name not in trace.repeated and _has_parameters(trace.modules[name]):
            site = trace.site(name, [stride], channels)
            if site is not None:
                return site
    return None


def _stems(trace: EncoderTrace) -> Iterator[Site | None]:
    """The first maps of the encoder: what is called a patch embedding or a stem, else the first feature map that timm
    declares, or for an isotropic encoder the first module with parameters that gives a map like it."""
    strides = sorted(set(trace.strides))
    for name in ("patch_embed", "stem"):
        if name in trace.calls:
            yield trace.site(name, strides)
    for name in trace.calls:
        if name.rpartition(".")[2] == "patch_embed":
            yield trace.site(name, strides)
    first = trace.features[0]
    if len(strides) > 1:
        yield _stage(trace, 0)
    for name in trace.calls:
        if _has_parameters(trace.modules[name]) and trace.layout(name, trace.strides[:1], first["num_chs"]):
            yield trace.site(name, trace.strides[:1], first["num_chs"])
            break
    for name in trace.calls:
        if any(part.startswith("patch_embed") for part in name.split(".")):
            yield trace.site(name, strides)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
