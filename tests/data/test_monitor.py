"""The images that the encoder is measured on: which are drawn, what of them is read, and what is refused."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Image
from PIL import Image as Pillow

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.arguments.data import PreTrainingDataArguments
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.monitor import balanced_rows, load_monitor, monitor_images, open_monitor
from modeling_a2mim.data.transforms import PreTrainTransform

from ..image_files import make_images as images_in


CONFIG = A2MIMConfig(architecture="test_convnext", image_size=32, num_channels=1, mask_patch_size=8, mask_site=-3)
WHOLE = PreTrainTransform(CONFIG, train=False)


def opened(**arguments):
    args = PreTrainingDataArguments(**arguments)
    evaluation = ImageSamples(load_images(split="test").select(range(20)), WHOLE, "image")
    return load_monitor(args, open_monitor(args), evaluation, "the training data itself", WHOLE)


def folder_of(tmp_path, **counts):
    """A folder of classes, with so many images of each; names of one are in order of their greys."""
    names = [f"{name}/{i:03}.png" for name, count in counts.items() for i in range(count)]
    return str(images_in(tmp_path, *names))


def test_a_folder_of_classes(tmp_path, caplog):
    root = folder_of(tmp_path, cat=9, dog=7, owl=1)
    with caplog.at_level("INFO", "a2mim"):
        images = opened(monitor_dir=root, monitor_samples=12)
    assert images.pixel_values.shape == (12, 1, 32, 32)
    assert images.pixel_values.dtype == torch.uint8
    assert images.labels.tolist() == [0] * 6 + [1] * 6
    assert (len(images), images.total, images.classes) == (12, 17, 2)
    assert caplog.messages[-1] == f"monitor: 12 of 17 images, 2 classes: monitor_dir {root}"
    greys = images.pixel_values.float().mean((1, 2, 3)).round().int().tolist()
    assert len(set(greys)) == 12
    assert greys != list(range(6)) + list(range(9, 15))  # drawn, not the first ones
    again = opened(monitor_dir=root, monitor_samples=12)
    assert torch.equal(again.pixel_values, images.pixel_values)
    assert again.fingerprint == images.fingerprint != opened(monitor_dir=root).fingerprint
    image = next(Path(root, "owl").iterdir())
    image.write_bytes(image.read_bytes() + b" ")
    assert again.files == images.files != opened(monitor_dir=root, monitor_samples=12).files


@pytest.mark.parametrize("counts", [{"cat": 5}, {"cat": 1, "dog": 1}, {"": 4}])
def test_a_folder_without_classes_to_tell_apart(tmp_path, caplog, counts):
    with caplog.at_level("INFO", "a2mim"):
        images = opened(
            monitor_dir=folder_of(tmp_path, **counts)
            if "" not in counts
            else str(images_in(tmp_path, *(f"{i}.png" for i in range(4))))
        )
    assert images.labels is None
    assert images.classes == 0
    assert len(images) == sum(counts.values())
    assert any("monitor_dir: the images are used without labels, as " in line for line in caplog.messages)


def test_without_flags_what_is_evaluated_on(caplog):
    with caplog.at_level("INFO", "a2mim"):
        images = opened()
    assert (len(images), images.total, images.labels) == (20, 20, None)
    assert (
        "20 of 20 images, without labels: those that the model is evaluated on (the training data itself)"
        in (caplog.messages[-1])
    )
    # As a sample is, but for the mask.
    rows = load_images(split="test").select(range(20))
    expected = torch.stack([WHOLE(image)["pixel_values"] for image in rows["image"]])
    assert torch.equal(WHOLE.normalize(images.pixel_values), expected)


def test_datasets_and_their_splits(tmp_path, caplog):
    rows = load_images(split="test").select(range(60))
    for split, part in (("train", range(30)), ("test", range(30, 60))):
        (tmp_path / "both").mkdir(exist_ok=True)
        rows.select(part).to_parquet(tmp_path / "both" / f"{split}-00000-of-00001.parquet")
    rows.select(range(5)).remove_columns("label").to_parquet(tmp_path / "plain.parquet")
    with caplog.at_level("INFO", "a2mim"):
        found = opened(monitor_dataset=str(tmp_path / "both"))
        train = opened(monitor_dataset=str(tmp_path / "both"), monitor_split="train")
        plain = opened(monitor_dataset=str(tmp_path / "plain.parquet"))
    lines = [line for line in caplog.messages if line.startswith("monitor_dataset: ")]
    assert [line.partition(" of ")[0] for line in lines[:3]] == [
        f"monitor_dataset: split {s}" for s in ("test", "train", "train")
    ]
    assert "no column of classes" in lines[3]
    assert found.total == train.total == 30
    assert found.fingerprint != train.fingerprint or not torch.equal(found.pixel_values[:9], train.pixel_values[:9])
    assert plain.labels is None
    labels = np.array(rows["label"][30:])
    assert np.bincount(found.labels, minlength=10).tolist() == [n * (n > 1) for n in np.bincount(labels, minlength=10)]


def test_rows_without_a_label_are_not_drawn():
    rows = load_images(split="test").select(range(40))
    labels = [label if i % 2 else (None if i % 4 else -1) for i, label in enumerate(rows["label"])]
    rows = rows.remove_columns("label").add_column("label", labels, feature=ClassLabel(num_classes=10))
    images = monitor_images(rows, WHOLE)
    counts = np.bincount([label for label in labels if label not in (None, -1)], minlength=10)
    assert np.bincount(images.labels, minlength=10).tolist() == (counts * (counts > 1)).tolist()
    hidden = rows.remove_columns("label").add_column("label", [-1] * 40, feature=ClassLabel(num_classes=10))
    assert monitor_images(hidden, WHOLE).labels is None


def test_classes_get_as_many_images():
    labels = np.repeat([0, 1, 2, 3, 4], [100, 3, 50, 1, 20])
    for count in (30, 31, 32, 60):
        rows = balanced_rows(labels, count)
        assert len(set(rows.tolist())) == len(rows) == count
        assert (np.diff(rows) > 0).all()
        counts = np.bincount(labels[rows], minlength=5)
        assert counts[[1, 3]].tolist() == [3, 0]  # all; and one that nothing could tell
        assert np.ptp(counts[[0, 2, 4]]) <= 1
    assert len(balanced_rows(labels, 1000)) == 173
    many = np.arange(6000) % 1000  # six images of each
    rows = balanced_rows(many, 512)
    assert set(np.bincount(many[rows])) == {0, 6}
    assert len(rows) == 85 * 6
    assert balanced_rows(many, 512).tolist() == rows.tolist()
    assert np.bincount(many[balanced_rows(many, 4)]).max() == 2


def test_broken_images_are_skipped(tmp_path, caplog):
    root = folder_of(tmp_path, cat=4, dog=4)
    for name in ("cat/001.png", "dog/002.png"):
        (tmp_path / "images" / name).write_bytes(b"broken")
    images = opened(monitor_dir=root)
    assert (len(images), images.labels.tolist()) == (6, [0, 0, 0, 1, 1, 1])
    assert sum("; skipped" in line for line in caplog.messages) == 2
    assert "monitor_dir: 2 of the 8 images drawn are broken" in caplog.messages
    for path in (tmp_path / "images" / "dog").iterdir():
        path.write_bytes(b"broken")
    images = opened(monitor_dir=root)
    assert (len(images), images.labels) == (3, None)
    for path in (tmp_path / "images" / "cat").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="^monitor_dir: 0 of 8 images can be used, but it takes 2; name others"):
        opened(monitor_dir=root)


def test_nothing_is_drawn_from_the_generators(tmp_path):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    opened(monitor_dir=folder_of(tmp_path, cat=4, dog=4))
    opened()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_the_column_of_images_is_found():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 30), dtype=np.uint8)
    rows = Dataset.from_dict({"picture": [Pillow.fromarray(p) for p in pixels]}).cast_column("picture", Image())
    assert monitor_images(rows, WHOLE).pixel_values.shape == (4, 1, 32, 32)


def test_off_and_a_single_image(caplog):
    assert opened(monitor_steps="0") is None
    args = PreTrainingDataArguments(monitor_steps=0, monitor_dir="nowhere")
    assert open_monitor(args) is None
    one = ImageSamples(load_images(split="test").select([0]), WHOLE, "image")
    with caplog.at_level("INFO", "a2mim"):
        assert load_monitor(PreTrainingDataArguments(), None, one, None, WHOLE) is None
    assert "not measured while it learns, as there is but one image" in caplog.text


def test_mistakes(tmp_path):
    for arguments, message in (
        ({"monitor_dir": "a", "monitor_dataset": "b"}, "^monitor_dataset: give either --monitor_dataset or"),
        ({"monitor_samples": 1}, "^monitor_samples: must be at least 2, got 1"),
        ({"monitor_steps": "-3"}, "^monitor_steps: expected a number of steps, 0 for none, or auto, got '-3'"),
        ({"monitor_steps": "some"}, "^monitor_steps: expected a number of steps"),
        ({"monitor_dir": str(tmp_path / "nowhere")}, "^monitor_dir: .*/nowhere: no such folder; name one with"),
        ({"monitor_dir": str(tmp_path)}, "^monitor_dir: .*: no images found"),
        ({"monitor_dataset": str(tmp_path / "nowhere")}, "^monitor_dataset: .*/nowhere: no such file or folder"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(**arguments)
    with pytest.raises(ValueError, match="^monitor: 1 of 1 images can be used"):
        monitor_images(load_images(split="test").select([0]), WHOLE)
    with pytest.raises(ValueError, match="^monitor: image_column_name: the dataset has no column of images"):
        monitor_images(Dataset.from_dict({"text": ["a", "b"]}), WHOLE)
    many = A2MIMConfig(architecture="test_convnext", image_size=32, num_channels=5, mask_patch_size=8, mask_site=-3)
    with pytest.raises(ValueError, match="^monitor: row .*num_channels: "):
        monitor_images(load_images(split="test").select(range(3)), PreTrainTransform(many, train=False))
    large = PreTrainTransform(WHOLE.config, train=False, crop_pixels=4096)
    with pytest.raises(ValueError, match="^monitor: 0 of 3 images .* pixels, which --crop_pixels 4096 does not fit"):
        monitor_images(load_images(split="test").select(range(3)), large)
    folder_of(tmp_path, cat=1)
    with pytest.raises(ValueError, match="^monitor_dir: 1 of 1 images can be used, but it takes 2"):
        opened(monitor_dir=str(tmp_path / "images"))


def test_what_no_flag_named_is_not_blamed_on_the_gauge(tmp_path):
    """But on what names the images to evaluate on, or on what none of them fits."""
    rows = load_images(split="test").select(range(3))
    large = PreTrainTransform(WHOLE.config, train=False, crop_pixels=4096)
    broken = rows.cast_column("image", Image(decode=False)).map(
        lambda row: {"image": {"bytes": b"none", "path": None}}, features=rows.features
    )
    for dataset, transform, given, evaluated, message in (
        (rows, large, {}, "of it", "^crop_pixels: 0 of 3 images .* give another --crop_pixels .row 0 .* does not fit"),
        (rows, large, {"validation_dir": "named"}, None, "^crop_pixels: 0 of 3 images"),
        (broken, WHOLE, {"train_dir": ["named"]}, "of it", "^train_dir: 0 of 3 images .* name others .row 0 "),
        (broken, WHOLE, {"validation_dir": "named"}, None, "^validation_dir: 0 of 3 images"),
    ):
        evaluation = ImageSamples(dataset, transform, "image")
        with pytest.raises(ValueError, match=message):
            load_monitor(PreTrainingDataArguments(**given), None, evaluation, evaluated, transform)
