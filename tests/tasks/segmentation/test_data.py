"""Images with maps of classes: found, augmented together, and brought to the size of the crop."""

import io
import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.arguments.segmentation import (
    SegmentationArguments,
)
from modeling_a2mim.data import decoding
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.data.splits import load_training_split
from modeling_a2mim.data.transforms import seeded
from modeling_a2mim.tasks.segmentation.data import (
    SegmentationTransform,
    find_columns,
    load_labelled,
    load_to_evaluate,
    read_maps,
)
from modeling_a2mim.tasks.segmentation.labels import LabelValues
from modeling_a2mim.tasks.segmentation.model import image_processor

from .test_labels import encoded
from .test_model import NAMES


pytestmark = pytest.mark.usefixtures("one_thread")


def png(pixels, mode=None):
    stream = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([255 - i // 3 for i in range(768)])
    image.save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def rows(**columns):
    kinds = {name: datasets.Image() for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def test_names_and_columns_that_are_found(maps, tmp_path):
    args = SegmentationArguments(dataset_name=[str(maps)])
    train = load_training_split(args)
    assert find_columns(args, train) == ("image", "annotation")
    assert read_maps(args, train, None, "annotation").labels.names == NAMES
    beside = SegmentationArguments(train_dir=[str(maps / "data")])  # of which the file is
    assert read_maps(beside, train, None, "annotation").labels.names == NAMES
    alone = SegmentationArguments(validation_dir=str(maps / "data"))  # to evaluate on
    assert load_to_evaluate(alone, NAMES).labels.names == NAMES
    with pytest.raises(ValueError, match="^dataset_name: annotated images are needed"):
        load_labelled(alone)
    stored = [png(np.uint8([[3, 255, 1]])), png(np.uint8([[0, 0, 1]]))]
    found = rows(annotation=stored, image=stored)  # images need not come first
    args = SegmentationArguments(dataset_name=[str(tmp_path)])
    assert find_columns(args, found) == ("image", "annotation")
    assert read_maps(args, found, None, "annotation").labels.names == ["class 0", "class 1", "class 3"]
    args = SegmentationArguments(dataset_name=[str(tmp_path)], do_reduce_labels=True)
    assert read_maps(args, found, None, "annotation").labels.names == ["class 0", "class 2"]
    with pytest.raises(ValueError, match="^label_column_name: the dataset has no column of maps"):
        find_columns(args, rows(image=stored, other=stored))
    with pytest.raises(ValueError, match="^image_column_name: no column of images beside 'mask'"):
        find_columns(args, rows(mask=stored))
    with pytest.raises(ValueError, match="^ignore_index: 2 is the class 'Trouser'"):
        read_maps(SegmentationArguments(dataset_name=[str(maps)], ignore_index=2), train, None, "annotation")


def transform(size=(24, 16), channels=1, names=16, train=True, **kwargs):
    config = A2MIMConfig.for_encoder(list(size), architecture="test_resnet", num_channels=channels)
    model = type("Model", (), {"backbone": type("Backbone", (), {"config": config})})
    labels = LabelValues(NAMES[:1] * names)
    return SegmentationTransform(image_processor(model), PixelSpec(channels), labels, train, **kwargs)


def test_maps_move_with_their_images():
    """Each pixel's class is its grey value over 16, and 15 never occurs, which is where padding would be seen."""
    classes = np.repeat(np.arange(15), 4)[None].repeat(30, 0)
    image, label = png((classes * 16).astype(np.uint8)), png(classes.astype(np.uint8))
    augment, seen = transform(), set()
    for seed in range(30):
        with seeded(seed):
            sample = augment(image, label)
        pixels, labels = sample["pixel_values"], sample["labels"]
        assert pixels.shape == (1, 24, 16)
        assert labels.shape == (24, 16)
        assert (pixels.dtype, labels.dtype) == (torch.float32, torch.int64)
        known = labels != 255
        grey = (pixels[0] * 0.5 + 0.5) * 255 / 16
        # Interpolated pixels lie between those beside them, so a class or less away.
        assert (grey - labels)[known].abs().max() < 1.01
        assert (pixels[0][~known].abs() < 0.01).all()  # padded with the mean
        order = labels[12][known[12]]
        seen.add((bool((~known).any()), bool(order[0] > order[-1])))
        with seeded(seed):
            assert torch.equal(augment(image, label)["pixel_values"], pixels)
    assert seen == {(padded, flipped) for padded in (True, False) for flipped in (True, False)}


def test_without_augmentation_nothing_changes():
    values = np.arange(24 * 16, dtype=np.uint8).reshape(24, 16) % 16
    plain = transform(resize_scale=[1.0, 1.0], horizontal_flip=False)
    sample = plain(png(values), png(values))
    assert sample["labels"].tolist() == values.tolist()
    assert torch.allclose(sample["pixel_values"][0], torch.tensor(values / 255 * 2 - 1).float(), atol=1e-6)


def test_evaluation_is_what_users_do():
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (33, 50, 3), dtype=np.uint8)
    classes = generator.integers(0, 16, (33, 50), dtype=np.uint8)
    whole = transform(channels=3, train=False)
    sample = whole(png(pixels), png(classes))
    theirs = whole.processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(sample["pixel_values"], theirs)
    assert sample["pixel_values"].shape == (3, 24, 16)
    assert sample["maps"].tolist() == classes.tolist()
    assert sample["labels"].shape == (24, 16)
    grey = transform(train=False)
    made = grey(png(pixels[..., 0]), png(classes))["pixel_values"]
    assert torch.equal(made, grey.processor(Image.fromarray(pixels[..., 0]), return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize(
    ("number", "shape", "warned"), [(3, (20, 40), True), (6, (20, 40), False), (1, (9, 9), False)]
)
def test_sizes_that_do_not_tell_whether_maps_turn(number, shape, warned, monkeypatch, caplog):
    monkeypatch.setattr(decoding, "_taken_as_shown", itertools.count())
    exif = Image.Exif()
    exif[274] = number
    image = encoded(Image.new("L", shape[::-1]), "JPEG", exif=exif)
    for _ in range(2):
        transform(train=False)(image, png(np.zeros(shape, dtype=np.uint8)))
    assert caplog.text.count("taken as of the image as it is shown") == warned


def test_wrong_maps():
    image = png(np.zeros((8, 8), dtype=np.uint8))
    with pytest.raises(BrokenImage, match="its map of classes has 8 x 7 pixels, the image 8 x 8"):
        transform()(image, png(np.zeros((8, 7), dtype=np.uint8)))
    with pytest.raises(BrokenImage, match="its map of classes holds the value 16, which is no class"):
        transform()(image, png(np.full((8, 8), 16, dtype=np.uint8)))
    with pytest.raises(ValueError, match="^photometric_distortion: is for RGB images"):
        transform(photometric_distortion=True)


def test_photometric_distortion_leaves_the_map():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    values = np.arange(24 * 16, dtype=np.uint8).reshape(24, 16) % 16
    options = {"channels": 3, "resize_scale": [1.0, 1.0], "horizontal_flip": False}
    same, other = transform(**options), transform(photometric_distortion=True, **options)
    with seeded(1):
        distorted = other(png(pixels), png(values))
    assert distorted["labels"].tolist() == values.tolist()
    assert not torch.equal(distorted["pixel_values"], same(png(pixels), png(values))["pixel_values"])
