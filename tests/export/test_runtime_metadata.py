"""What files for other runtimes say about images, and that Pillow and NumPy make of it what the models were given."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor

from modeling_a2mim.analysis.comparison import ProcessorTransform
from modeling_a2mim.data.transforms import FineTuneTransform
from modeling_a2mim.export.runtime_metadata import prepare, processor_preprocessing, runtime_metadata


CFG = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic", "crop_pct": 0.9}


def photo(width, height, channels=3):
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    return Image.fromarray(noise.squeeze()).resize((width, height), Image.Resampling.BICUBIC)


def entries(cfg, **kwargs):
    return runtime_metadata(cfg, "test_vit", "0.1", **kwargs)


def test_entries_are_strings_and_json():
    found = entries({**CFG, "input_size": (3, 32, 48)}, classes=["a", "b"], decision={"thresholds": {"a": 0.3}})
    assert all(isinstance(value, str) for value in found.values())
    assert json.loads(found["input_size"]) == [3, 32, 48]
    assert json.loads(found["id2label"]) == {"0": "a", "1": "b"}
    assert json.loads(found["decision"]) == {"thresholds": {"a": 0.3}}
    assert (found["problem_type"], found["crop_mode"]) == ("single_label_classification", "center")
    assert {"decision", "id2label", "problem_type"}.isdisjoint(entries({**CFG, "input_size": (3, 32, 48)}))


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (224, 224)])
@pytest.mark.parametrize("shape", [(301, 223), (223, 301), (40, 40), (33, 170)])
@pytest.mark.parametrize("channels", [1, 3])
def test_prepares_as_timm(crop_mode, size, shape, channels):
    cfg = {**CFG, "input_size": (channels, *size), "crop_mode": crop_mode}
    cfg |= {key: CFG[key][:channels] for key in ("mean", "std")}
    image = photo(*shape, channels)
    expected = FineTuneTransform(cfg, train=False)(image)["pixel_values"]
    torch.testing.assert_close(torch.from_numpy(prepare(image, entries(cfg))[0]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(size={"height": 32, "width": 32}),
        BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
        ConvNextImageProcessor(size={"shortest_edge": 384}),
    ],
    ids=["ViT", "Bit", "ConvNext small", "ConvNext large"],
)
def test_prepares_as_processors_of_transformers(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    transform = ProcessorTransform(AutoImageProcessor.from_pretrained(tmp_path))
    image = photo(301, 223)
    expected = transform(image)["pixel_values"]
    found = entries(processor_preprocessing(transform.processor, list(expected.shape)))
    # These resize tensors, not images of Pillow: they round to whole numbers of 255 elsewhere.
    difference = np.abs(prepare(image, found)[0] - expected.numpy())
    assert difference.mean() < 0.005
    assert difference.max() < 0.03


def test_processors_that_the_entries_cannot_describe():
    for kwargs, message in [
        ({"do_normalize": False}, "does not normalise"),
        ({"rescale_factor": 1 / 127.5}, "it multiplies pixels by"),
        ({"size": {"longest_edge": 32}}, "its size is"),
    ]:
        processor = ViTImageProcessor(**{"size": {"height": 32, "width": 32}, **kwargs})
        with pytest.raises(ValueError, match=message):
            processor_preprocessing(processor, [3, 32, 32])


def test_a_mode_that_pillow_is_not_told():
    with pytest.raises(ValueError, match="^crop_mode: expected center or squash, got border"):
        prepare(photo(40, 40), entries({**CFG, "input_size": (3, 32, 32), "crop_mode": "border"}))
