"""Images in zips, prepared and streamed; zips that are damaged."""

import pickle
import zipfile

import pytest

from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.formats.zips import ZipSource, folder_classes
from modeling_a2mim.data.reading import ReadError

from ...image_files import (
    encoded,
    evaluated,
    number_of,
    numbers,
    write_zip,
)


PETS = [(f"data/{'cat' if n % 2 else 'dog'}/{n}.png", encoded(n)) for n in range(6)]
PETS_LABELLED = (["cat", "dog"], [(n, 1 - n % 2) for n in range(6)])


@pytest.mark.parametrize("streaming", [False, True])
def test_zips(tmp_path, caplog, streaming):
    caplog.set_level("INFO")
    others = [
        ("data/notes.txt", b""),
        ("metadata.csv", b""),
        ("__MACOSX/data/cat/._1.png", b""),
        ("data/.hid.png", b""),
        ("data/.thumbnails/0.png", b""),
        ("data/cat/@eaDir/0.png/SYNO.png", b""),
        ("data/$RECYCLE.BIN/0.png", b""),
    ]
    archive = write_zip(tmp_path / "zips" / "train.zip", PETS + others)
    for source in (
        {"train_dir": [str(archive.parent)]},
        {"dataset_name": [str(archive.parent)]},
        {"dataset_name": [str(archive)]},
    ):
        caplog.clear()
        assert numbers(**source, streaming=streaming) == list(range(6))
        assert "6 image files; left out: metadata.csv, 1 .txt file (data/notes.txt)" in caplog.text
        assert "4 files in hidden and system folders are left out, such as __MACOSX/data/cat/._1.png" in caplog.text
        assert "1 hidden files are left out, such as data/.hid.png" in caplog.text
        assert numbers(labels=True, **source, streaming=streaming) == PETS_LABELLED
    write_zip(archive.parent / "test.zip", PETS[:2])
    assert numbers(dataset_name=[str(archive.parent)], streaming=streaming) == list(range(6))
    assert len(evaluated(dataset_name=[str(archive.parent)])) == 2
    for name, members, message in (
        ("none", [("a.csv", b"")], r"no images in its 1 zip file\(s\); there are 1 .csv file \(a.csv\)"),
        ("empty", [], "no images in its 1 zip"),
    ):
        write_zip(tmp_path / name / "a.zip", members)
        with pytest.raises(ValueError, match=message):
            numbers(train_dir=[str(tmp_path / name)], streaming=streaming)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.zip").write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ReadError, match=r"cut/a\.zip: cannot be read .*BadZipFile"):
        numbers(train_dir=[str(tmp_path / "cut")], streaming=streaming)


def test_zips_that_are_damaged_inside(tmp_path):
    archive = write_zip(tmp_path / "a.zip", PETS)
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        info = opened.infolist()[2]
    data[info.header_offset + 40 + len(info.filename)] ^= 255
    archive.write_bytes(data)
    source = ZipSource("a", [str(archive)], retries=0).select("image")
    found = [image for image, _ in pickle.loads(pickle.dumps(source)).read(range(6))]
    assert [isinstance(image, BrokenImage) for image in found] == [n == 2 for n in range(6)]
    assert [number_of(found[n]) for n in (0, 5)] == [0, 5]
    assert source.describe(2) == f"data/dog/2.png of {archive}"
    assert source.take(2).fingerprint != source.fingerprint
    with pytest.raises(IndexError):
        source.take(2).read([2])
    for info in zipfile.ZipFile(archive).infolist():
        data[info.header_offset + 6] |= 1
    start = data.rindex(b"PK\x01\x02")
    data[start + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(ReadError, match=r"a\.zip: .*it is encrypted"):
        ZipSource("a", [str(archive)], retries=0)


def test_classes_of_folders_in_zips():
    assert folder_classes(["t/cat/1.png", "t/dog/2.png"], True) == ["cat", "dog"]
    assert folder_classes(["t/cat/a/1.png", "t/dog/2.png"], True) == ["cat", "dog"]
    assert folder_classes(["t/cat/a/1.png", "t/dog/2.png"], False) is None
    assert folder_classes(["t/cat/a/1.png", "t/cat/b/2.png"], False) == ["a", "b"]
    assert folder_classes(["cat/1.png", "dog/2.png", "3.png"], True) == ["cat", "dog", None]
    assert folder_classes(["1.png", "2.png"], True) is None
