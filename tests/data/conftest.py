"""The files that tests of reading share."""

import functools

import pytest

from modeling_a2mim.data import reading

from ..image_files import make_images, serving, write_shards, write_tars


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Retries follow at once."""
    monkeypatch.setattr(reading, "FIRST_WAIT", 0.0)


@pytest.fixture
def parquet(tmp_path):
    """A folder of parquet shards."""
    return write_shards(tmp_path / "parquet")


@pytest.fixture
def tars(tmp_path):
    """A folder of WebDataset shards."""
    return write_tars(tmp_path / "tars")


@pytest.fixture
def server(tmp_path):
    """The URL of a server of `tmp_path`."""
    with serving(tmp_path) as url:
        yield url


@pytest.fixture
def make(tmp_path):
    """Makes images of the names that it is given (`make_images`)."""
    return functools.partial(make_images, tmp_path)
