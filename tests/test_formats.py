"""What is trained on of a folder with several kinds of files: the format that holds the data; the rest is named."""

import io
import sys
import tarfile
import types
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

import run_pretraining
from modeling_a2mim.arguments.data import ClassificationArguments, PreTrainingDataArguments
from modeling_a2mim.data import decoding
from modeling_a2mim.data.formats.census import Census
from modeling_a2mim.data.splits import (
    class_names,
    image_samples,
    load_evaluation_split,
    load_labelled_split,
    load_training_split,
)


COMMAND = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
COMMAND += ["--use_cpu", "--max_steps", "1", "--per_device_train_batch_size", "2", "--disable_tqdm", "True"]
NAMES = ["x [raw]", "train[1]", "{a,b} who?*", "50% c#d", "k::v", "~tilde"]


def encoded(number, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 9, 3), number, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def number_of(value):
    return int(np.asarray(Image.open(io.BytesIO(value["bytes"])))[0, 0, 0])


def write_images(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(number))
    return folder


def write_parquet(path, count, columns=("image",)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {c: [{"bytes": encoded(n + 100 * k)} for n in range(count)] for k, c in enumerate(columns)}
    rows = datasets.Dataset.from_dict(values, datasets.Features({c: datasets.Image() for c in columns}))
    with open(path, "wb") as file:  # a name is no pattern or URL here
        rows.to_parquet(file)
    return path


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def numbers(labels=False, **arguments):
    """The images that a script would train on; with labels, (names of the classes, (image, label) of each)."""
    args = (ClassificationArguments if labels else PreTrainingDataArguments)(read_retries=0, **arguments)
    dataset = load_labelled_split(args, True) if labels else load_training_split(args, needs="images")
    column, names = class_names(dataset) if labels else (None, None)
    source = image_samples(args, dataset, None, 0, column).source
    rows = source.read(list(range(len(source))))
    return (names, [(number_of(image), label) for image, label in rows]) if labels else [number_of(i) for i, _ in rows]


def lines(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("flag", ["train_dir", "dataset_name"])
def test_stray_images(tmp_path, caplog, flag, streaming):
    caplog.set_level("INFO")
    given = {"streaming": streaming}
    write_images(tmp_path / "a", ["banner.png"])
    write_parquet(tmp_path / "a" / "train-0.parquet", 12)
    assert numbers(**{flag: [str(tmp_path / "a")]}, **given) == list(range(12))
    assert lines(caplog, "left out") == [
        f"{tmp_path}/a: 12 images in 1 parquet file; left out: 1 image file (banner.png)"
    ]
    write_images(tmp_path / "b", ["test.png", "docs/1.png"])  # which datasets takes for the one split there is
    write_tar(tmp_path / "b" / "shard.tar", [(f"{n}.png", encoded(n)) for n in range(5)])
    assert numbers(**{flag: [str(tmp_path / "b")]}, **given) == list(range(5))
    caplog.clear()
    write_images(tmp_path / "c", [f"{n}.png" for n in range(4)])  # more than in the shard
    write_parquet(tmp_path / "c" / "odd.parquet", 2)
    (tmp_path / "c" / "notes.txt").write_text("")
    assert numbers(**{flag: [str(tmp_path / "c")]}, **given) == list(range(4))
    expected = "4 image files; left out: 1 .parquet file (odd.parquet), 1 .txt file (notes.txt)"
    assert lines(caplog, "left out") == [f"{tmp_path}/c: {expected}"]


def test_the_command_trains_on_what_holds_the_data(tmp_path, caplog):
    """As the scripts are started."""
    folder = write_images(tmp_path / "train[1]", ["banner.png"])
    write_zip(folder / "data.zip", [(f"{n}.png", encoded(n)) for n in range(3)])
    write_images(folder.parent / "val::{1}", ["1.png"])
    options = ["--train_dir", str(folder), "--validation_dir", str(tmp_path / "val::{1}"), "--streaming"]
    run_pretraining.main([*COMMAND, *options, "--output_dir", str(tmp_path / "out")])
    assert f"{folder}: 3 images in 1 zip file; left out: 1 image file (banner.png)" in caplog.text
    tar = write_tar(tmp_path / "a.tgz", [("0.png", encoded(0))], "w:gz")
    refused = [*COMMAND, "--train_dir", str(tar), "--streaming", "--output_dir", str(tmp_path / "x")]
    with pytest.raises(ValueError, match=r"a\.tgz is compressed as a whole"):
        run_pretraining.main(refused)
    assert not (tmp_path / "x").exists()


def test_unreadable_shards_are_no_reason_to_take_the_stray_image(tmp_path):
    folder = write_images(tmp_path / "a", ["banner.png"])
    (folder / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"train\.parquet: cannot be read"):
        numbers(train_dir=[str(folder)])


@pytest.mark.parametrize("name", NAMES)
def test_an_existing_path_is_a_path(tmp_path, monkeypatch, name):
    folder = write_images(tmp_path / name / "images", ["0.png", "1.png"])
    shards = tmp_path / name / "parquet"
    write_parquet(shards / "a.parquet", 3)
    table = tmp_path / name / "list.csv"
    table.write_text("path,label\nimages/0.png,a\nimages/1.png,b\n")
    monkeypatch.chdir(tmp_path)
    for streaming in (False, True):
        given = {"streaming": streaming}
        for flag in ("train_dir", "dataset_name"):
            assert numbers(**{flag: [str(folder)]}, **given) == [0, 1]
            assert numbers(**{flag: [f"{name}/parquet"]}, **given) == [0, 1, 2]
        assert numbers(dataset_name=[f"{name}/parquet/a.parquet"], **given) == [0, 1, 2]
        assert numbers(labels=True, dataset_name=[str(table)], **given) == (["a", "b"], [(0, 0), (1, 1)])
    args = PreTrainingDataArguments(train_dir=[str(folder)], validation_dir=f"{name}/images")
    evaluation = load_evaluation_split(args, None, needs="images")
    assert len(evaluation) == 2
    assert numbers(dataset_name=[str(tmp_path / "*" / "images" / "*.png")]) == [0, 1]  # and a pattern is one
    with pytest.raises(ValueError, match="no such file"):
        numbers(dataset_name=["nowhere[1]/*.parquet"])


def test_splits_of_shards(tmp_path, caplog):
    write_parquet(tmp_path / "train" / "a.parquet", 3)
    write_parquet(tmp_path / "test" / "a.parquet", 2)
    write_parquet(tmp_path / "more" / "a.parquet", 2)
    assert numbers(dataset_name=[str(tmp_path)]) == [0, 1, 2]
    assert lines(caplog, "left out") == [
        f"{tmp_path}: 1 file(s) left out, such as more/a.parquet, as their names say no split beside those that do: "
        "train (1 file), test (1 file); --train_dir takes all"
    ]
    args = PreTrainingDataArguments(dataset_name=[str(tmp_path)], validation_split="valid")
    with pytest.raises(ValueError, match="no split 'valid'; there are train, test"):
        load_evaluation_split(args, "valid", needs="images")


@pytest.mark.parametrize("streaming", [False, True])
def test_other_suffixes(pillow, tmp_path, caplog, streaming):
    caplog.set_level("INFO")
    folder = write_images(tmp_path / "a", ["0.png"])
    for number, (name, kind) in enumerate(
        {"b.jfif": "JPEG", "c.JPE": "JPEG", "d.tga": "TGA", "e.apng": "PNG"}.items(), 1
    ):
        (folder / name).write_bytes(encoded(number, kind))
    for name in ("1.HEIC", "2.heic", "3.heic", "4.Heic", "5.jxl", "6.dcm"):
        (folder / name).write_bytes(b"?")
    for flag in ("train_dir", "dataset_name"):
        caplog.clear()
        assert numbers(**{flag: [str(folder)]}, streaming=streaming) == [0, 1, 2, 3, 4]
        [line] = lines(caplog, "left out")
        assert line.startswith(f"{folder}: 5 image files; left out: ")
        assert "4 .heic files (1.HEIC, 2.heic, 3.heic, ...; pip install pillow-heif to read them)" in line
        assert "1 .jxl file (5.jxl; pip install pillow-jxl-plugin to read them), 1 .dcm file (6.dcm)" in line
    for name in ("0.png", "b.jfif", "c.JPE", "d.tga", "e.apng"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="no images found; .*there are 4 .heic files .*pip install pillow-heif"):
        numbers(train_dir=[str(folder)], streaming=streaming)


@pytest.fixture
def pillow(monkeypatch):
    """Pillow as it is without plugins, whatever is installed; what is changed is undone."""
    caches = (decoding._formats, decoding.image_suffixes)
    with monkeypatch.context() as patch:
        for name in ("pillow_heif", "pillow_jxl"):
            patch.setitem(sys.modules, name, None)
        for name, kind in (("OPEN", dict), ("EXTENSION", dict), ("ID", list)):
            Image.init()
            patch.setattr(Image, name, kind(getattr(Image, name)))
        for name in ("HEIF", "JXL"):
            Image.OPEN.pop(name, None)
        for cached in caches:
            cached.cache_clear()
        yield patch
    for cached in caches:
        cached.cache_clear()


def test_plugins_that_are_installed_decode(pillow, tmp_path):
    """With BMP as the format of a plugin, as none need be installed here."""

    def register_heif_opener():
        Image.register_open("HEIF", Image.OPEN["BMP"][0], lambda start: start[:2] == b"BM")
        Image.register_extension("HEIF", ".heic")

    pillow.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register_heif_opener))
    write_images(tmp_path, ["0.png"])
    (tmp_path / "IMG_1.HEIC").write_bytes(encoded(1, "BMP"))
    assert numbers(train_dir=[str(tmp_path)]) == [0, 1]
    assert numbers(dataset_name=[str(tmp_path)]) == [0, 1]  # of which `datasets` knows the first
    assert Census.of(["a.heic", "b.jxl"]).images == 1
    assert "HEIF" in decoding._formats()


def test_images_by_the_names_of_their_files():
    """Formats that noise could be taken for are tried where the name says so."""
    data = encoded(7, "TGA")
    assert decoding.open_image({"bytes": data, "path": "a/x.TGA"}).format == "TGA"
    with pytest.raises(decoding.BrokenImage):
        decoding.open_image(data)
    for name in ("a.eps", "a.ps", "a.svg", "a.txt", "a", "a.h5"):
        assert not decoding.is_image_file(name)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_column_of_the_images(tmp_path, caplog, streaming):
    caplog.set_level("INFO")
    for number, (columns, first, said) in enumerate(
        [
            (("mask", "image"), 100, "'image'; other columns of images: mask"),
            (("depthMap", "photo"), 100, "'photo'; other columns of images: depthMap"),
            (("conditioning_image", "target_mask", "img"), 200, "'img'; other columns"),
            (("depth",), 0, "'depth'"),
        ]
    ):
        folder = tmp_path / str(number)
        write_parquet(folder / "a.parquet", 2, columns)
        assert numbers(train_dir=[str(folder)], streaming=streaming) == [first, first + 1]
        assert f"2 images from column {said}" in caplog.text
    write_parquet(tmp_path / "two" / "a.parquet", 2, ("front", "back"))
    two = {"train_dir": [str(tmp_path / "two")], "streaming": streaming}
    with pytest.raises(ValueError, match=r"^image_column_name: .* \(front, back\); choose one with"):
        numbers(**two)
    assert numbers(**two, image_column_name="back") == [100, 101]
