"""Files are read over HTTP as on this machine; failures are tried again and named."""

import socket

import datasets
import pytest
from torch.utils.data import DataLoader

from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.reading import ReadError, relative_name, with_retries
from modeling_a2mim.data.shards import ParquetSource
from modeling_a2mim.data.sources import DatasetSource

from ..image_files import Ranges, check_rows, encoded, number_of


def test_remote_names():
    url = "https://host/secret/images/cats/1.png"
    assert relative_name(url, ["/data"]) == "cats/1.png"
    assert relative_name("/data/cats/1.png", ["/dat", "/data"]) == "cats/1.png"
    assert relative_name("/data/x/cats/1.png", ["/elsewhere"]) == "cats/1.png"


def test_retries(caplog):
    attempts = []

    def flaky():
        attempts.append(1)
        if len(attempts) < 3:
            raise TimeoutError("slow")
        return "data"

    assert with_retries(flaky, "https://host/shard", 5) == "data"
    assert [r.getMessage() for r in caplog.records] == [
        f"https://host/shard: TimeoutError: slow; trying again ({i} of 5)" for i in (1, 2)
    ]

    def broken():
        attempts.append(1)
        raise RuntimeError("no")

    attempts.clear()
    with pytest.raises(ReadError, match=r"^https://host/shard: cannot be read \(attempt 3\): RuntimeError: no"):
        with_retries(broken, "https://host/shard", 2)
    assert len(attempts) == 3
    with pytest.raises(ReadError, match=r"attempt 1\)"):  # content of a local file does not change by waiting
        with_retries(broken, "/local/shard", 2)


def test_reading_over_http(server, parquet, tars):
    check_rows(load_images(f"{server}/parquet/train-0.parquet", streaming=True), 40, label="label")
    check_rows(load_images(f"{server}/tars/train-0.tar", streaming=True), 40, label="cls")


def test_workers_read_over_http(server, parquet):
    """File systems have threads, which do not survive a fork."""
    data = ImageSamples(load_images(f"{server}/parquet/train-0.parquet", streaming=True), as_number, "image")
    batches = DataLoader(data, 8, num_workers=2, collate_fn=list)
    assert [sample["number"] for batch in batches for sample in batch] == list(range(40))


def as_number(value):
    return {"number": number_of(value)}


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy_is_asked_again(server, parquet, status):
    Ranges.failures.extend([status] * 2)
    source = ParquetSource("busy", [f"{server}/parquet/train-0.parquet"], retries=3).select("image")
    Ranges.failures.extend([status] * 2)
    assert number_of(source.read([3])[0][0]) == 3
    Ranges.failures.extend([status] * 50)
    with pytest.raises(ReadError, match=rf"train-0\.parquet, row group 1: cannot be read \(attempt 4\): .*{status}"):
        source.read([8])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_outage_of_a_server_of_images_is_waited_for(server, tmp_path, status):
    """Of which fsspec says that there is no such file."""
    (tmp_path / "1.png").write_bytes(encoded(1))
    rows = datasets.Dataset.from_dict({"image": [f"{server}/1.png"]})
    source = DatasetSource(rows, retries=3).select("image")
    Ranges.failures.extend([status] * 3)
    assert number_of(source.read([0])[0][0]) == 1
    Ranges.failures.extend([status] * 50)
    with pytest.raises(ReadError, match=rf"/1\.png: cannot be read \(attempt 4\): ClientResponseError: {status}"):
        source.read([0])


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_image_that_a_server_does_not_give_is_broken(server, tmp_path, status):
    (tmp_path / "1.png").write_bytes(encoded(1))
    source = DatasetSource(datasets.Dataset.from_dict({"image": [f"{server}/1.png"]}), retries=3).select("image")
    Ranges.failures.append(status)
    image = source.read([0])[0][0]
    assert isinstance(image, BrokenImage)
    assert str(status) in str(image)
    assert not Ranges.failures  # asked once


def test_a_server_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/1.png"
    with pytest.raises(ReadError, match=r"/1\.png: cannot be read \(attempt 2\): ClientConnectorError"):
        DatasetSource(datasets.Dataset.from_dict({"image": [url]}), retries=1).select("image").read([0])
    (image, _) = DatasetSource(datasets.Dataset.from_dict({"image": ["http://:x/1.png"]})).select("image").read([0])[0]
    assert isinstance(image, BrokenImage)  # no URL
