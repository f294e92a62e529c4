"""A model as other runtimes run it: one function from `pixel_values` to named tensors, traced by `torch.export`."""

import contextlib
import copy
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from transformers import PreTrainedModel

from ..encoders.layout import tensors_in
from ..modeling_a2mim import A2MIMModel


INPUT = "pixel_values"
LOGITS, LAST, POOLED = "logits", "last_hidden_state", "pooler_output"
TRACE_SECONDS = 120  # of the processor, for free sizes; the rules of attention in windows take sympy hours
TRACED = 2  # images of the batch that is traced: `torch.export` takes 1 for a constant


class RuntimeModel(nn.Module):
    """The part of a model that another runtime gets: a copy in float32 and in evaluation mode, on the CPU.

    Args:
        model: whose `forward(pixel_values=...)` gives `logits`, or `last_hidden_state` and perhaps `pooler_output`.
        classifier: which of the two.
    """

    def __init__(self, model: nn.Module, classifier: bool):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.classifier = classifier

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """`pixel_values`: (batch, channels, height, width), normalised. Of a classifier `logits`, (batch, classes);
        else `last_hidden_state`, in the encoder's own layout (`last_hidden_state.0`, `.1`, ... where it is several
        tensors), and `pooler_output`, (batch, features), if the model pools."""
        output = self.model(pixel_values=pixel_values)
        if self.classifier:
            return {LOGITS: output.logits}
        found = {".".join(map(str, (LAST, *path))): x for path, x in tensors_in(output.last_hidden_state)}
        pooled = getattr(output, POOLED, None)
        return found if pooled is None else found | {POOLED: pooled}


@dataclass(frozen=True)
class Traced:
    """A traced model, and of which sides an image may be: `multiple` is `None` for those it was traced with alone,
    else the number of pixels of which both sides are multiples."""

    program: torch.export.ExportedProgram
    size: tuple[int, int]
    multiple: int | None = None

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs, in their order."""
        return list(self.program.call_spec.out_spec.context)

    def other_size(self) -> tuple[int, int] | None:
        """Another size that it takes, not square, if there is one."""
        if self.multiple is None:
            return None
        step = max(self.multiple, 16)
        return self.size[0] + 2 * step, self.size[1] + step


# What timm calls it where an encoder may see images of other sizes than it was built for: ViTs, and Swins.
FREE_SIZES: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


def free_sizes(model: nn.Module) -> nn.Module:
    """Build timm's encoder in a model of this package anew, with the same weights, so that it resamples its positions
    for images of other sizes, where timm has an option for that. Returns the model, changed."""
    core: Any = getattr(model, "a2mim", model)
    for options in FREE_SIZES if isinstance(core, A2MIMModel) else ():
        try:
            encoder = timm.create_model(**core.plan.create_args | options, num_classes=core.num_classes)
        except TypeError:  # of an unknown option
            continue
        encoder.load_state_dict(core.encoder.state_dict())
        core.encoder = encoder.to(core.device).train(core.encoder.training)
        break
    return model


def plain_attention(model: RuntimeModel) -> RuntimeModel:
    """Let attention be computed by matrix products and a softmax in each layer, which is what a runtime without
    torch's fused kernels does, and which every converter knows. Returns the model, changed."""
    module: Any
    for module in model.modules():
        if getattr(module, "fused_attn", None):  # timm
            module.fused_attn = False
        config = getattr(module, "config", None)
        if isinstance(module, PreTrainedModel) and getattr(config, "_attn_implementation", None) == "sdpa":
            module.set_attn_implementation("eager")
    return model


def example(channels: int, size: tuple[int, int], batch: int = TRACED, seed: int = 0) -> torch.Tensor:
    """Normalised images (batch, channels, *size) that differ: noise on smooth areas of different colours, as photos
    have both; the first one twice as strong as the others."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 4, 4, generator=generator)
    fine = torch.randn(batch, channels, *size, generator=generator)
    images = nn.functional.interpolate(coarse, size, mode="bilinear") + 0.5 * fine
    images[0] *= 2
    return images


def trace(model: RuntimeModel, channels: int, size: tuple[int, int], stride: int | None = None) -> Traced:
    """The model as a graph for batches of any number of images.

    Args:
        model: what is traced.
        channels, size: of the images.
        stride: `None`: images of `size` alone. Else they may have other sizes where the model can, or, where it takes
            only multiples of its stride (in pixels, this number), these.

    Raises:
        ValueError: naming `dynamic_size`, if the model takes images of one size; or `format`, if it cannot be traced.
    """
    images = example(channels, size)
    if stride is None:
        try:
            return Traced(_traced(model, images, {}), size)
        except Exception as error:  # of many kinds, with the user's model in the middle
            raise ValueError(f"format: the model cannot be traced by torch.export: {reason(error)}") from error
    other = Traced(None, size, stride).other_size()
    try:
        with torch.no_grad():
            model(example(channels, other))
    except Exception as error:
        raise ValueError(f"dynamic_size: the model takes {size[0]}x{size[1]} px alone: {reason(error)}") from error
    failed = None
    for multiple, axes in _axes(stride):
        try:
            # Not of the model's own size, of which positions would be taken as they are.
            with _time_limit(TRACE_SECONDS):
                return Traced(_traced(model, example(channels, other), axes), size, multiple)
        except Exception as error:
            failed = failed or error
    raise ValueError(f"dynamic_size: the model cannot be traced for more than one size: {reason(failed)}") from failed


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Let loggers say errors only: of libraries that tell of each node what they leave alone or cannot decide."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


class _TooLong(BaseException):
    """Of `_time_limit`: no `Exception`, which torch catches at each guard that it cannot decide, and goes on."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stop what takes longer, where signals can (in the main thread, not on Windows).

    Raises:
        TimeoutError: after so many seconds of the processor.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any):
        raise _TooLong

    before = signal.signal(signal.SIGVTALRM, stop)
    # Again each second: Python drops what is raised in a `__del__`.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)
    try:
        yield
    except _TooLong:
        raise TimeoutError(f"torch.export found no rule for it within {seconds} s") from None
    finally:
        stopped = False
        while not stopped:
            with contextlib.suppress(_TooLong):  # of one more second, while memory was freed
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                signal.signal(signal.SIGVTALRM, signal.SIG_IGN if before is signal.SIG_DFL else before)
                stopped = True


def _axes(stride: int) -> Iterator[tuple[int, dict[int, Any]]]:
    dim: Callable = torch.export.Dim
    yield 1, {2: dim("height", min=stride), 3: dim("width", min=stride)}
    if stride > 1:
        yield stride, {2: stride * dim("rows", min=1), 3: stride * dim("columns", min=1)}


def _traced(model: RuntimeModel, images: torch.Tensor, axes: dict[int, Any]) -> torch.export.ExportedProgram:
    shapes = {INPUT: {0: torch.export.Dim("batch_size", min=1), **axes}}
    with torch.no_grad(), quiet("torch.fx", "torch.utils", "torch._dynamo", "torch.export"):
        return torch.export.export(
            model,
            (),
            {INPUT: images},
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def reason(error: BaseException, length: int = 300) -> str:
    """What an error says, or the first one behind it, in one line of at most `length` characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
