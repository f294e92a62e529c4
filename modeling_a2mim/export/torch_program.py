"""Models as programs of `torch.export`, which PyTorch loads without the code that the model was made of."""

import json
import os
from collections.abc import Mapping

import numpy as np
import torch

from .agreement import TOLERANCE, Agreement, Run
from .onnx import check_traced, size_metadata
from .runtime_metadata import METADATA_FILE
from .runtime_model import INPUT, RuntimeModel, Traced, trace


def write_program(
    model: RuntimeModel,
    path: str | os.PathLike,
    channels: int,
    size: tuple[int, int],
    metadata: Mapping[str, str],
    *,
    stride: int | None = None,
    tolerance: float = TOLERANCE,
) -> tuple[Agreement, Traced]:
    """Write a model to a file, load it again, and compare it with the model. Arguments as of `onnx.write_onnx`; the
    metadata are JSON in the extra file `metadata.json`.

    Raises:
        ValueError: naming `format`, `dynamic_size` or `tolerance`: what cannot be, or is not right.
    """
    traced = trace(model, channels, size, stride)
    _without_places(traced.program)
    traced.program.example_inputs = None  # which would be the one pickle in the file
    entries = dict(metadata) | size_metadata(traced)
    torch.export.save(traced.program, path, extra_files={METADATA_FILE: json.dumps(entries, indent=1)})
    return check_traced(model, program(path), traced, channels, tolerance), traced


def program(path: str | os.PathLike) -> Run:
    """A file as a function of images (batch, channels, height, width), on the CPU."""
    loaded = torch.export.load(path).module()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {name: value.numpy() for name, value in loaded(**{INPUT: torch.from_numpy(images)}).items()}

    return run


def _without_places(program: torch.export.ExportedProgram):
    """Drop the lines of code that torch keeps of each node, with paths of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
