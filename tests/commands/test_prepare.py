"""`a2mim prepare` from its command line: what is kept, kills, tiles, duplicates, and runs that train on it."""

import io
import json
import logging
import os
import signal
import tarfile
import time

import datasets
import numpy as np
import pytest
import tifffile
from datasets import load_dataset
from PIL import Image

from modeling_a2mim.commands.prepare import main
from modeling_a2mim.commands.pretrain import main as pretrain
from modeling_a2mim.preparation import running
from modeling_a2mim.preparation.parts import WORK, PartWriter
from modeling_a2mim.preparation.shards import write_shards

from ..image_files import encoded, write_images, write_parquet
from ..processes import forked
from ..scientific_images import dicom


pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--use_cpu", "--max_steps"]
TRAIN += ["2", "--per_device_train_batch_size", "4", "--disable_tqdm", "True", "--save_strategy", "no"]


def noise(number, size=(40, 36)):
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def prepare(images, out, *argv):
    """The report."""
    main(
        [*map(str, images if isinstance(images, list) else [images]), str(out), "--num_workers", "0", *map(str, argv)]
    )
    return json.loads((out / "prepare.json").read_text())


def refused(capsys, images, out, *argv):
    with pytest.raises(SystemExit) as stopped:
        prepare(images, out, *argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip()


def written(out):
    """All files and their bytes."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def loaded(out, split="train"):
    return load_dataset(str(out), split=split).cast_column("image", datasets.Image(decode=False))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Splits with classes: 40 + 10 photographs, one broken, one a copy of another in the other split, one turned."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for number in range(40):
        save(noise(number), root / "train" / ("cat", "dog")[number % 2] / f"{number:02}.png")
    for number in range(40, 50):
        save(noise(number), root / "validation" / ("cat", "dog")[number % 2] / f"{number:02}.jpg", quality=90)
    save(noise(3), root / "validation" / "dog" / "copy of 3.png")
    (root / "train" / "cat" / "04.png").write_bytes(b"\x89PNG nothing")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(noise(44), root / "validation" / "cat" / "turned.jpg", exif=exif, quality=90)
    return root


@pytest.fixture(scope="module")
def out(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "prepared"
    prepare(photos, folder, "--size", "32")
    return folder


def test_splits_labels_and_names_are_kept(out, photos):
    found = load_dataset(str(out))
    assert list(found) == ["train", "validation"]
    assert found["train"].features["label"].names == ["cat", "dog"]
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("train/*/*") if "04" not in path.name)
    assert found["train"]["file"] == names
    assert [row["label"] for row in found["train"]] == [int(name.split("/")[1] == "dog") for name in names]
    assert {row["image"].size for row in found["train"]} == {(36, 32)}
    assert [row["image"]["path"] for row in loaded(out)] == names
    turned = next(row["image"] for row in found["validation"] if row["file"].endswith("turned.jpg"))
    assert (turned.format, turned.size) == ("JPEG", (32, 36))
    assert found["validation"][0]["image"].format == "JPEG"
    reference = noise(0).resize((36, 32), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(found["train"][0]["image"], dtype=int) - np.asarray(reference, dtype=int)).max() <= 1


def test_report_and_card(out):
    report = json.loads((out / "prepare.json").read_text())
    assert report["splits"] == {
        "train": {"images": 40, "skipped": 1, "written": 39},
        "validation": {"images": 12, "skipped": 0, "written": 12},
    }
    [skipped] = report["skipped"]
    assert (skipped["file"], skipped["split"]) == ("train/cat/04.png", "train")
    assert "broken header" in skipped["reason"]
    assert report["duplicates"]["files"] == [["train: train/dog/03.png", "validation: validation/dog/copy of 3.png"]]
    assert report["duplicates"]["across_splits"] == 1
    assert report["bytes_after"] == sum(len(row["image"]["bytes"]) for s in report["splits"] for row in loaded(out, s))
    pixels = [
        np.asarray(row["image"]).reshape(-1, 3) for s in report["splits"] for row in load_dataset(str(out), split=s)
    ]
    pixels = np.concatenate(pixels) / 255
    [statistics] = report["statistics"]
    assert statistics["pixels"] == len(pixels)
    assert np.allclose(statistics["mean"], pixels.mean(0), atol=1e-12)
    assert np.allclose(statistics["std"], pixels.std(0), atol=1e-9)
    mean = " ".join(f"{value:.4f}" for value in pixels.mean(0))
    assert statistics["flags"].startswith(f"--image_mean {mean} --image_std ")
    text = (out / "README.md").read_text() + json.dumps(report)
    assert "/tmp" not in text
    assert str(os.path.expanduser("~")) not in text


def start(images, out, *argv):
    """A run in a process that can be killed."""
    return forked(prepare, images, out, *argv)


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_killed_three_times_and_resumed(photos, tmp_path, monkeypatch, caplog, kind):
    argv = ["--size", "32", "--drop_duplicates", "--format", kind]
    prepare(photos, tmp_path / "whole", *argv)
    out = tmp_path / "out"
    own = PartWriter.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "__getitem__", lambda self, number: (time.sleep(0.3), own(self, number))[1])
        for count in (1, 2):
            process = start(photos, out, *argv)
            while process.is_alive() and len(list(out.glob(f"{WORK}/*.part"))) < count:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
            assert [path.name for path in out.iterdir()] == [WORK]
    with monkeypatch.context() as patch:  # while the shards get their names
        patch.setattr(running, "write_shards", killed_at_the_third)
        process = start(photos, out, *argv)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert len(list((out / "data").iterdir())) == 2
    caplog.set_level(logging.INFO)
    prepare(photos, out, *argv)
    assert written(out) == written(tmp_path / "whole")
    assert len(loaded(out)) == 39
    assert len(loaded(out, "validation")) == 11


def killed_at_the_third(out, folder, plan, features, kind):
    asked, images = [], folder.images

    def killed(part):
        asked.append(part)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return images(part)

    folder.images = killed
    write_shards(out, folder, plan, features, kind)


def test_same_files_by_any_number_of_processes(photos, out, tmp_path):
    main([str(photos), str(tmp_path / "two"), "--size", "32", "--num_workers", "2"])
    assert written(tmp_path / "two") == written(out)


def test_what_is_there_is_not_lost(photos, out, tmp_path, capsys):
    assert refused(capsys, photos, out, "--size", "32") == (
        f"error: out: {out} is finished; give --overwrite to prepare it anew"
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("x")
    assert "holds other files, such as precious.txt" in refused(capsys, photos, other)
    assert "lie in each other" in refused(capsys, photos, photos / "out")
    assert "lie in each other" in refused(capsys, photos, photos.parent)
    own = write_images(tmp_path / "own", ["a.png", "b.png"])
    prepare(own, tmp_path / "again", "--size", "4")
    before = written(tmp_path / "again")
    (tmp_path / "again" / "notes.txt").write_text("x")
    report = prepare(own, tmp_path / "again", "--size", "3", "--overwrite")
    assert report["options"]["size"] == 3
    after = written(tmp_path / "again")
    assert len(after) == len(before) + 1
    assert after["notes.txt"] == b"x"
    assert len(loaded(tmp_path / "again")) == 2


def test_parts_of_another_run_are_refused(photos, tmp_path, monkeypatch, capsys):
    images, out = write_images(tmp_path / "images", [f"{n}.png" for n in range(40)]), tmp_path / "out"

    def stopped(self, number):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartWriter, "__getitem__", stopped)
        with pytest.raises(SystemExit) as end:
            prepare(images, out)
    assert end.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert "(other options)" in refused(capsys, images, out, "--size", "4")
    (images / "7.png").write_bytes(encoded(99))
    assert "(other images)" in refused(capsys, images, out)
    assert prepare(images, out, "--overwrite")["written"] == 40


def test_sixteen_bits_stay(tmp_path):
    values = np.random.default_rng(0).integers(16, 4060, (50, 60), dtype=np.uint16)
    save(Image.fromarray(values), tmp_path / "images" / "a.png")
    report = prepare(tmp_path / "images", tmp_path / "as it is", "--size", "0")
    [row] = load_dataset(str(tmp_path / "as it is"), split="train")
    assert row["image"].mode == "I;16"
    assert np.array_equal(np.asarray(row["image"]), values)
    [found] = report["statistics"]
    assert (found["dtype"], found["min"], found["max"]) == ("uint16", [values.min()], [values.max()])
    assert np.isclose(found["mean"][0], values.mean())
    assert found["percentiles"]["99.5"] == [np.percentile(values, 99.5, method="inverted_cdf")]
    assert found["flags"].startswith("--num_channels 1 --value_range ")
    prepare(tmp_path / "images", tmp_path / "smaller", "--size", "25")
    small = np.asarray(load_dataset(str(tmp_path / "smaller"), split="train")[0]["image"])
    reference = np.asarray(Image.fromarray(values.astype(np.float32)).resize((30, 25), Image.Resampling.BICUBIC))
    assert small.dtype == np.uint16
    assert np.abs(small - reference).max() <= 1


def test_what_is_not_written_is_said(tmp_path, caplog):
    """Transparency of 16 bits and windows; and what is left out of the folder, once."""
    images, values = tmp_path / "images", np.random.default_rng(0).integers(0, 4096, (30, 30, 4), dtype=np.uint16)
    images.mkdir()
    tifffile.imwrite(images / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    (images / "b.dcm").write_bytes(dicom(values[..., 0], WindowCenter="40", WindowWidth="400"))
    (images / "notes.svg").write_text("<svg/>")
    (images / ".hidden.png").write_bytes(b"")
    with caplog.at_level(logging.INFO, "a2mim"):
        report = prepare(images, tmp_path / "out", "--size", "20", "--tile_overlap", "0")
    assert report["not_written"] == {"transparency": 1, "DICOM window": 1}
    assert [own["channels"] for own in report["statistics"]] == [3, 1]
    for words in (
        "transparency is not written",
        "windows of DICOM are not written",
        "left out: 1 .svg file",
        "hidden files",
    ):
        assert caplog.text.count(words) == 1, words


def test_any_number_of_channels_and_floats(tmp_path, capsys):
    rng = np.random.default_rng(0)
    bands = rng.integers(0, 10_000, (3, 13, 20, 24)).astype(np.uint16)
    kinds = {"image": datasets.Array3D((13, 20, 24), "uint16"), "place": datasets.Value("string")}
    rows = {"image": list(bands), "place": ["a", "b", None]}
    datasets.Dataset.from_dict(rows, datasets.Features(kinds)).save_to_disk(tmp_path / "bands")
    report = prepare(tmp_path / "bands", tmp_path / "out", "--size", "0")
    found = loaded(tmp_path / "out")
    assert found["place"] == ["a", "b", None]
    for row, own in zip(found, bands, strict=True):
        assert row["image"]["path"].endswith(".npy")
        assert np.array_equal(npy(row["image"]["bytes"]), own)
    assert len(report["statistics"][0]["mean"]) == 13
    prepare(tmp_path / "bands", tmp_path / "three", "--channels", "4", "3", "2", "--size", "10")
    assert npy(loaded(tmp_path / "three")[0]["image"]["bytes"]).shape == (3, 10, 12)
    told = refused(capsys, tmp_path / "bands", tmp_path / "jpeg", "--encode", "jpeg")
    assert "error: encode: jpeg holds 8 bits of 1 or 3 channels, not uint16 of 13 channel(s)" in told

    scan = rng.normal(size=(20, 24)).astype(np.float32) * 1000
    save(Image.fromarray(scan), tmp_path / "ct" / "a.tif")
    prepare(tmp_path / "ct", tmp_path / "float", "--size", "0")
    assert np.array_equal(npy(loaded(tmp_path / "float")[0]["image"]["bytes"]), scan)
    prepare(tmp_path / "ct", tmp_path / "half", "--size", "0", "--dtype", "float16")
    assert np.array_equal(npy(loaded(tmp_path / "half")[0]["image"]["bytes"]), scan.astype(np.float16))
    save(Image.fromarray(scan * 1000), tmp_path / "ct" / "b.tif")
    assert "do not fit in float16 (found in b.tif)" in refused(
        capsys, tmp_path / "ct", tmp_path / "too much", "--dtype", "float16"
    )


def npy(data):
    return np.load(io.BytesIO(data), allow_pickle=False)


def test_jpegs_that_nothing_changes_stay_as_they_are(tmp_path):
    save(noise(0), tmp_path / "images" / "a.jpg", quality=50)
    report = prepare(tmp_path / "images", tmp_path / "auto")
    assert report["jpegs_as_they_were"] == 1
    assert loaded(tmp_path / "auto")[0]["image"]["bytes"] == (tmp_path / "images" / "a.jpg").read_bytes()
    assert prepare(tmp_path / "images", tmp_path / "jpeg", "--encode", "jpeg")["jpegs_as_they_were"] == 0


def test_tiles(tmp_path, capsys):
    slide = np.full((50, 70, 3), 240, dtype=np.uint8)
    slide[5:20, 5:45] = np.random.default_rng(0).integers(0, 200, (15, 40, 3))
    save(Image.fromarray(slide), tmp_path / "slides" / "ward" / "a.png")
    report = prepare(tmp_path / "slides", tmp_path / "all", "--tile", "20")
    found = {row["image"]["path"]: row for row in loaded(tmp_path / "all")}
    assert len(found) == 3 * 4
    assert {row["file"] for row in found.values()} == {"ward/a.png"}
    for name, (top, left) in {"r000_c000": (0, 0), "r001_c002": (20, 40), "r002_c003": (30, 50)}.items():
        tile = np.asarray(Image.open(io.BytesIO(found[f"ward/a_{name}.png"]["image"]["bytes"])))
        assert np.array_equal(tile, slide[top : top + 20, left : left + 20])
    assert report["duplicates"]["groups"] == 1  # the empty ones
    report = prepare(tmp_path / "slides", tmp_path / "some", "--tile", "20", "--min_content", "0.3")
    assert [row["image"]["path"][-13:-4] for row in loaded(tmp_path / "some")] == ["r000_c000", "r000_c001"]
    assert report["tiles_without_content"] == 10
    assert report["written"] == 2
    report = prepare(tmp_path / "slides", tmp_path / "overlap", "--tile", "20", "--tile_overlap", "10")
    assert report["written"] == 4 * 6
    assert "leave out --size" in refused(capsys, tmp_path / "slides", tmp_path / "x", "--tile", "20", "--size", "9")
    assert "give --tile" in refused(capsys, tmp_path / "slides", tmp_path / "x", "--min_content", "0.5")
    assert "nothing to write of 1, no tile" in refused(
        capsys, tmp_path / "slides", tmp_path / "x", "--tile", "20", "--min_content", "1"
    )


def test_near_duplicates(tmp_path):
    pytest.importorskip("imagehash")
    for number in range(6):
        save(noise(number, (80, 80)), tmp_path / "images" / f"{number}.png")
    save(noise(2, (80, 80)), tmp_path / "images" / "2 again.jpg", quality=80)
    report = prepare(tmp_path / "images", tmp_path / "equal", "--drop_duplicates")
    assert report["duplicates"]["images"] == report["duplicates"]["dropped"] == 0
    report = prepare(tmp_path / "images", tmp_path / "near", "--drop_duplicates", "--near_duplicates", "4")
    assert report["duplicates"]["files"] == [["train: 2 again.jpg", "train: 2.png"]]
    assert "2.png" not in loaded(tmp_path / "near")["file"]
    assert report["written"] == report["statistics"][0]["images"] == 6


def test_dropped_duplicates_leave_the_statistics_of_the_rest(tmp_path):
    """Without what is nodata."""
    for number in range(3):
        values = np.random.default_rng(number).integers(1000, 2000, (16, 16), dtype=np.uint16)
        values[:, 8:] = 0
        for name in ("one/{}.tif", "both/{}.tif", "both/copies/{}.tif"):
            path = tmp_path / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, values, extratags=[(42113, "s", 0, "0", True)])
    expected = prepare(tmp_path / "one", tmp_path / "a")["statistics"]
    assert (expected[0]["unknown"], expected[0]["min"][0] >= 1000) == (3 * 128, True)
    assert prepare(tmp_path / "both", tmp_path / "b", "--drop_duplicates")["statistics"] == expected


def test_other_columns_and_shards(tmp_path, caplog):
    rows = {
        "image": [{"bytes": encoded(n), "path": f"scans/{n}.png"} for n in range(5)],
        "mask": [{"bytes": encoded(n), "path": None} for n in range(5)],
        "caption": ["a", "b", None, "d", "e"],
        "boxes": [[[1.0, 2.0]], [], [[3.0, 4.0]], [], []],
    }
    kinds = {"image": datasets.Image(), "mask": datasets.Image(), "caption": datasets.Value("string")}
    kinds["boxes"] = datasets.List(datasets.List(datasets.Value("float32")))
    (tmp_path / "in").mkdir()
    datasets.Dataset.from_dict(rows, datasets.Features(kinds)).to_parquet(tmp_path / "in" / "a.parquet", batch_size=2)
    prepare(tmp_path / "in", tmp_path / "out")
    assert "left out beside the images: mask" in caplog.text
    found = loaded(tmp_path / "out")
    assert found["file"] == [f"scans/{n}.png" for n in range(5)]
    assert found["caption"] == rows["caption"]
    assert found["boxes"] == rows["boxes"]
    write_images(tmp_path / "images", ["a.png", "b.png"])
    (tmp_path / "images" / "metadata.jsonl").write_text('{"file_name": "b.png", "age": 3}\n')
    prepare(tmp_path / "images", tmp_path / "meta")
    assert loaded(tmp_path / "meta")["age"] == [3]
    assert loaded(tmp_path / "meta")["file"] == ["b.png"]


def test_folders_of_one_name_are_told_apart(tmp_path):
    """`datasets` keeps what it has loaded under the name of the folder and what the card says."""
    for place in ("a", "b"):
        prepare(write_images(tmp_path / place / "in", [f"{place}.png"]), tmp_path / place / "out")
        assert loaded(tmp_path / place / "out")["file"] == [f"{place}.png"]
    (tmp_path / "b" / "in" / "metadata.csv").write_text("file_name,age\nb.png,3\n")
    prepare(tmp_path / "b" / "in", tmp_path / "b" / "out", "--overwrite")
    assert loaded(tmp_path / "b" / "out")["age"] == [3]


def test_shuffled(tmp_path, capsys):
    images = write_images(tmp_path / "images", [f"{n:02}.png" for n in range(30)])
    prepare(images, tmp_path / "out", "--shuffle", "1")
    files = loaded(tmp_path / "out")["file"]
    assert files != sorted(files) == [f"{n:02}.png" for n in range(30)]
    write_parquet(tmp_path / "in" / "a.parquet", 5)
    assert "shuffle: rows of" in refused(capsys, tmp_path / "in", tmp_path / "x", "--shuffle", "1")


@pytest.mark.parametrize("source", ["train_dir", "dataset_name"])
@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["prepared", "streaming"])
def test_runs_train_on_it(photos, out, tmp_path, source, streaming, caplog, no_pictures):
    flags = json.loads((out / "prepare.json").read_text())["statistics"][0]["flags"].split()
    pretrain([*TRAIN, f"--{source}", str(out), "--output_dir", str(tmp_path / "run"), *streaming, *flags])
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_tars(photos, tmp_path, no_pictures):
    out = tmp_path / "tars"
    prepare(photos, out, "--size", "32", "--format", "webdataset")
    [first, *_] = sorted((out / "data").glob("train-*.tar"))
    with tarfile.open(first) as archive:
        names = archive.getnames()
        other = json.load(archive.extractfile(names[2]))
    assert [name.rsplit(".", 1)[1] for name in names[:3]] == ["png", "cls", "json"]
    assert other == {"file": "train/cat/00.png", "label": 0, "label_name": "cat", "path": "train/cat/00.png"}
    found = load_dataset(str(out))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 39, "validation": 12}
    assert found["train"][0]["cls"] == 0
    pretrain([*TRAIN, "--dataset_name", str(out), "--output_dir", str(tmp_path / "run"), "--streaming"])
    again = prepare(out, tmp_path / "again", "--size", "16")
    assert again["splits"]["train"]["written"] == 39
    assert loaded(tmp_path / "again").features["cls"].names == ["0", "1"]


def test_what_cannot_be(photos, tmp_path, capsys):
    for argv, message in (
        (["--size", "-1"], "size: must be at least 1, got -1"),
        (["--quality", "0"], "quality: must be in [1, 100], got 0"),
        (["--quality", "80", "--encode", "png"], "quality: is of JPEG"),
        (["--channels", "0"], "channels: are counted from 1, got 0"),
        (["--tile", "8", "--tile_overlap", "8"], "tile_overlap: must be less than --tile 8, got 8"),
        (["--num_workers", "-1"], "num_workers: must be at least 0"),
        (["--split", "test"], "no split 'test'"),
        (["--dataset_revision", "main"], "dataset_revision: is of a dataset on the Hub"),
        (["--dtype", "float16"], "dtype: is of floating-point values, and these are uint8"),
        (["--max_image_pixels", "9"], "images: nothing to write of 52; train/cat/00.png: 40 x 36 pixels"),
    ):
        assert message in refused(capsys, photos, tmp_path / f"out{message[:9]}", *argv)
    assert "no such file or folder" in refused(capsys, tmp_path / "nothing", tmp_path / "x")
