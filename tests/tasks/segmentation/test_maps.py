"""Maps of classes: the figures of their agreement by hand, and how they are shown."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_a2mim.tasks.segmentation.maps import MeanIoU, colours, confusion, plot_predictions, resized_prediction
from modeling_a2mim.tasks.segmentation.model import image_processor

from .test_model import small


pytestmark = pytest.mark.usefixtures("one_thread")


def test_mean_iou_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 2, 255]])
    prediction = torch.tensor([[0, 1, 1], [1, 0, 2]])
    counts = confusion(prediction, truth, 4, 255)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    metric = MeanIoU(["a", "b", "c", "nowhere"])
    result = metric.compute(predictions=[prediction.tolist()], references=[truth.tolist()])
    # a: 1 of (2 true + 2 predicted - 1); b: 2 of (2 + 3 - 2); c: 0 of 1. "nowhere" is in no mean.
    expected = {"iou_a": 1 / 3, "iou_b": 2 / 3, "iou_c": 0.0, "mean_iou": 1 / 3}
    expected |= {"mean_accuracy": (1 / 2 + 1 + 0) / 3, "overall_accuracy": 3 / 5}
    assert result == pytest.approx(expected)


def test_mean_iou_adds_up_and_starts_anew():
    generator = torch.Generator().manual_seed(0)
    truths = [torch.randint(0, 3, size, generator=generator) for size in ((5, 4), (2, 7), (3, 3))]
    predictions = [torch.randint(0, 3, truth.shape, generator=generator) for truth in truths]
    whole = [torch.cat([one.flatten() for one in maps])[None] for maps in (predictions, truths)]
    metric, other = MeanIoU(list("abc")), MeanIoU(list("abc"))
    expected = other.compute(predictions=[whole[0]], references=[whole[1]])
    for prediction, truth in zip(predictions, truths, strict=True):
        metric.add(prediction=prediction, reference=truth)
    assert metric.compute() == expected
    metric.add_counts(torch.stack([confusion(*pair, 3, 255) for pair in zip(predictions, truths, strict=True)]))
    assert metric.compute() == expected
    with pytest.raises(ValueError, match="^references: no pixel has a class, all are 255"):
        metric.compute()


def test_predictions_are_resized_as_users_do():
    logits = torch.randn(2, 5, 8, 9)
    processor = image_processor(small())
    outputs = type("Outputs", (), {"logits": logits})
    theirs = processor.post_process_semantic_segmentation(outputs, target_sizes=[(13, 6), (4, 20)])
    for one, size, expected in zip(logits, ((13, 6), (4, 20)), theirs, strict=True):
        assert torch.equal(resized_prediction(one, size), expected)


def test_colours_of_a_figure():
    truth = torch.tensor([[0, 1], [255, 2]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    prediction = torch.full((16, 16), 3)
    figure = plot_predictions([Image.new("RGB", (16, 16))], [truth], [prediction], list("abcde"))
    shown = {tuple(colour) for colour in np.asarray(figure).reshape(-1, 3).tolist()}
    palette = [tuple(round(255 * v) for v in colour) for colour in colours(5)]

    def close(colour):
        return any(max(abs(a - b) for a, b in zip(colour, other, strict=True)) <= 1 for other in shown)

    assert [close(colour) for colour in palette] == [True] * 4 + [False]
    assert len(set(colours(150))) == 150
