"""How timm lays out its encoders: how one is built for a size of images, which of its modules gives which feature map,
and where the mask token goes. The only module that knows; it knows no model by name.

An encoder is built and run once on the meta device, where tensors have shapes but no values, and the outputs of all of
its modules are looked at.
"""

import copy
import difflib
import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import timm
import torch
from timm.models import group_parameters
from torch import nn
from torch.overrides import TorchFunctionMode

from .masking import Layout, tensors_in


BATCH = 2  # of the run on the meta device: a tensor that holds a map has this many images
MOST_PREFIX_TOKENS = 16


class Site(NamedTuple):
    """A place where the mask token can enter: a module of the encoder, and the layout of its output."""

    module: str
    layout: Layout


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


def run_last_map(encoder: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """The last feature map of an encoder whose `forward_features` gives none, (batch, channels, rows, columns)."""
    return encoder.forward_intermediates(pixel_values, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]


def plan_encoder(config, for_masking: bool = True) -> EncoderPlan:
    """Find out, without making weights, how to build an encoder, where its mask token goes and what is decoded.

    `for_masking=False` leaves out what only masked images need: the token's site, and that the cells of the last map
    cover the image.

    Raises:
        ValueError: naming the field (`architecture`, `model_args`, `image_size`, `mask_site`) that does not work.
    """
    fields = ("architecture", "model_args", "input_size", "num_channels", "mask_site", "decoder_norm")
    return _plan(json.dumps({name: getattr(config, name) for name in fields}), for_masking)


def encoder_shapes(config, size: tuple[int, int]) -> dict[str, torch.Size]:
    """The shapes of what an encoder holds, built for images of `size` (height, width) in pixels.

    Raises:
        ValueError: naming `model_args`, if timm builds none for this size.
    """
    encoder = build_on_meta({**_create_args(config), "img_size": list(size)})
    return {name: value.shape for name, value in encoder.state_dict().items()}


def block_layouts(encoder: nn.Module, size: tuple[int, int], num_channels: int = 3) -> dict[str, Layout]:
    """The layers of a timm encoder by depth, as timm counts them for layer-wise decay (`group_matcher`): for each the
    last of its modules that gives a feature map of images of this size, and the layout of that. Where timm does not
    count, the stages that it declares.

    Raises:
        ValueError: naming `image_size`, if the encoder cannot take such images.
    """
    config = SimpleNamespace(input_size=tuple(size), num_channels=num_channels)
    # Hooks, which a model may hang on its encoder, look at values.
    twin = copy.deepcopy(encoder).to("meta").eval().requires_grad_()
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        trace = _Trace(config, {}, twin, config.input_size)
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


def _read(fields: str) -> SimpleNamespace:
    config = SimpleNamespace(**json.loads(fields))
    config.input_size = tuple(config.input_size)
    return config


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


class _Output(NamedTuple):
    """A tensor in the output of a module: where in it, its shape, and what computed it."""

    path: tuple
    shape: tuple[int, ...]
    node: Any


class _Trace:
    """What a run of an encoder on the meta device showed."""

    def __init__(self, config, args: dict[str, Any], encoder: nn.Module, own_size: tuple[int, int]):
        self.size, self.own_size, self.args, self.encoder = config.input_size, own_size, args, encoder
        self.features = list(encoder.feature_info)
        self.strides = [int(info["reduction"]) for info in self.features]
        self.modules = dict(encoder.named_modules())
        self.calls: dict[str, list[_Output]] = {}  # of each module, in the order in which they end
        self.repeated: set[str] = set()  # modules that are called several times

        def record(name):
            def hook(module, args, output):
                if self.calls.pop(name, None) is not None:
                    self.repeated.add(name)
                # A copy, as the token would make one: what a module has used of its output before it returned does
                # not count as used.
                output = _copied(output)
                self.calls[name] = _outputs(output)
                return output

            return hook

        handles = [module.register_forward_hook(record(name)) for name, module in self.modules.items() if name]
        try:
            with torch.enable_grad(), torch.device("meta"):
                images = torch.empty(BATCH, config.num_channels, *self.size)
                self.output = encoder.forward_features(images)
                self.final = self.find_final(self.output)
                self.from_intermediates = self.final is None
                if self.from_intermediates:
                    self.output = run_last_map(encoder, images)
                    self.final = self.find_final(self.output)
        finally:
            for handle in handles:
                handle.remove()
        self.used = set() if self.final is None else _ancestors(self.final.pick(self.output).grad_fn)

    def find_final(self, output: Any) -> Layout | None:
        """The layout of the last feature map."""
        # Many encoders widen their last map after the last stage that they declare.
        channels = (self.features[-1]["num_chs"], getattr(self.encoder, "num_features", None))
        found = [_layouts(tensor, self.size, self.strides[-1:], channels)[:1] for tensor in _outputs(output)]
        found = [layout for layouts in reversed(found) for layout in layouts]
        return min(found, key=lambda layout: layout.channels not in channels, default=None)

    def layout(self, name: str, strides: list[int], channels: int | None = None) -> Layout | None:
        """The layout of a module's output, if it holds a feature map of one of these strides (and so many channels)
        that takes part in the last one."""
        for output in self.calls.get(name, ()):
            if output.node not in self.used:
                continue
            nhwc = getattr(self.encoder, "output_fmt", "") == "NHWC"
            found = _layouts(output, self.size, strides, (channels,), nhwc)
            for layout in found:
                if channels in (None, layout.channels):
                    return layout
        return None

    def site(self, name: str, strides: list[int], channels: int | None = None) -> Site | None:
        """The same as a site for the token."""
        # Gradient checkpointing runs the children of a plain Sequential without it and its hooks: hook its last child.
        while getattr(type(self.modules.get(name)), "forward", None) is nn.Sequential.forward and self.modules[name]:
            name = f"{name}.{list(self.modules[name]._modules)[-1]}"
        layout = self.layout(name, strides, channels)
        return layout and Site(name, layout)

    def usable(self) -> Iterator[str]:
        """Names of all modules that the token could enter after."""
        strides = sorted(set(self.strides))
        return (name for name in self.modules if name in self.calls and self.layout(name, strides))


@functools.lru_cache(maxsize=2)
def _trace(fields: str) -> _Trace:
    """Build and run the encoder on the meta device, for images of the configured size."""
    config, failures = _read(fields), []
    for sized in (False, True):
        args = _create_args(config, sized)
        try:
            encoder = build_on_meta(args)
        except ValueError as error:
            if not sized:
                raise
            failures.append(error)
            continue
        cfg = getattr(encoder, "pretrained_cfg", None) or {}
        own = tuple(cfg["input_size"][1:]) if "input_size" in cfg else config.input_size
        fixed = cfg.get("fixed_input_size") and own != config.input_size
        if not sized and fixed and _is_built_otherwise(config, args, encoder):
            continue
        try:
            trace = _Trace(config, args, encoder, own)
        except Exception as error:  # timm refuses sizes with many kinds of errors; the first is reported below
            failures.append(error)
            continue
        if trace.final is not None or own == config.input_size:
            return trace
        failures.append(ValueError("its last feature map has no such size"))
    height, width = config.input_size
    raise ValueError(
        f"image_size: {config.architecture} cannot take images of {height} x {width} px with {config.num_channels} "
        f"channel(s); it was made for {own[0]} x {own[1]} px: {failures[0]}"
    ) from failures[0]


def _is_built_otherwise(config, args: dict[str, Any], encoder: nn.Module) -> bool:
    """Whether timm, when it loads a checkpoint for the configured size, builds this encoder otherwise: its weights
    would not fit, or be resampled, which only an encoder that resamples them in each forward does not notice."""
    if getattr(encoder, "dynamic_img_size", False):
        return False
    overlay = {"input_size": (config.num_channels, *config.input_size)}
    try:
        other = build_on_meta({**args, "pretrained_cfg_overlay": overlay})
    except ValueError:
        return True
    one, two = ({name: value.shape for name, value in e.state_dict().items()} for e in (encoder, other))
    return one != two


def _create_args(config, sized: bool = False) -> dict[str, Any]:
    args = {"model_name": config.architecture, **config.model_args}
    if config.num_channels != 3:
        args["in_chans"] = config.num_channels
    if sized:
        args["img_size"] = list(config.input_size)
    return args


class NoValues(TorchFunctionMode):
    """Passes over what fills tensors of the meta device with values, which takes most of the time to build there."""

    fills = frozenset(["uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "zero_", "fill_", "copy_"])

    def __torch_function__(self, func, types, args=(), kwargs=None):
        skip = getattr(func, "__name__", None) in self.fills and args and args[0].is_meta
        return args[0] if skip else func(*args, **(kwargs or {}))


def build_on_meta(args: dict[str, Any]) -> nn.Module:
    """A timm encoder without a classifier and without values, by the arguments of `timm.create_model`."""
    try:
        with torch.device("meta"), NoValues():
            return timm.create_model(**args, pretrained=False, num_classes=0).eval()
    except Exception as error:
        given = {k: v for k, v in args.items() if k != "model_name"}
        raise ValueError(f"model_args: timm cannot build {args['model_name']} with {given}: {error}") from error


def _outputs(output: Any) -> list[_Output]:
    return [_Output(path, tuple(tensor.shape), tensor.grad_fn) for path, tensor in tensors_in(output)]


def _copied(output: Any) -> Any:
    """The same nested output with copies of its tensors."""
    if isinstance(output, torch.Tensor):
        return output.clone()
    if isinstance(output, dict):
        return {key: _copied(item) for key, item in output.items()}
    if isinstance(output, (list, tuple)):
        items = [_copied(item) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output


def _layouts(output: _Output, size, strides, channels: tuple = (), nhwc: bool = False) -> list[Layout]:
    """How a tensor may hold a feature map of one of the given strides, the likeliest layout first. Maps of unpadded
    convolutions, a little smaller than their stride says, are known by their `channels`."""
    path, shape, _ = output
    if len(shape) not in (3, 4) or shape[0] != BATCH:
        return []
    grids = _grids(size, strides)
    if len(shape) == 4:
        _, a, b, c = shape
        found = [Layout("NCHW", a, (b, c), path=path), Layout("NHWC", c, (a, b), path=path)]
        if nhwc:  # only to decide where rows = columns = channels
            found.reverse()
        exact = [layout for layout in found if layout.grid in grids]
        return exact or [
            layout
            for layout in found
            if layout.channels in channels
            and any(
                all(0.8 * s / stride <= g <= s / stride for g, s in zip(layout.grid, size, strict=True))
                for stride in strides
            )
        ]
    _, a, b = shape
    spare = sorted((a - rows * columns, (rows, columns)) for rows, columns in grids)
    found = [Layout("NLC", b, grid, prefix, path) for prefix, grid in spare if 0 <= prefix <= MOST_PREFIX_TOKENS]
    channels_first = [Layout("NCL", a, grid, path=path) for grid in grids if math.prod(grid) == b]
    # Few channels before the tokens look like tokens with a long prefix.
    return sorted(found + channels_first, key=lambda layout: layout.prefix)


def _grids(size: tuple[int, int], strides: list[int]) -> set[tuple[int, int]]:
    """The grids that maps of these strides may have: the image divided by the stride, rounded either way."""
    return {(f(size[0] / s), f(size[1] / s)) for s in strides for f in (math.floor, math.ceil)}


def _ancestors(node) -> set:
    """All autograd nodes that a tensor was computed by."""
    seen, stack = {node}, [node]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return seen


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


def _find_sites(config, trace: _Trace) -> list[Site]:
    """Where the mask token may enter, the preferred place first."""
    strides, site, name = trace.strides, config.mask_site, config.architecture
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
        what = (
            _describe([output.shape for output in trace.calls[site]]) if site in trace.calls else "it is never called"
        )
        usable = ", ".join(list(trace.usable())[:8]) or "nothing in this encoder"
        raise ValueError(f"mask_site: what {name}'s {site!r} gives is no feature map, {what}; try one of {usable}")
    return found


def _has_stride(layout: Layout, trace: _Trace, index: int) -> bool:
    return layout.grid in _grids(trace.size, trace.strides[index : index + 1])


def _stage(trace: _Trace, index: int) -> Site | None:
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


def _stems(trace: _Trace) -> Iterator[Site | None]:
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


def _describe(shapes: list[tuple[int, ...]]) -> str:
    """Tensors in an output, for people."""
    shown = [f"({', '.join(['batch' if s and s[0] == BATCH else str(s[0]), *map(str, s[1:])])})" for s in shapes if s]
    return f"a tensor {shown[0]}" if len(shown) == 1 else f"tensors {', '.join(shown) or 'of no dimensions'}"


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
