"""The comparison of runtimes: what it finds, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput

from modeling_a2mim.export.agreement import check_agreement, rounding
from modeling_a2mim.export.runtime_evaluation import evaluate_runtimes, pytorch
from modeling_a2mim.export.runtime_model import RuntimeModel, Traced, example


class Linear(nn.Module):
    """Logits of the mean colour."""

    def __init__(self, weight=1.0, bias=0.0):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.constant_(self.linear.weight, weight)
        nn.init.constant_(self.linear.bias, bias)
        with torch.no_grad():
            self.linear.weight[1] *= -1

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.linear(pixel_values.mean((2, 3))))


BATCHES = [example(3, (8, 8), 1, seed=1), example(3, (8, 8), 3, seed=3)]


def shifted(model, by):
    run = pytorch(model)
    return lambda images: {name: value + by * np.abs(value).max() for name, value in run(images).items()}


def test_finds_the_largest_error():
    model = RuntimeModel(Linear(), classifier=True)
    found = check_agreement(model, shifted(model, 5e-5), BATCHES)
    assert found.error == pytest.approx(5e-5, rel=0.01)
    assert found.batches == [[1, 3, 8, 8], [3, 3, 8, 8]]
    assert found.response > 0.3
    assert check_agreement(model, pytorch(model), BATCHES).error == 0


def test_a_larger_error_is_refused():
    model = RuntimeModel(Linear(), classifier=True)
    with pytest.raises(ValueError, match=r"^tolerance: logits differs .* by 2.0e-04 .* more than 1.0e-04; .* float64"):
        check_agreement(model, shifted(model, 2e-4), BATCHES)
    check_agreement(model, shifted(model, 2e-4), BATCHES, tolerance=1e-3)
    with pytest.raises(ValueError, match="^tolerance: logits differs .* by inf"):
        check_agreement(model, shifted(model, np.nan), BATCHES)


def test_outputs_that_say_nothing(caplog):
    for weight, bias in ((0.0, 0.0), (np.inf, 0.0), (np.nan, 0.0)):
        model = RuntimeModel(Linear(weight, bias), classifier=True)
        with pytest.raises(ValueError, match="^model: its logits has (nothing but zeros|values that are not finite)"):
            check_agreement(model, pytorch(model), BATCHES)
    model = RuntimeModel(Linear(1e-6, 1.0), classifier=True)
    found = check_agreement(model, pytorch(model), BATCHES)
    assert found.response < 1e-5
    assert "hardly depend on the image" in caplog.text


def test_other_names_and_shapes_are_refused():
    model = RuntimeModel(Linear(), classifier=True)
    run = pytorch(model)
    with pytest.raises(ValueError, match="^format: the runtime gives scores, PyTorch logits"):
        check_agreement(model, lambda images: {"scores": run(images)["logits"]}, BATCHES)
    with pytest.raises(ValueError, match=r"^format: logits of images .* has the shape \(1, 1\)"):
        check_agreement(model, lambda images: {"logits": run(images)["logits"][:, :1]}, BATCHES)


def test_rounding_is_that_of_float32():
    assert 0 < rounding(RuntimeModel(Linear(0.1, 0.3), classifier=True), BATCHES) < 1e-5


def test_other_sizes():
    assert Traced(None, (64, 96)).other_size() is None
    assert Traced(None, (64, 96), 32).other_size() == (128, 128)
    assert Traced(None, (64, 64), 1).other_size() == (96, 80)


def test_runtimes_side_by_side():
    logits = np.array([[2.0, 1], [0, 3], [1, 0], [0, 1]], dtype=np.float32)
    wrong = logits.copy()
    wrong[0] = [0, 1]
    batches = [(np.arange(2), np.array([0, 1])), (np.arange(2, 4), np.array([0, 0]))]
    found = evaluate_runtimes(
        {"one": lambda rows: {"logits": logits[rows]}, "two": lambda rows: {"logits": wrong[rows]}}, batches
    )
    assert found == {
        "one": {"images": 4, "accuracy": 0.75},
        "two": {"images": 4, "accuracy": 0.5, "agreement": 0.75},
    }


def test_features_side_by_side():
    features = np.array([[1.0, 0], [0, 2]], dtype=np.float32)
    other = np.array([[3.0, 0], [1, 0]], dtype=np.float32)
    runtimes = {"one": lambda _: {"pooler_output": features}, "two": lambda _: {"pooler_output": other}}
    assert evaluate_runtimes(runtimes, [(np.zeros(2), None)])["two"] == {"images": 2, "cosine": 0.5}
    with pytest.raises(ValueError, match="no images"):
        evaluate_runtimes(runtimes, [])
