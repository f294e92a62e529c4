"""Rows of parquet shards and tars, read a chunk at a time; shards that are damaged."""

import pytest

from modeling_a2mim.data.formats.tars import TarSource
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.reading import ReadError
from modeling_a2mim.data.shards import ParquetSource

from ..image_files import FEATURES, check_rows, number_of


def test_parquet(parquet):
    source = load_images(parquet, streaming=True)
    assert isinstance(source, ParquetSource)
    assert source.chunks.tolist() == [7, 7, 7, 7, 7, 5] * 3
    assert source.features == FEATURES
    assert 50 < source.row_bytes < 200
    check_rows(source, label="label")
    assert source.describe(41).endswith("train-1.parquet, row group 0")
    assert source.describe(41).startswith("row 1 of ")
    check_rows(load_images(str(parquet / "*.parquet"), streaming=True))
    assert len(load_images(parquet / "train-1.parquet", streaming=True)) == 40


def test_only_the_chunks_asked_for_are_read_and_few_kept(parquet, monkeypatch):
    source = load_images(parquet, streaming=True).select("image")
    opened, read = [], ParquetSource._read_chunk
    monkeypatch.setattr(ParquetSource, "_read_chunk", lambda self, chunk: opened.append(chunk) or read(self, chunk))
    source.keep_chunks(2)
    source.read([35, 36, 40])
    assert opened == [5, 6]
    source.read([36, 41])
    assert opened == [5, 6]
    source.read([0])
    source.read([36])
    assert opened == [5, 6, 0, 5]
    assert len(source._chunks) == 2


@pytest.mark.parametrize("harm", ["truncated", "missing", "emptied", "overwritten"])
def test_damaged_shards_are_named_early(parquet, tars, harm):
    for path in (parquet / "train-1.parquet", tars / "train-1.tar"):
        data = path.read_bytes()
        files = sorted(map(str, path.parent.iterdir()))
        if harm == "missing":
            path.unlink()
        else:
            half = len(data) // 2
            new = {"truncated": data[:half], "emptied": b"", "overwritten": data[:half] + b"x" * 1000}[harm]
            path.write_bytes(new)
        kind = ParquetSource if path.suffix == ".parquet" else TarSource
        with pytest.raises(ReadError, match=rf"train-1{path.suffix}: cannot be read"):
            kind("shards", files, retries=1)


def test_a_row_group_that_cannot_be_read_is_named(parquet):
    source = load_images(parquet, streaming=True, retries=1).select("image")
    path = parquet / "train-1.parquet"
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(ReadError, match=r"train-1\.parquet, row group 0: cannot be read"):
        source.read([40])
    assert number_of(source.read([0])[0][0]) == 0


def test_a_missing_remote_shard_is_named(server, parquet):
    with pytest.raises(ReadError, match=r"train-9\.parquet: cannot be read \(attempt 2\): FileNotFoundError"):
        ParquetSource("gone", [f"{server}/parquet/train-9.parquet"], retries=1)
