"""Reading rows by number from parquet, WebDataset tars, Arrow, files and over HTTP; failures are retried and named."""

import datasets

from modeling_a2mim.arguments.data import DataArguments
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.formats.tars import TarSource
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.sources import DatasetSource, MixedSource
from modeling_a2mim.data.splits import image_samples

from ..image_files import check_rows, encoded, number_of


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
    assert MixedSource([single, single]).chunks.tolist() == [240]  # shuffled whole
    assert MixedSource([single, parts[1]]).chunks.tolist() == [100, 20, *parts[1].chunks]


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
