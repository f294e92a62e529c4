"""Samples that depend on nothing but seed, epoch and row; broken images."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.data.dataset import NEAR, REPORT, ImageSamples, collate, rows_after
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.progress import TrainingData
from modeling_a2mim.data.transforms import PreTrainTransform


def config(**kwargs):
    return A2MIMConfig(architecture="test_resnet", image_size=32, mask_patch_size=8, **kwargs)


def samples(dataset, seed=0, augment=None, **kwargs):
    return ImageSamples(dataset, PreTrainTransform(config(), **(augment or {})), "image", seed=seed, **kwargs)


EVERYTHING = {"vflip": 0.5, "rotate90": True, "color_jitter": 0.4, "grayscale": 0.3}


@pytest.mark.parametrize("augment", [None, EVERYTHING])
def test_samples_depend_on_seed_epoch_and_row_alone(folder, augment):
    dataset = load_images(folder, every_file=True)
    data = samples(dataset, augment=augment)
    torch.manual_seed(1)
    first = data[(2, 5)]
    torch.manual_seed(2)
    for _ in range(3):
        data[(2, 6)]
    again = data.__getitems__([(2, 4), (2, 5)])[1]
    assert torch.equal(first["pixel_values"], data.transform.normalize(again["pixel_values"]))
    assert torch.equal(first["bool_masked_pos"], again["bool_masked_pos"])
    others = [data[(3, 5)], data[(2, 6)], samples(dataset, 1, augment)[(2, 5)]]
    assert not any(torch.equal(first["pixel_values"], other["pixel_values"]) for other in others)
    assert not all(torch.equal(first["bool_masked_pos"], other["bool_masked_pos"]) for other in others)
    assert first["pixel_values"].shape == (3, 32, 32)
    assert first["bool_masked_pos"].shape == (4, 4)
    assert first["bool_masked_pos"].sum() == config().num_masked


@pytest.mark.parametrize("augment", [None, EVERYTHING])
def test_batches_do_not_depend_on_workers(folder, augment):
    data = samples(load_images(folder, every_file=True), augment=augment)
    batches = []
    for workers in (0, 2):
        training = TrainingData(data, 4, workers=workers)
        training.begin(3)
        loader = DataLoader(data, batch_sampler=training.batches, num_workers=workers, collate_fn=collate)
        batches.append(list(loader))
    assert len(batches[0]) == 3
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["bool_masked_pos"], other["bool_masked_pos"])


def test_bytes_are_collated_as_they_lie(folder):
    data = samples(load_images(folder, every_file=True))
    given = data.__getitems__([(0, row) for row in range(4)])
    expected = default_collate([{k: v for k, v in sample.items() if k != REPORT} for sample in given])
    batch = collate(given)
    assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    assert {name for name in batch if name != REPORT} == set(expected)
    for name, values in expected.items():
        assert torch.equal(batch[name], values)
    normalized = data.transform.normalize(batch["pixel_values"])
    assert normalized.is_contiguous()  # so that the encoder computes what it always did
    assert torch.equal(normalized, data.transform.normalize(expected["pixel_values"]))


def test_other_collators_see_channels_first(folder):
    given = samples(load_images(folder, every_file=True)).__getitems__([(0, 0), (0, 1)])
    batch = collate(given, lambda found: {"shapes": [sample["pixel_values"].shape for sample in found]})
    assert batch["shapes"] == [(3, 32, 32)] * 2


def test_labels(folder):
    data = ImageSamples(load_images(folder, every_file=True), PreTrainTransform(config()), "image", "label")
    found = [sample["labels"].item() for sample in data.first(12)]
    assert sorted(found) == [0] * 6 + [1] * 6
    assert len(data.first(50)) == 12


# Broken images.


@pytest.fixture
def broken(folder):
    """Rows that are broken: an image that is none, an empty one, one that is gone."""
    dataset = load_images(folder, every_file=True)
    rows = {}
    for name, data in (("test_1.png", b"not a png"), ("test_4.png", b"")):
        path = next(folder.rglob(name))
        path.write_bytes(data)
        rows[name] = None
    gone = next(folder.rglob("test_7.png"))
    gone.unlink()
    names = [row["path"].rsplit("/", 1)[1] for row in dataset.data.column("image").to_pylist()]
    return dataset, {names.index(name) for name in (*rows, "test_7.png")}


def test_a_broken_image_is_named(broken):
    dataset, rows = broken
    for row in rows:
        with pytest.raises(BrokenImage, match=rf"^row {row} of the dataset, .*/test_[147]\.png: "):
            samples(dataset)[row]


def test_broken_images_are_left_out_and_reported(broken):
    dataset, _ = broken
    data = samples(dataset, max_skipped_ratio=0.5)
    training = TrainingData(data, 4)
    training.begin(0)
    batches = list(DataLoader(data, batch_sampler=training.batches, collate_fn=collate))
    assert sum(len(batch["pixel_values"]) for batch in batches) == 9
    assert sum(batch[REPORT]["seen"]["the dataset"] for batch in batches) == 12
    assert sum(len(batch[REPORT]["skipped"]) for batch in batches) == 3
    for batch in batches:
        training.trained(batch[REPORT])
    assert training.state()["skipped"] == {"the dataset": 3}
    again = TrainingData(data, 4, resumed=json.loads(json.dumps(training.state())))
    assert again.skipped.skipped.total() == 3


def test_no_batch_is_empty(broken):
    dataset, rows = broken
    data = samples(dataset)
    for row in rows:
        given = data.__getitems__([(0, row)])
        good = next(i % 12 for i in range(row + 1, row + 13) if i % 12 not in rows)
        assert torch.equal(data.transform.normalize(given[0]["pixel_values"]), data[(0, good)]["pixel_values"])
        assert len(given[0][REPORT]["skipped"]) == 1
    message = "^max_skipped_ratio: of 3 images 2 were tried and all are broken, the last one: row "
    with pytest.raises(ValueError, match=message):
        samples(dataset.select(sorted(rows))).__getitems__([(0, 0)])
    alone = samples(dataset.select(sorted(rows)[:1]))
    for key in (0, (0, 0)):
        with pytest.raises(ValueError, match="^max_skipped_ratio: of 1 images 1 were tried .*: row 0"):
            alone.__getitems__([key])


@pytest.mark.parametrize(
    ("argument", "options"), [("crop_pixels", {"crop_pixels": 4096}), ("max_image_pixels", {"max_pixels": 9})]
)
def test_an_argument_that_no_image_fits_is_named(folder, broken, argument, options):
    dataset, rows = broken
    good = [row for row in range(len(dataset)) if row not in rows]
    with pytest.raises(ValueError, match=f"^{argument}: of 9 images 8 were tried and none can be used, .* pixels"):
        samples(dataset.select(good), augment=options).__getitems__([(0, 0)])
    with pytest.raises(ValueError, match="^max_skipped_ratio: of 12 images 10 were tried and all are broken"):
        samples(dataset, augment=options).__getitems__([(0, 0)])


def test_no_batch_of_several_becomes_one_of_a_single_image(broken):
    """Of which BatchNorm could not learn."""
    dataset, rows = broken
    good = sorted(set(range(12)) - rows)
    given = samples(dataset).__getitems__([(0, row) for row in (*rows, good[0])])
    assert len(given) == 2
    assert len(given[0][REPORT]["skipped"]) == 3


def test_broken_images_that_lie_together_are_soon_left():
    """1,010 of 21,310 at the beginning: 4.7%, which is less than 5%."""
    count, tried = 21_310, []
    for row in range(0, 1010, 101):
        found = next(i for i, other in enumerate(rows_after(row, count)) if other >= 1010)
        tried.append(found)
    assert max(tried) <= NEAR + 3
    for size in (2, 9, 12, 100):
        assert sorted(rows_after(1, size)) == [0, *range(2, size)]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_knows_for_which_images_others_stand_in(broken, caplog, workers):
    dataset, _ = broken
    data = samples(dataset)
    given = list(DataLoader(data, 1, num_workers=workers))
    assert len(given) == len(data) == 12
    assert not any(REPORT in sample for sample in given)
    assert len(data.broken) == 3
    good = [row for row in range(12) if row not in data.broken]
    kept = data.without(data.broken)
    assert "3 of 12 images cannot be used and are left out, the first: " in caplog.text
    assert (len(kept), kept.left_out, kept.broken) == (9, 3, [])
    assert [kept.name(row) for row in range(9)] == [data.name(row) for row in good]
    with pytest.raises(ValueError, match=r"^max_skipped_ratio: 3 of the 12 images of .* are broken, more than 0.05"):
        kept.check_left_out()
    samples(dataset, max_skipped_ratio=0.25).without(data.broken).check_left_out()


def test_other_errors_stop_and_name_the_row(folder):
    data = ImageSamples(load_images(folder, every_file=True), PreTrainTransform(config(num_channels=5)), "image")
    with pytest.raises(ValueError, match=r"^row 0 of the dataset, .*png: num_channels: 5, but the dataset holds RGB"):
        data.__getitems__([(0, 0)])
