"""One run of an encoder on the meta device: which of its modules gives which feature map, of what shape."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .layout import BATCH, FeatureLayout, OutputTensor, Site, copy_output, output_tensors, possible_layouts
from .meta import TimmEncoder, build_on_meta


def run_last_map(encoder: TimmEncoder, pixel_values: torch.Tensor) -> torch.Tensor:
    """The last feature map of an encoder whose `forward_features` gives none, (batch, channels, rows, columns)."""
    return encoder.forward_intermediates(pixel_values, indices=1, output_fmt="NCHW", intermediates_only=True)[-1]


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is built from: fields of `A2MIMConfig`. Its plan is kept by these values."""

    architecture: str
    model_args: dict[str, Any] = field(hash=False)
    input_size: tuple[int, int]  # (height, width) of the images in pixels
    num_channels: int

    @classmethod
    def from_config(cls, config: Any) -> "EncoderSpec":
        """Those of an `A2MIMConfig`."""
        model_args = json.loads(json.dumps(config.model_args))  # a copy, with lists for tuples as in config.json
        return cls(config.architecture, model_args, tuple(config.input_size), config.num_channels)

    def create_args(self, sized: bool = False) -> dict[str, Any]:
        """Keyword arguments of `timm.create_model`; if `sized`, with the size of the images."""
        args = {"model_name": self.architecture, **self.model_args}
        if self.num_channels != 3:
            args["in_chans"] = self.num_channels
        if sized:
            args["img_size"] = list(self.input_size)
        return args


def encoder_shapes(config: Any, size: tuple[int, int]) -> dict[str, torch.Size]:
    """The shapes of what an encoder holds, built for images of `size` (height, width) in pixels.

    Raises:
        ValueError: naming `model_args`, if timm builds none for this size.
    """
    encoder = build_on_meta({**EncoderSpec.from_config(config).create_args(), "img_size": list(size)})
    return {name: value.shape for name, value in encoder.state_dict().items()}


class EncoderTrace:
    """What a run of an encoder on the meta device showed.

    Args:
        encoder: on the meta device.
        size: (height, width) of the images in pixels.
        num_channels: of the images.
        own_size: (height, width) that timm made the encoder for; `size` if not given.
    """

    def __init__(
        self, encoder: TimmEncoder, size: tuple[int, int], num_channels: int, own_size: tuple[int, int] | None = None
    ):
        self.encoder, self.size, self.own_size = encoder, size, own_size or size
        self.features = list(encoder.feature_info)
        self.strides = [int(info["reduction"]) for info in self.features]
        self.modules: dict[str, nn.Module] = dict(encoder.named_modules())
        self.calls: dict[str, list[OutputTensor]] = {}  # of each module, in the order in which they end
        self.repeated: set[str] = set()  # modules that are called several times

        def record(name: str) -> Callable[[nn.Module, Any, Any], Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                if self.calls.pop(name, None) is not None:
                    self.repeated.add(name)
                # A copy, as the token would make one: what a module has used of its output before it returned does
                # not count as used.
                output = copy_output(output)
                self.calls[name] = output_tensors(output)
                return output

            return hook

        handles = [module.register_forward_hook(record(name)) for name, module in self.modules.items() if name]
        try:
            with torch.enable_grad(), torch.device("meta"):
                images = torch.empty(BATCH, num_channels, *self.size)
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

    def find_final(self, output: Any) -> FeatureLayout | None:
        """The layout of the last feature map."""
        # Many encoders widen their last map after the last stage that they declare.
        channels = (self.features[-1]["num_chs"], getattr(self.encoder, "num_features", None))
        tensors = reversed(output_tensors(output))
        likeliest = [possible_layouts(tensor, self.size, self.strides[-1:], channels)[:1] for tensor in tensors]
        found = [layout for layouts in likeliest for layout in layouts]
        return min(found, key=lambda layout: layout.channels not in channels, default=None)

    def layout(self, name: str, strides: Sequence[int], channels: int | None = None) -> FeatureLayout | None:
        """The layout of a module's output, if it holds a feature map of one of these strides (and so many channels)
        that takes part in the last one."""
        for output in self.calls.get(name, ()):
            if output.node not in self.used:
                continue
            nhwc = getattr(self.encoder, "output_fmt", "") == "NHWC"
            found = possible_layouts(output, self.size, strides, (channels,), nhwc)
            for layout in found:
                if channels in (None, layout.channels):
                    return layout
        return None

    def site(self, name: str, strides: Sequence[int], channels: int | None = None) -> Site | None:
        """The same as a site for the token."""
        # Gradient checkpointing runs the children of a plain Sequential without it and its hooks: hook its last child.
        while getattr(type(self.modules.get(name)), "forward", None) is nn.Sequential.forward and self.modules[name]:
            name = f"{name}.{list(self.modules[name]._modules)[-1]}"
        layout = self.layout(name, strides, channels)
        return None if layout is None else Site(name, layout)

    def usable(self) -> Iterator[str]:
        """Names of all modules that the token could enter after."""
        strides = sorted(set(self.strides))
        return (name for name in self.modules if name in self.calls and self.layout(name, strides))


@functools.lru_cache(maxsize=2)
def trace_encoder(spec: EncoderSpec) -> tuple[EncoderTrace, dict[str, Any]]:
    """Build and run an encoder on the meta device, for images of the configured size.

    Returns:
        What the run showed, and the keyword arguments of `timm.create_model`, except `num_classes`.

    Raises:
        ValueError: naming `model_args` or `image_size`, if timm builds no such encoder.
    """
    failures: list[Exception] = []
    for sized in (False, True):
        args = spec.create_args(sized)
        try:
            encoder = build_on_meta(args)
        except ValueError as error:
            if not sized:
                raise
            failures.append(error)
            continue
        cfg = getattr(encoder, "pretrained_cfg", None) or {}
        own = tuple(cfg["input_size"][1:]) if "input_size" in cfg else spec.input_size
        fixed = cfg.get("fixed_input_size") and own != spec.input_size
        if not sized and fixed and _is_built_otherwise(spec, args, encoder):
            continue
        try:
            trace = EncoderTrace(encoder, spec.input_size, spec.num_channels, own)
        except Exception as error:  # timm refuses sizes with many kinds of errors; the first is reported below
            failures.append(error)
            continue
        if trace.final is not None or own == spec.input_size:
            return trace, args
        failures.append(ValueError("its last feature map has no such size"))
    height, width = spec.input_size
    raise ValueError(
        f"image_size: {spec.architecture} cannot take images of {height} x {width} px with {spec.num_channels} "
        f"channel(s); it was made for {own[0]} x {own[1]} px: {failures[0]}"
    ) from failures[0]


def _is_built_otherwise(spec: EncoderSpec, args: dict[str, Any], encoder: TimmEncoder) -> bool:
    """Whether timm, when it loads a checkpoint for the configured size, builds this encoder otherwise: its weights
    would not fit, or be resampled, which only an encoder that resamples them in each forward does not notice."""
    if getattr(encoder, "dynamic_img_size", False):
        return False
    overlay = {"input_size": (spec.num_channels, *spec.input_size)}
    try:
        other = build_on_meta({**args, "pretrained_cfg_overlay": overlay})
    except ValueError:
        return True
    one, two = ({name: value.shape for name, value in e.state_dict().items()} for e in (encoder, other))
    return one != two


def _ancestors(node: Any) -> set[Any]:
    """All autograd nodes that a tensor was computed by."""
    seen, stack = {node}, [node]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return seen


def describe_shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Tensors in an output, for people."""
    shown = [f"({', '.join(['batch' if s and s[0] == BATCH else str(s[0]), *map(str, s[1:])])})" for s in shapes if s]
    return f"a tensor {shown[0]}" if len(shown) == 1 else f"tensors {', '.join(shown) or 'of no dimensions'}"
