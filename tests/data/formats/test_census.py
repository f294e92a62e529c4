"""What is trained on of a folder with several kinds of files: the format that holds the data; the rest is named."""

import sys
import types

import pytest
from PIL import Image

import run_pretraining
from modeling_a2mim.data import decoding
from modeling_a2mim.data.formats.census import Census

from ...image_files import encoded, lines, numbers, write_images, write_parquet, write_tar, write_zip


COMMAND = ["--architecture", "test_convnext", "--image_size", "32", "--mask_patch_size", "8", "--mask_site", "-3"]
COMMAND += ["--use_cpu", "--max_steps", "1", "--per_device_train_batch_size", "2", "--disable_tqdm", "True"]


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


@pytest.mark.parametrize("streaming", [False, True])
def test_other_suffixes(pillow, tmp_path, caplog, streaming):
    caplog.set_level("INFO")
    folder = write_images(tmp_path / "a", ["0.png"])
    for number, (name, kind) in enumerate(
        {"b.jfif": "JPEG", "c.JPE": "JPEG", "d.tga": "TGA", "e.apng": "PNG"}.items(), 1
    ):
        (folder / name).write_bytes(encoded(number, kind))
    for name in ("1.HEIC", "2.heic", "3.heic", "4.Heic", "5.jxl", "6.xyz"):
        (folder / name).write_bytes(b"?")
    for flag in ("train_dir", "dataset_name"):
        caplog.clear()
        assert numbers(**{flag: [str(folder)]}, streaming=streaming) == [0, 1, 2, 3, 4]
        [line] = lines(caplog, "left out")
        assert line.startswith(f"{folder}: 5 image files; left out: ")
        assert "4 .heic files (1.HEIC, 2.heic, 3.heic, ...; pip install pillow-heif to read them)" in line
        assert "1 .jxl file (5.jxl; pip install pillow-jxl-plugin to read them), 1 .xyz file (6.xyz)" in line
    for name in ("0.png", "b.jfif", "c.JPE", "d.tga", "e.apng"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="no images found; .*there are 4 .heic files .*pip install pillow-heif"):
        numbers(train_dir=[str(folder)], streaming=streaming)


def test_scans_that_are_no_images_by_their_names(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "export"
    folder.mkdir()
    for name in (*(f"IM{number:04d}" for number in range(50)), "1.2.840.113619.2.55", "series/1.2.840.113619.2.56"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(128) + b"DICM" + bytes(8))
    (folder / "b.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match="no images found; ") as caught:
        numbers(train_dir=[str(folder)])
    told = str(caught.value)
    assert "52 files without an ending (" in told
    assert ", ...; DICOM, read if their names end in .dcm)" in told
    assert "1 .gz file (b.gz)" in told
    assert len(told) < 600  # not the name of each file
    write_images(folder, ["0.png"])
    assert numbers(train_dir=[str(folder)]) == [0]
    [record] = [record for record in caplog.records if "left out" in record.getMessage()]
    assert record.levelname == "WARNING"
    assert "52 files without an ending (" in record.getMessage()
    notes = write_images(tmp_path / "notes", ["0.png"])
    (notes / "Makefile").write_text("all:")
    caplog.clear()
    assert numbers(train_dir=[str(notes)]) == [0]
    assert lines(caplog, "left out") == [f"{notes}: 1 image file; left out: Makefile"]


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
