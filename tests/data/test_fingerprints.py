"""What tells the images of one run from those of another."""

import os

import pytest

from modeling_a2mim.data.fingerprints import changed_after, files_of, fingerprint_of_files, fingerprint_of_images
from modeling_a2mim.data.held_out import sample_of
from modeling_a2mim.data.pages import PagesSource
from modeling_a2mim.data.sources import MixedSource
from modeling_a2mim.inference.images import open_every_image

from ..image_files import encoded, write_images, write_parquet, write_tars


@pytest.fixture
def sources(tmp_path):
    write_images(tmp_path / "images", ["a.png", "b.png", "c.png"])
    write_tars(tmp_path / "tars", shards=2, rows=3)
    write_parquet(tmp_path / "parquet" / "0.parquet", 3)
    return {name: open_every_image([tmp_path / name]) for name in ("images", "tars", "parquet")}


def names(source):
    return [os.path.basename(file) for file in files_of(source)]


def test_files_of_every_kind_of_source(sources):
    images, tars, parquet = sources.values()
    assert names(images) == ["a.png", "b.png", "c.png"]
    assert names(tars) == ["train-0.tar", "train-1.tar"]
    assert names(parquet) == ["0.parquet"]
    assert names(MixedSource([images, tars])) == ["a.png", "b.png", "c.png", "train-0.tar", "train-1.tar"]
    assert names(PagesSource(tars, [1] * len(tars))) == ["train-0.tar", "train-1.tar"]
    assert len(names(sample_of(images, 2))) == 2
    assert names(sample_of(parquet, 1)) == ["0.parquet"]


@pytest.mark.parametrize("name", ["images", "tars", "parquet"])
def test_times_and_sizes(sources, name, tmp_path):
    source = sources[name]
    file = files_of(source)[0]
    before = [fingerprint_of_images(source), fingerprint_of_images(source, times=True), fingerprint_of_files(source)]
    now = max(os.stat(each).st_mtime for each in files_of(source))
    assert changed_after(source, now) == []
    os.utime(file, (now + 10, now + 10))
    assert changed_after(source, now + 5) == [file]
    after = [fingerprint_of_images(source), fingerprint_of_images(source, times=True), fingerprint_of_files(source)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]
    with open(file, "ab") as grown:
        grown.write(encoded(0))
    assert fingerprint_of_images(source) != before[0]
    assert fingerprint_of_files(source) != before[2]
