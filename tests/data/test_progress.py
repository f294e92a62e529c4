"""What a run skipped, and where it is in its data: any number of interruptions changes nothing."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import SkipBatchSampler
from torch.utils.data import DataLoader

from modeling_a2mim.data.dataset import REPORT, ImageSamples
from modeling_a2mim.data.progress import SkippedImages, TrainingData
from modeling_a2mim.data.shards import ParquetSource
from modeling_a2mim.data.sources import MixedSource


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
    """In any epoch; and at its end the counts of all processes are checked."""
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
    """An epoch and the beginning of the next."""
    return go_on(numbered, None, COUNT // 16 + 40)[0]


@pytest.mark.few(2)
@pytest.mark.parametrize(("world", "workers"), [(1, 0), pytest.param(1, 4, marks=pytest.mark.slow), (2, 1)])
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


@pytest.mark.ci
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


def test_the_tenth_epoch(numbered):
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
