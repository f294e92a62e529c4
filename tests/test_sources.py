"""Reading rows by number from parquet, WebDataset tars, Arrow, files and over HTTP; failures are retried and named."""

import functools
import http.server
import io
import socket
import tarfile
import threading

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from modeling_a2mim.arguments.data import DataArguments
from modeling_a2mim.data import sources
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.formats import tars as tars_module
from modeling_a2mim.data.formats.tars import TarSource
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.shards import ParquetSource
from modeling_a2mim.data.sources import DatasetSource, MixedSource, ReadError, relative_name, with_retries
from modeling_a2mim.data.splits import image_samples


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(sources, "FIRST_WAIT", 0.0)


def encoded(number):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), number, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def number_of(value):
    return int(np.asarray(Image.open(io.BytesIO(value["bytes"])))[0, 0, 0])


def write_parquet(folder, shards=3, rows=40, group=7):
    folder.mkdir()
    for shard in range(shards):
        numbers = range(shard * rows, (shard + 1) * rows)
        table = datasets.Dataset.from_dict(
            {"image": [{"bytes": encoded(n), "path": None} for n in numbers], "label": [n % 2 for n in numbers]},
            features=FEATURES,
        )
        table.to_parquet(folder / f"train-{shard}.parquet", batch_size=group)
    return folder


def write_tar(path, numbers, extension="png"):
    with tarfile.open(path, "w") as archive:
        for n in numbers:
            for name, data in ((f"{n:04d}.{extension}", encoded(n)), (f"{n:04d}.cls", str(n % 2).encode())):
                member = tarfile.TarInfo(f"images/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def parquet(tmp_path):
    return write_parquet(tmp_path / "parquet")


@pytest.fixture
def tars(tmp_path):
    (tmp_path / "tars").mkdir()
    for shard in range(3):
        write_tar(tmp_path / "tars" / f"train-{shard}.tar", range(shard * 40, (shard + 1) * 40))
    return tmp_path / "tars"


def check_rows(source, count=120, label=None):
    """Every row alone, all backwards, and some in between are what was written."""
    assert len(source) == int(source.units.sum()) == count
    column = next(c for c, kind in source.features.items() if isinstance(kind, datasets.Image))
    source = source.select(column, label)
    assert [number_of(source.read([row])[0][0]) for row in range(count)] == list(range(count))
    rows = [count - 1, 0, 30, 31, 7]
    assert [number_of(image) for image, _ in source.read(rows)] == rows
    assert [found for _, found in source.read(rows)] == [None if label is None else row % 2 for row in rows]
    first = source.take(25)
    assert len(first) == 25
    assert number_of(first.read([24])[0][0]) == 24
    with pytest.raises(IndexError):
        first.read([25])


def test_parquet(parquet):
    source = load_images(parquet, streaming=True)
    assert isinstance(source, ParquetSource)
    assert source.units.tolist() == [7, 7, 7, 7, 7, 5] * 3
    assert source.features == FEATURES
    assert 50 < source.row_bytes < 200
    check_rows(source, label="label")
    assert source.describe(41).endswith("train-1.parquet, row group 0")
    assert source.describe(41).startswith("row 1 of ")
    check_rows(load_images(str(parquet / "*.parquet"), streaming=True))
    assert len(load_images(parquet / "train-1.parquet", streaming=True)) == 40


def test_tar(tars, tmp_path):
    source = load_images(tars, streaming=True, every_file=True)
    assert isinstance(source, TarSource)
    check_rows(source, label="cls")
    assert source.describe(41).endswith("train-1.tar")
    assert source.describe(41).startswith("sample 1 of ")
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:  # other files, several image types, samples without image
        for name in ("a/1.txt", "a/1.PNG", "b/1.jpg", "b/2.json", ".hidden", "c/3.left.png", "d/4.png"):
            data = encoded(7) if name.lower().endswith(("png", "jpg")) else b"{}"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    odd = TarSource("odd", [str(tmp_path / "odd.tar")])
    assert len(odd) == 4
    assert [number_of(image) for image, _ in odd.select("png").read(range(4))] == [7] * 4


def test_runs_of_a_tar_are_bounded(monkeypatch, tars):
    monkeypatch.setattr(tars_module, "TAR_RUN", (1000, 5000))
    source = TarSource("tars", [str(tars / "train-0.tar")])
    assert len(source.units) > 5
    check_rows(source, 40)


def test_arrow_and_saved_datasets(parquet, tmp_path):
    prepared = load_images(parquet)
    prepared.save_to_disk(tmp_path / "saved", num_shards=2)
    check_rows(load_images(tmp_path / "saved", streaming=True), label="label")
    (tmp_path / "arrow").mkdir()
    for file in (tmp_path / "saved").glob("*.arrow"):
        file.rename(tmp_path / "arrow" / file.name)
    check_rows(load_images(tmp_path / "arrow", streaming=True, every_file=True), label="label")


def test_image_files(tmp_path):
    for n in range(12):
        path = tmp_path / "images" / str(n % 2) / f"{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(n))
    source = load_images(tmp_path / "images", streaming=True, every_file=True).select("image", "label")
    assert sorted(number_of(image) for image, _ in source.read(range(12))) == list(range(12))
    assert all(number_of(image) % 2 == label for image, label in source.read(range(12)))
    (tmp_path / "images" / "0" / "004.png").unlink()
    gone = [image for image, _ in source.read(range(12)) if isinstance(image, BrokenImage)]
    assert [str(error).split(":")[0] for error in gone] == ["FileNotFoundError"]
    assert source.describe(2).endswith("004.png")


def test_names_of_rows_say_nothing_of_this_machine(parquet, tars, tmp_path, monkeypatch):
    for n in range(4):
        path = tmp_path / "images" / "deep" / str(n % 2) / f"{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(n))
    names = ["deep/0/000.png", "deep/0/002.png", "deep/1/001.png", "deep/1/003.png"]
    streamed = load_images(tmp_path / "images", streaming=True, every_file=True).select("image")
    assert [streamed.file_name(row) for row in range(4)] == names
    assert streamed.take(2).file_name(1) == names[1]
    monkeypatch.chdir(tmp_path)
    for folder in ("images", str(tmp_path / "images"), "./images/"):
        for arguments in ({"validation_dir": folder}, {"dataset_name": [folder]}):
            arguments = DataArguments(**arguments)
            for every_file in (False, True):
                dataset = load_images(folder, every_file=every_file)
                data = image_samples(arguments, dataset, None, 0)
                assert sorted(data.name(row) for row in range(4)) == names
    elsewhere = DatasetSource(load_images("images", every_file=False)).select("image")
    assert elsewhere.file_name(3) == "1/003.png"  # no folder is known, and no more is said
    rows = datasets.Dataset.from_dict({"image": [{"bytes": encoded(0), "path": p} for p in ("a/b.png", None)]})
    stored = ImageSamples(rows.cast_column("image", datasets.Image()), None, "image")
    assert [stored.name(row) for row in (0, 1)] == ["a/b.png", "row 1"]
    shards = load_images(parquet, streaming=True).select("image")
    assert shards.file_name(41) == "row 1 of train-1.parquet, row group 0"
    tar = TarSource("tars", [str(tars / "train-2.tar")]).select("png")
    assert tar.file_name(3) == "sample 3 of train-2.tar"
    mix = MixedSource([shards, tar])
    assert [mix.file_name(row) for row in (41, 123)] == [shards.file_name(41), tar.file_name(3)]


def test_remote_names():
    url = "https://host/secret/images/cats/1.png"
    assert relative_name(url, ["/data"]) == "cats/1.png"
    assert relative_name("/data/cats/1.png", ["/dat", "/data"]) == "cats/1.png"
    assert relative_name("/data/x/cats/1.png", ["/elsewhere"]) == "cats/1.png"


def test_only_the_units_asked_for_are_read_and_few_kept(parquet, monkeypatch):
    source = load_images(parquet, streaming=True).select("image")
    opened, read = [], ParquetSource._read_unit
    monkeypatch.setattr(ParquetSource, "_read_unit", lambda self, unit: opened.append(unit) or read(self, unit))
    source.units_open = 2
    source.read([35, 36, 40])
    assert opened == [5, 6]
    source.read([36, 41])
    assert opened == [5, 6]
    source.read([0])
    source.read([36])
    assert opened == [5, 6, 0, 5]
    assert len(source._units) == 2


def test_mixed_sources(parquet, tars):
    parts = [load_images(parquet, streaming=True).select("image"), TarSource("tars", [str(tars / "train-2.tar")])]
    parts[1] = parts[1].select("png")
    mix = MixedSource(parts)
    assert len(mix) == 160
    assert [number_of(image) for image, _ in mix.read([159, 0, 120, 119])] == [119, 0, 80, 119]
    assert mix.source_of(120) == "tars"
    assert mix.describe(120).endswith("train-2.tar")
    assert [len(mix.take(n)) for n in (5, 130)] == [5, 130]
    assert len(mix.take(5).sources) == 1
    single = DatasetSource(load_images(parquet)).select("image")
    assert MixedSource([single, single]).units.tolist() == [240]  # shuffled whole
    assert MixedSource([single, parts[1]]).units.tolist() == [100, 20, *parts[1].units]


def test_fingerprints_follow_the_data(parquet, tars, tmp_path):
    first = load_images(parquet, streaming=True).fingerprint
    assert first == load_images(parquet, streaming=True).fingerprint
    parquet.rename(tmp_path / "elsewhere")
    assert first == load_images(tmp_path / "elsewhere", streaming=True).fingerprint
    (tmp_path / "elsewhere" / "train-2.parquet").rename(tmp_path / "elsewhere" / "train-3.parquet")
    assert first != load_images(tmp_path / "elsewhere", streaming=True).fingerprint
    for n in range(4):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{n}.png").write_bytes(encoded(n))
    listed = DatasetSource(load_images(tmp_path / "files", every_file=True)).fingerprint
    (tmp_path / "files" / "3.png").rename(tmp_path / "files" / "4.png")
    assert listed != DatasetSource(load_images(tmp_path / "files", every_file=True)).fingerprint


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


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that knows ranges, and fails as often as it is told."""

    failures: list[int] = []
    requests: list[tuple[str, str | None]] = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        if self.failures:
            self.send_error(self.failures.pop())
            return
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        if wanted is None:
            self.send_response(200)
        else:
            first, last = wanted.removeprefix("bytes=").split("-")
            total, first = len(data), int(first)
            data = data[first : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{total}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(tmp_path):
    Ranges.failures, Ranges.requests = [], []
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Ranges, directory=str(tmp_path))
    ) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


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


def test_a_missing_remote_shard_is_named(server, parquet):
    with pytest.raises(ReadError, match=r"train-9\.parquet: cannot be read \(attempt 2\): FileNotFoundError"):
        ParquetSource("gone", [f"{server}/parquet/train-9.parquet"], retries=1)


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
