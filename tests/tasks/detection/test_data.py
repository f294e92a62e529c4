"""Samples with their boxes and masks, batches, and a figure of them."""

import itertools
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import masks_to_boxes
from transformers import AutoImageProcessor

from benchmarks import shapes
from modeling_a2mim import A2MIMConfig
from modeling_a2mim.data import decoding
from modeling_a2mim.data.transforms import seeded
from modeling_a2mim.models.detection import A2MIMDetectorConfig, A2MIMForObjectDetection
from modeling_a2mim.tasks.detection.annotations import Annotations
from modeling_a2mim.tasks.detection.data import DROPPED, TRUTH, DetectionTransform, Resize, draw_predictions, pad_batch
from modeling_a2mim.tasks.detection.scan import Sized

from ..segmentation.test_labels import encoded
from .test_annotations import rows as lists
from .test_annotations import struct_of_lists


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows():
    """Six canvases of 64 px with one channel."""
    return shapes.compose("train", 6).cast_column("image", datasets.Image(decode=False))


def make(rows, canvas=(64, 64), train=True, channels=1, masks=True, flip=0.0, **sizes):
    config = A2MIMConfig.for_encoder(architecture="test_convnext", num_channels=channels, image_size=list(canvas))
    annotations = Annotations(rows.features["objects"], masks=masks)
    return DetectionTransform(config, annotations, Resize(canvas, **sizes), train, flip)


def test_boxes_and_masks_move_with_the_image(rows):
    plain, mirrored, large = make(rows), make(rows, flip=1.0), make(rows, canvas=(128, 128))
    for row in rows:
        one, two, three = (transform(row["image"], row["objects"]) for transform in (plain, mirrored, large))
        labels = one["labels"]
        assert labels["class_labels"].tolist() == row["objects"]["category"]
        # Masks are exact where nothing is resized, and boxes around them: from the first pixel to after the last.
        torch.testing.assert_close(masks_to_boxes(labels["masks"]) + torch.tensor([0, 0, 1, 1]), labels["boxes"])
        assert labels["masks"].flatten(1).sum(1).tolist() == row["objects"]["area"]
        assert torch.equal(two["pixel_values"], one["pixel_values"].flip(-1))
        assert torch.equal(two["labels"]["masks"], labels["masks"].flip(-1))
        x0, y0, x1, y1 = labels["boxes"].unbind(1)
        assert torch.equal(two["labels"]["boxes"], torch.stack([64 - x1, y0, 64 - x0, y1], 1))
        assert torch.equal(three["labels"]["boxes"], labels["boxes"] * 2)
        assert torch.equal(three["labels"]["masks"][:, ::2, ::2], labels["masks"])
        assert one[DROPPED] == 0
        assert TRUTH not in one


def test_what_is_drawn_follows_from_the_seed(rows):
    transform, row = make(rows, flip=0.5, shortest_edge=[48, 64, 80, 96]), rows[0]
    seen = set()
    for seed in range(8):
        samples = []
        for _ in range(2):
            with seeded(seed):
                samples.append(transform(row["image"], row["objects"]))
        assert torch.equal(samples[0]["pixel_values"], samples[1]["pixel_values"])
        seen.add((*samples[0]["pixel_values"].shape[1:], samples[0]["labels"]["boxes"][0, 0].item()))
    assert {size[0] for size in seen} <= {48, 64, 80, 96}
    assert len(seen) > 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sizes", [{}, {"shortest_edge": [40, 56], "longest_edge": 70}])
def test_evaluation_sees_what_the_image_processor_makes(rows, sizes, channels, tmp_path):
    image = Image.effect_mandelbrot((90, 50), (-2, -1, 1, 1), 50).convert("L" if channels == 1 else "RGB")
    transform = make(rows, canvas=(64, 80), train=False, channels=channels, masks=False, **sizes)
    config = A2MIMConfig.for_encoder(architecture="test_convnext", num_channels=channels, image_size=[64, 80])
    transform.resize.processor(config).save_pretrained(tmp_path)
    expected = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")
    sample = transform(image, {"bbox": [[9.0, 10.0, 45.0, 20.0]], "category": [3]})
    batch = pad_batch([sample], transform.resize.canvas)
    assert batch["pixel_values"].shape == expected["pixel_values"].shape
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=1e-6, rtol=0)
    assert torch.equal(batch["pixel_mask"], expected["pixel_mask"])
    height, width = (44, 80) if not sizes else (39, 69)
    assert batch["pixel_mask"].sum() == height * width
    share = torch.tensor([[9 / 90, 10 / 50, 54 / 90, 30 / 50]]) * torch.tensor([width, height, width, height])
    torch.testing.assert_close(batch["labels"][0]["boxes"], share)
    assert sample[TRUTH]["size"] == (50, 90)
    assert sample[TRUTH]["objects"].boxes.tolist() == [[9, 10, 54, 30]]


def test_crowds_and_specks_are_not_trained_on(rows):
    objects = {"bbox": [[0.0, 0.0, 30.0, 30.0], [5.0, 5.0, 9.0, 9.0], [60.0, 60.0, 1.0, 1.0], [99.0, 9.0, 5.0, 5.0]]}
    objects |= {"category": [1, 2, 3, 4], "iscrowd": [0, 1, 0, 0]}
    sample = make(rows, canvas=(32, 32), masks=False)(rows[0]["image"], objects)
    assert sample["labels"]["class_labels"].tolist() == [1]
    assert sample[DROPPED] == 2  # half a pixel, and outside
    truth = make(rows, canvas=(32, 32), masks=False, train=False)(rows[0]["image"], objects)[TRUTH]["objects"]
    assert truth.crowd.tolist() == [False, True, False]


def test_batches_are_padded(rows):
    small, large = ({"pixel_values": torch.ones(1, h, w), "labels": {}, DROPPED: 1} for h, w in ((3, 5), (4, 2)))
    small["labels"] = {"boxes": torch.ones(2, 4), "masks": torch.ones(2, 3, 5)}
    batch = pad_batch([small, large])
    assert batch["pixel_values"].shape == (2, 1, 4, 5)
    assert torch.equal(batch["pixel_mask"], batch["pixel_values"][:, 0].long())
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [15, 8]
    assert batch["labels"][0]["masks"].sum() == 30
    assert batch["labels"][0]["masks"].shape == (2, 4, 5)
    assert batch[DROPPED] == 2
    assert pad_batch([small], (6, 7))["pixel_values"].shape == (1, 1, 6, 7)


def test_figures_without_detections(rows):
    config = A2MIMDetectorConfig.for_encoder(
        architecture="test_convnext", image_size=64, num_channels=1, num_labels=10, score_threshold=1.0
    )
    transform = make(rows, train=False, masks=False)
    samples = [transform(row["image"], row["objects"]) for row in rows.select(range(2))]
    figure = draw_predictions(A2MIMForObjectDetection(config).eval(), samples, (64, 64))
    assert figure.size == (4 * 322 + 2, 322 + 2)


def test_figures_of_stored_values():
    """They show the channels that were asked for, stretched as those of the other tasks."""
    config = A2MIMDetectorConfig.for_encoder(
        architecture="test_convnext",
        image_size=64,
        num_channels=4,
        num_labels=2,
        score_threshold=1.0,
        value_range={"low": [0.0], "high": [1.0], "clip": False},
        display_channels=[4, 2, 1],
    )
    pixels = torch.full((4, 64, 64), 5.0)
    pixels[3, :, 32:] = pixels[1, :, :32] = 7.0
    samples = [{"pixel_values": pixels, "labels": {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0).long()}}]
    figure = np.asarray(draw_predictions(A2MIMForObjectDetection(config).eval(), samples, (64, 64)))
    assert figure[160, 80].tolist() == [0, 255, 0]
    assert figure[160, 240].tolist() == [255, 0, 0]


KINDS = SimpleNamespace(
    features={"objects": {**struct_of_lists(), "segmentation": datasets.List(datasets.Value("string"))}}
)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("told", [(20, 40), (40, 20), (None, None)])
@pytest.mark.parametrize("number", [6, 8])
def test_boxes_turn_with_photographs(told, number, masks, monkeypatch, caplog):
    """A bright rectangle and its box, in a JPEG that is shown turned: annotated as stored (20 x 40) or as shown."""
    monkeypatch.setattr(decoding, "_taken_as_shown", itertools.count())
    pixels = np.zeros((20, 40), dtype=np.uint8)
    pixels[8:16, 24:40] = 255
    exif = Image.Exif()
    exif[274] = number
    polygon = {"bbox": [24.0, 8.0, 16.0, 8.0], "segmentation": [[24, 8, 40, 8, 40, 16, 24, 16]]}
    if told != (20, 40):
        shown = [[4, 24, 12, 40], [8, 0, 16, 16]][number == 8]
        x0, y0, x1, y1 = shown
        polygon = {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
    transform = make(KINDS, canvas=(40, 40), masks=masks, train=False)
    sample = transform(encoded(Image.fromarray(pixels), "JPEG", exif=exif), Sized([{**polygon, "category": 1}], *told))
    (box,) = sample["truth"]["objects"].boxes.astype(int)
    bright = np.asarray(sample["pixel_values"][0]) > 0
    assert bright.shape == (40, 20)
    inside = np.zeros_like(bright)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert (bright == inside).mean() > 0.98
    if masks:
        assert (sample["labels"]["masks"][0].numpy() == inside).all()
    assert ("taken as of the image as it is shown" in caplog.text) == (told == (None, None))


@pytest.mark.parametrize(("size", "number"), [((20, 40), 1), ((20, 40), 3), ((20, 40), 4), ((20, 20), 6)])
def test_sizes_that_do_not_tell_whether_boxes_turn(size, number, monkeypatch, caplog):
    monkeypatch.setattr(decoding, "_taken_as_shown", itertools.count())
    exif = Image.Exif()
    exif[274] = number
    image = encoded(Image.new("L", size[::-1]), "JPEG", exif=exif)
    transform = make(KINDS, canvas=(40, 40), masks=False, train=False)
    for _ in range(2):
        transform(image, Sized([{"bbox": [4.0, 8.0, 6.0, 8.0], "category": 1}], *size))
    assert caplog.text.count("does not tell whether that was made on the image as it is shown") == (number != 1)


def test_objects_of_another_image_are_broken():
    with pytest.raises(ValueError, match="its objects are in pixels of an image of 100 x 80, it has 20 x 40"):
        make(KINDS, masks=False)(Image.new("L", (40, 20)), Sized(lists(), 100, 80))
