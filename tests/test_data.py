"""Samples that depend on nothing but seed, pass and row; broken images; and where a run is in its data."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import SkipBatchSampler
from torch.utils.data import DataLoader

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.data.dataset import NEAR, REPORT, ImageSamples, collate, rows_after
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.progress import SkippedImages, TrainingData
from modeling_a2mim.data.shards import ParquetSource
from modeling_a2mim.data.sources import MixedSource
from modeling_a2mim.data.transforms import PreTrainTransform


def config(**kwargs):
    return A2MIMConfig(architecture="test_resnet", image_size=32, mask_patch_size=8, **kwargs)


def samples(dataset, seed=0, augment=None, **kwargs):
    return ImageSamples(dataset, PreTrainTransform(config(), **(augment or {})), "image", seed=seed, **kwargs)


EVERYTHING = {"vflip": 0.5, "rotate90": True, "color_jitter": 0.4, "grayscale": 0.3}


@pytest.mark.parametrize("augment", [None, EVERYTHING])
def test_samples_depend_on_seed_pass_and_row_alone(folder, augment):
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


def test_evaluation_gets_as_many_samples_as_it_asks_for(broken, caplog):
    dataset, _ = broken
    with caplog.at_level(logging.WARNING, "a2mim"):
        given = samples(dataset).__getitems__(list(range(12)))
    assert len(given) == 12
    assert not any(REPORT in sample for sample in given)
    assert sum("replaced by the next image" in record.getMessage() for record in caplog.records) == 3


def test_other_errors_stop_and_name_the_row(folder):
    data = ImageSamples(load_images(folder, every_file=True), PreTrainTransform(config(num_channels=5)), "image")
    with pytest.raises(ValueError, match=r"^row 0 of the dataset, .*png: num_channels: 5, but the dataset holds RGB"):
        data.__getitems__([(0, 0)])


def report(seen, skipped, name="a"):
    return {"seen": {name: seen}, "skipped": [(name, f"row {i}: bad") for i in range(skipped)]}


def test_too_many_broken_images_stop_a_run(caplog):
    counts = SkippedImages(0.1, {"a": 200, "b": 10_000})
    with caplog.at_level(logging.WARNING, "a2mim"):
        counts.add(report(20, 20))  # all of them, but no more than may be
    assert sum("row " in record.getMessage() for record in caplog.records) == 5  # the first few
    assert "20 of the first 20 images read from a are broken; the run stops if it is more than 0.1 of" in caplog.text
    counts.add(report(1000, 0, "b"))
    message = "^max_skipped_ratio: 21 of the 21 images read so far from a, which has 200, are broken, more than 0.1 of"
    with pytest.raises(ValueError, match=message):  # not hidden by the other source
        counts.add(report(1, 1))


def test_the_order_of_broken_images_does_not_matter():
    """In any pass; and at its end the counts of all processes are judged."""
    for first in (True, False):
        counts = SkippedImages(0.1, {"a": 100})
        for _ in range(3):
            for part in (report(10, 10), report(90, 0)) if first else (report(90, 0), report(10, 10)):
                counts.add(part)
            counts.check(counts.seen, counts.skipped)
    several = [SkippedImages(0.1, {"a": 100}, world=2) for _ in range(2)]
    several[0].add(report(50, 8))
    several[1].add(report(50, 2))
    totals = [several[0].seen + several[1].seen, several[0].skipped + several[1].skipped]
    several[0].check(*totals)
    several[1].add(report(0, 1))
    with pytest.raises(ValueError, match="11 of the 100 images read so far from a, which has 100, are broken"):
        several[0].check(totals[0], several[0].skipped + several[1].skipped)


# Where a run is.


COUNT = 10_000


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A source of 10,000 rows in 7 shards, whose images are their numbers."""
    folder = tmp_path_factory.mktemp("numbered")
    for shard, numbers in enumerate(np.array_split(np.arange(COUNT), 7)):
        table = pa.table({"image": pa.array([str(n).encode() for n in numbers])})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=64)
    return ParquetSource("numbers", sorted(map(str, folder.iterdir()))).select("image")


def as_number(value):
    return {"number": torch.tensor(int(value["bytes"])), "random": torch.rand(1)}


def numbers_of(batch):
    return batch["number"].tolist()


def go_on(source, record, steps, world=1, batch=16, workers=0, accumulated=1, seed=0):
    """The numbers of each batch, over all processes, of so many batches after `record`; and the record then."""
    data = ImageSamples(source, as_number, seed=seed, shuffle_size=1000)
    training = [TrainingData(data, batch, rank, world, accumulated, False, workers, record) for rank in range(world)]
    given, number = [], training[0].batches.resumed[0]
    while len(given) < steps:
        loaders = []
        for part in training:
            part.begin(number)
            skipped = part.batches.skipped if number == part.batches.resumed[0] else 0
            keys = SkipBatchSampler(part.batches, skipped)  # as Trainer does
            loaders.append(iter(DataLoader(data, batch_sampler=keys, num_workers=workers, collate_fn=kept)))
        for batches in zip(*loaders, strict=True):
            for part, found in zip(training, batches, strict=True):
                part.trained(found[REPORT])
            given.append([(number, *pair) for found in batches for pair in found["pairs"]])
            if len(given) == steps:
                break
        number += 1
    states = [part.state() for part in training]
    assert all(state["position"] == states[0]["position"] for state in states)
    return given, json.loads(json.dumps(states[0]))


def kept(batch):
    report = batch[0].pop(REPORT)
    return {REPORT: report, "pairs": [(int(s["number"]), float(s["random"])) for s in batch]}


@pytest.fixture(scope="module")
def whole(numbered):
    """A pass and the beginning of the next."""
    return go_on(numbered, None, COUNT // 16 + 40)[0]


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 4), (2, 1)])
def test_ten_thousand_ids_interrupted_at_ten_points(numbered, whole, world, workers):
    """0 lost, 0 repeated, and the same batches as without the interruptions."""
    cuts = sorted(np.random.default_rng(world).choice(np.arange(1, len(whole)), 10, replace=False).tolist())
    given, record = [], None
    for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        part, record = go_on(numbered, record, last - first, world, 16 // world, workers)
        given += part
    assert given == whole
    assert sorted(n for batch in given for number, n, _ in batch if number == 0) == list(range(COUNT))
    assert len({n for batch in given for number, n, _ in batch if number == 1}) == 40 * 16


def test_other_processes_workers_and_batches_still_give_every_id_once(numbered):
    given, record = [], None
    ways = [(1, 16, 0, 1), (2, 16, 0, 1), (1, 48, 2, 1), (2, 8, 1, 4), (4, 16, 0, 1), (3, 10, 0, 2), (1, 16, 0, 1)]
    for world, batch, workers, accumulated in ways * 2:
        part, record = go_on(numbered, record, 24 * accumulated, world, batch, workers, accumulated)
        given += part
    pairs = [(number, n) for found in given for number, n, _ in found]
    assert len(pairs) > COUNT
    assert len(set(pairs)) == len(pairs)
    assert {n for number, n in pairs if number == 0} == set(range(COUNT))


def test_the_order_does_not_depend_on_processes_or_workers(numbered):
    alone, _ = go_on(numbered, None, 30, 1, 32)
    for world, batch, workers in ((2, 16, 0), (4, 8, 1), (1, 32, 2)):
        assert go_on(numbered, None, 30, world, batch, workers)[0] == alone


def test_the_tenth_pass(numbered):
    few = numbered.take(100)
    whole, _ = go_on(few, None, 7 * 12)
    _, record = go_on(few, None, 66)
    assert record["position"] == [9, 48]
    assert go_on(few, record, 18)[0] == whole[66:]


def test_going_on_reads_nothing_that_was_seen(numbered, monkeypatch):
    _, record = go_on(numbered, None, 500)
    opened, read = set(), ParquetSource._read_chunk
    monkeypatch.setattr(ParquetSource, "_read_chunk", lambda self, chunk: opened.add(chunk) or read(self, chunk))
    given, _ = go_on(numbered.select("image"), record, 20)
    needed = {int(np.searchsorted(np.cumsum(numbered.chunks), n, side="right")) for b in given for _, n, _ in b}
    assert opened == needed


def test_mixes_go_on_exactly(numbered):
    mix = MixedSource([numbered.take(300), numbered.take(100)], weights=[1, 3])
    whole, _ = go_on(mix, None, 60)
    part, record = go_on(mix, None, 27)
    assert part + go_on(mix, record, 33, 2, 8)[0] == whole
    with pytest.raises(ValueError, match=r"^dataset_weights: the checkpoint was made with \[250, 750\]"):
        TrainingData(ImageSamples(MixedSource(mix.sources, [1, 1]), as_number), 16, resumed=record)


def test_changed_data_is_refused(numbered, caplog):
    _, record = go_on(numbered, None, 3)
    with pytest.raises(ValueError, match="^resume_from_checkpoint: the training data has changed .* 10000-.* 9000-"):
        TrainingData(ImageSamples(numbered.take(9000), as_number), 16, resumed=record)
    with pytest.raises(ValueError, match="^data_seed: the checkpoint was made with 0, this run has 1"):
        TrainingData(ImageSamples(numbered, as_number, seed=1), 16, resumed=record)
    with caplog.at_level(logging.WARNING, "a2mim"):
        TrainingData(ImageSamples(numbered, as_number), 32, resumed=record)
    assert "made with 16 images in a step, this run has 32" in caplog.text
