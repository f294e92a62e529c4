"""One run of an encoder on the meta device: which module computes which map."""

import functools
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .layout import BATCH, Layout, Site, _copied, _layouts, _Output, _outputs


def run_last_map(encoder: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """The last feature map of an encoder whose `forward_features` gives none, (batch, channels, rows, columns)."""
    return encoder.forward_intermediates(pixel_values, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]


def encoder_shapes(config, size: tuple[int, int]) -> dict[str, torch.Size]:
    """The shapes of what an encoder holds, built for images of `size` (height, width) in pixels.

    Raises:
        ValueError: naming `model_args`, if timm builds none for this size.
    """
    encoder = build_on_meta({**_create_args(config), "img_size": list(size)})
    return {name: value.shape for name, value in encoder.state_dict().items()}


def _read(fields: str) -> SimpleNamespace:
    config = SimpleNamespace(**json.loads(fields))
    config.input_size = tuple(config.input_size)
    return config


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


def _ancestors(node) -> set:
    """All autograd nodes that a tensor was computed by."""
    seen, stack = {node}, [node]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return seen


def _describe(shapes: list[tuple[int, ...]]) -> str:
    """Tensors in an output, for people."""
    shown = [f"({', '.join(['batch' if s and s[0] == BATCH else str(s[0]), *map(str, s[1:])])})" for s in shapes if s]
    return f"a tensor {shown[0]}" if len(shown) == 1 else f"tensors {', '.join(shown) or 'of no dimensions'}"
