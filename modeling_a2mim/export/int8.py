"""ONNX files in 8-bit integers, by onnxruntime's own quantizer."""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .runtime_model import INPUT, reason


MULTIPLICATIONS = ("MatMul", "Gemm")
LAYERS = ("Conv", *MULTIPLICATIONS)


def quantize(
    source: str | os.PathLike, path: str | os.PathLike, calibration: Iterable[np.ndarray] | None = None
) -> Counter[str]:
    """Write an ONNX file anew with weights of 8 bits.

    Without images, activations are quantized as they come (dynamic), in matrix products alone: onnxruntime has no fast
    convolution of that kind. With images, their ranges are measured on these (static, QDQ), in convolutions too; each
    output channel of a layer has its own scale.

    Args:
        source: the ONNX file.
        path: of the new file.
        calibration: images, float32 (batch, channels, height, width) each.

    Returns:
        How many layers of each kind (`LAYERS`) are quantized.

    Raises:
        ValueError: naming `int8`, if no layer can be quantized, or the quantizer fails; `calibration`, if there are
            no images.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    metadata = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        silenced = logging.root.manager.disable
        logging.disable(logging.INFO)  # the quantizer tells of each tensor that it leaves alone, by the root logger
        try:
            # Shapes are known from the export; the optimizer folds what the quantizer would not recognise.
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            if calibration is None:
                options: dict[str, Any] = {"op_types_to_quantize": list(MULTIPLICATIONS), "per_channel": True}
                quantize_dynamic(str(prepared), str(path), weight_type=QuantType.QInt8, **options)
            else:
                options = {"op_types_to_quantize": list(LAYERS), "per_channel": True}
                quantize_static(str(prepared), str(path), _Reader(calibration), weight_type=QuantType.QInt8, **options)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"int8: onnxruntime cannot quantize this model: {reason(error)}") from error
        finally:
            logging.disable(silenced)
    model = onnx.load(path)
    quantized = _quantized(model)
    if not quantized:
        hint = "" if calibration is not None else "; give images with --calibration, which quantizes convolutions, too"
        raise ValueError(f"int8: the model has no layer that can be quantized{hint}")
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return quantized


class _Reader:
    """Images as onnxruntime's calibration reads them."""

    def __init__(self, images: Iterable[np.ndarray]):
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self.images, None)
        return None if images is None else {INPUT: images}


def _quantized(model: Any) -> Counter[str]:
    """The layers of a quantized file whose weights are integers, by the operator that they were."""
    integers = {"MatMulInteger": "MatMul", "DynamicQuantizeMatMul": "MatMul", "ConvInteger": "Conv"}
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    found: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type in integers:
            found[integers[node.op_type]] += 1
        elif node.op_type in LAYERS and all(producers.get(name) == "DequantizeLinear" for name in node.input[:2]):
            found[node.op_type] += 1
    return found
