"""Models as ONNX files, by PyTorch's own exporter, checked by onnxruntime before they get their name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .agreement import TOLERANCE, Agreement, Run, batches_of, check_agreement
from .runtime_model import INPUT, RuntimeModel, Traced, plain_attention, quiet, reason, trace


PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages():
    """Raises ValueError, if what writes and runs ONNX is not installed."""
    for name in PACKAGES:
        try:
            __import__(name)
        except ImportError as error:
            raise ValueError(f"format: onnx needs {name}: pip install 'a2mim[onnx]'") from error


def write_onnx(
    model: RuntimeModel,
    path: str | os.PathLike,
    channels: int,
    size: tuple[int, int],
    metadata: Mapping[str, str],
    *,
    opset: int | None = None,
    stride: int | None = None,
    tolerance: float = TOLERANCE,
) -> tuple[Agreement, Traced]:
    """Write a model to a file and compare what onnxruntime makes of it with PyTorch.

    Args:
        model: what is written; of its outputs, see `RuntimeModel`.
        path: of the file. Weights of more than 2 GB are in a second one beside it.
        channels, size: of the images.
        metadata: what the file says about itself (`runtime_metadata`); that of free sizes is added.
        opset: version of ONNX's operators; the exporter's own, if not given.
        stride: for images of other sizes, see `runtime_model.trace`.
        tolerance: see `check_agreement`.

    Raises:
        ValueError: naming `format`, `opset`, `dynamic_size` or `tolerance`: what cannot be, or is not right.
    """
    check_packages()
    model = plain_attention(model)
    traced = trace(model, channels, size, stride)
    options: dict[str, Any] = {"input_names": [INPUT], "output_names": traced.outputs, "opset_version": opset}
    try:
        with quiet("onnxscript", "onnx_ir", "torch.onnx"):
            exported: Any = torch.onnx.export(traced.program, (), dynamo=True, verbose=False, **options)
    except Exception as error:
        raise ValueError(f"format: the model cannot be written as ONNX: {reason(error)}") from error
    graph = exported.model
    written = graph.opset_imports.get("")
    if opset is not None and written != opset:
        raise ValueError(f"opset: the model needs {written}, it cannot be written with {opset}")
    without_places(graph)
    graph.metadata_props.clear()
    graph.metadata_props.update({**metadata, **size_metadata(traced)})
    exported.save(path)
    return check_traced(model, session(path), traced, channels, tolerance), traced


def check_traced(
    model: RuntimeModel, run: Run, traced: Traced, channels: int, tolerance: float = TOLERANCE
) -> Agreement:
    """Compare what a model was traced to with the model, in all sizes that it is for. Arguments and errors as of
    `check_agreement`; where sizes are free, they name `dynamic_size`."""
    try:
        return check_agreement(model, run, batches_of(traced, channels), tolerance)
    except Exception as error:
        if traced.multiple is None:
            raise
        # Where the tracer could not keep an expression of the size, it took the number that it had.
        raise ValueError(
            f"dynamic_size: the model cannot be traced for more than one size: what came out is another function of "
            f"the image ({reason(error)})"
        ) from error


def size_metadata(traced: Traced) -> dict[str, str]:
    """What a file says of the sizes of images: `size_multiple`, of which both sides are multiples; none where all
    images have the one size."""
    return {} if traced.multiple is None else {"size_multiple": str(traced.multiple)}


def opset_of(path: str | os.PathLike) -> int:
    """The version of ONNX's operators in a file."""
    import onnx

    imports = onnx.load(path, load_external_data=False).opset_import
    return next(entry.version for entry in imports if entry.domain in ("", "ai.onnx"))


def without_places(graph: Any):
    """Drop what the exporter keeps of each node for debugging: lines of code with paths of this machine."""
    for each in (graph.graph, *graph.functions.values()):
        for node in each.all_nodes() if hasattr(each, "all_nodes") else each:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        each.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()


def session(path: str | os.PathLike) -> Run:
    """A file as a function of images (batch, channels, height, width), on the CPU, in as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what fails is raised
    try:
        running = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds
        raise ValueError(f"format: onnxruntime cannot load {Path(path).name}: {reason(error)}") from error
    names = [output.name for output in running.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, running.run(None, {INPUT: images}), strict=True))

    return run
