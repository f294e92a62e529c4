"""Zips, compressed tars and tables, on this machine and on the Hub, prepared and streamed."""

import pickle
import zipfile

import pytest

from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.data import sources
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.formats.archives import ZipSource, decompressed, folder_classes
from modeling_a2mim.data.sources import ReadError
from modeling_a2mim.data.splits import find_evaluation_split, load_labelled_split

from .test_formats import encoded, number_of, numbers, write_images, write_parquet, write_tar, write_zip


PETS = [(f"data/{'cat' if n % 2 else 'dog'}/{n}.png", encoded(n)) for n in range(6)]
PETS_LABELLED = (["cat", "dog"], [(n, 1 - n % 2) for n in range(6)])


def evaluated(**arguments):
    """The images that a classifier would be evaluated on."""
    args = ClassificationArguments(**arguments)
    return load_labelled_split(args, False, split=find_evaluation_split(args))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(sources, "FIRST_WAIT", 0.0)


@pytest.mark.parametrize("streaming", [False, True])
def test_zips(tmp_path, caplog, streaming):
    caplog.set_level("INFO")
    others = [
        ("data/notes.txt", b""),
        ("metadata.csv", b""),
        ("__MACOSX/data/cat/._1.png", b""),
        ("data/.hid.png", b""),
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


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_tars(tmp_path, kind):
    members = [(f"{n}.png", encoded(n)) for n in range(5)] + [(f"{n}.cls", b"%d" % (n % 2)) for n in range(5)]
    archive = write_tar(tmp_path / "d" / f"a.tar.{kind}", members, f"w:{kind}")
    labelled = (["0", "1"], [(n, n % 2) for n in range(5)])
    assert numbers(labels=True, train_dir=[str(archive.parent)]) == labelled
    hidden = archive.rename(archive.parent / "a.tar")  # by how it begins
    assert numbers(labels=True, dataset_name=[str(hidden)]) == labelled
    with pytest.raises(ValueError, match=r"a\.tar is compressed as a whole.*leave --streaming out"):
        numbers(train_dir=[str(hidden)], streaming=True)
    hidden.write_bytes(hidden.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.tar: cannot be decompressed"):
        decompressed([str(hidden)])


@pytest.mark.parametrize("streaming", [False, True])
def test_tables(tmp_path, monkeypatch, streaming):
    write_images(tmp_path / "data" / "images", ["0.png", "1.png", "2.png"])
    monkeypatch.chdir(tmp_path)  # not where paths are relative to
    tables = {
        "a.csv": "id,path,label\n7,images/0.png,cat\n8,images/2.png,dog\n",
        "a.tsv": "id\tfile_name\tlabel\n7\timages/0.png\tcat\n8\timages/2.png\tdog\n",
        "a.jsonl": '{"image": "images/0.png", "label": "cat"}\n{"image": "images/2.png", "label": "dog"}\n',
        "a.json": '[{"scan": "images/0.png", "label": "cat"}, {"scan": "images/2.png", "label": "dog"}]',
    }
    for name, text in tables.items():
        path = tmp_path / "data" / name
        path.write_text(text)
        given = {"dataset_name": [str(path)], "streaming": streaming}
        assert numbers(labels=True, **given) == (["cat", "dog"], [(0, 0), (2, 1)])
    (tmp_path / "two.csv").write_text("left,right\ndata/images/0.png,data/images/1.png\n")
    two = {"dataset_name": ["two.csv"], "streaming": streaming}
    with pytest.raises(ValueError, match=r"^image_column_name: two.csv names images in left, right"):
        numbers(**two)
    assert numbers(**two, image_column_name="right") == [1]
    for text, message in (("isic_id,diagnosis\nx,y\n", "none of its columns .isic_id, diagnosis. names"), ("", "csv")):
        (tmp_path / "none.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            numbers(dataset_name=["none.csv"], streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_on_the_hub(hub, tmp_path, caplog, streaming):
    def zipped(members):
        return write_zip(tmp_path / "x.zip", members).read_bytes()

    shard = write_parquet(tmp_path / "x.parquet", 4).read_bytes()
    labelled = [(f"{n}.png", encoded(n)) for n in (0, 1)] + [("0.cls", b"0"), ("1.cls", b"1")]
    tar = write_tar(tmp_path / "x.tar", labelled)
    packed = write_tar(tmp_path / "x.tgz", [("0.png", encoded(0))], "w:gz")
    table = b"path,label\nimages/0.png,cat\nimages/1.png,dog\n"
    images = {f"images/{n}.png": encoded(n) for n in range(2)}
    hub.put("org/zip", {"README.md": b"", "train.zip": zipped(PETS), "labels.csv": b"a\n1\n"}, repo_type="dataset")
    hub.put("org/splits", {"data/train.zip": zipped(PETS), "data/test.zip": zipped(PETS[:2])}, repo_type="dataset")
    hub.put("org/stray", {"test.png": encoded(9), "docs/b.png": encoded(9), "x.parquet": shard}, repo_type="dataset")
    hub.put("org/tar", {"a.tar": tar.read_bytes(), "banner.png": encoded(9)}, repo_type="dataset")
    hub.put("org/tgz", {"a.tar.gz": packed.read_bytes()}, repo_type="dataset")
    hub.put("org/table", {"list.csv": table, **images}, repo_type="dataset")
    hub.put("org/evil", {"list.csv": b"path\n../../etc/0.png\n"}, repo_type="dataset")
    given = {"streaming": streaming}
    for name in ("org/zip", "org/splits"):
        assert numbers(labels=True, dataset_name=[name], **given) == PETS_LABELLED
    assert len(evaluated(dataset_name=["org/splits"])) == 2
    assert numbers(dataset_name=["org/stray"], **given) == [0, 1, 2, 3]
    assert "4 images in 1 parquet file; left out: 2 image files (test.png, docs/b.png)" in caplog.text
    assert numbers(labels=True, dataset_name=["org/tar"], **given) == (["0", "1"], [(0, 0), (1, 1)])
    if streaming:
        with pytest.raises(ValueError, match=r"^org/tgz: .*a\.tar\.gz is compressed as a whole"):
            numbers(dataset_name=["org/tgz"], **given)
    else:
        assert numbers(dataset_name=["org/tgz"], **given) == [0]
    # The images of a table are on the Hub, too; a repository with images is one of images.
    url = "hf://datasets/org/table/list.csv"
    assert numbers(labels=True, dataset_name=[url], **given) == (["cat", "dog"], [(0, 0), (1, 1)])
    assert numbers(dataset_name=["org/table"], **given) == [0, 1]
    with pytest.raises(ValueError, match=r"names \.\./\.\./etc/0\.png, a file outside of its folder"):
        numbers(dataset_name=["org/evil"], **given)
