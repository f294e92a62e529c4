"""One encoder of each family in onnxruntime: the same features and logits as in PyTorch."""

import pytest
import torch

from modeling_a2mim import A2MIMForImageClassification, A2MIMModel
from modeling_a2mim.encoders.layout import tensors_in
from modeling_a2mim.export.agreement import TOLERANCE
from modeling_a2mim.export.int8 import quantize
from modeling_a2mim.export.onnx import session, write_onnx
from modeling_a2mim.export.runtime_model import RuntimeModel, example, plain_attention

from ..families import family_config
from ..sample_families import NAMES, awake_sample, awaken
from ..small_models import make_images


pytestmark = pytest.mark.usefixtures("one_thread")
# Attention in windows; the others, of which some have outputs of several tensors, take `make test-all`.
QUICK = ["swin"]


def of(cls, name):
    model = awaken(cls(family_config(name)), make_images(8)) if name == "swin" else awake_sample(cls, name)
    return RuntimeModel(model, cls is A2MIMForImageClassification), model.config


@pytest.mark.ci
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ["swin", *NAMES]]
)
def test_same_as_pytorch(name, tmp_path):
    for cls in (A2MIMModel, *([A2MIMForImageClassification] if name not in QUICK else [])):
        model, config = of(cls, name)
        found, _ = write_onnx(
            model, tmp_path / "model.onnx", config.num_channels, tuple(config.input_size), {"a": "b"}
        )
        assert found.error <= TOLERANCE
        assert found.response > 1e-3
        images = example(3, config.input_size, 2, seed=7)
        run = session(tmp_path / "model.onnx")(images.numpy())
        assert list(run) == list(found.errors)
        if cls is A2MIMModel:
            with torch.no_grad():
                last = [tensor for _, tensor in tensors_in(model.model(images).last_hidden_state)]
            names = ["last_hidden_state"] if len(last) == 1 else [f"last_hidden_state.{i}" for i in range(len(last))]
            assert list(run) == [*names, "pooler_output"]


def test_attention_is_the_same_unfused():
    """Which the file has."""
    model, config = of(A2MIMModel, "test_vit_relpos")
    images = example(3, config.input_size, 2)
    with torch.no_grad():
        fused = model(images)
        assert any(getattr(module, "fused_attn", None) for module in model.modules())
        plain = plain_attention(model)(images)
    assert not any(getattr(module, "fused_attn", None) for module in model.modules())
    for name, value in fused.items():
        torch.testing.assert_close(plain[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.ci
def test_nothing_to_quantize(tmp_path):
    """A CNN without a classifier has no matrix product; without images nothing else is quantized."""
    model, config = of(A2MIMModel, "test_efficientnet")
    write_onnx(model, tmp_path / "model.onnx", 3, tuple(config.input_size), {})
    message = "^int8: the model has no layer that can be quantized; give images with --calibration"
    with pytest.raises(ValueError, match=message):
        quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    layers = quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx", [example(3, (128, 128), 1).numpy()])
    assert layers["Conv"] > 10
    assert session(tmp_path / "int8.onnx")(example(3, (128, 128), 2).numpy())["pooler_output"].shape[0] == 2
