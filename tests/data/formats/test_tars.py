"""What makes up a sample of a WebDataset tar, and which of its files are the images."""

import io
import tarfile

import numpy as np
import pytest

from modeling_a2mim.data.formats import tars as tars_module
from modeling_a2mim.data.formats.tars import TarSource
from modeling_a2mim.data.loading import load_images

from ...image_files import (
    check_rows,
    encoded,
    number_of,
    numbers,
    write_tar,
)


def several(endings, samples=3):
    """Samples with a file each for these endings, whose images are 10 times the sample plus the place."""
    files = []
    for sample in range(samples):
        for place, ending in enumerate(endings):
            image = encoded(10 * sample + place, "JPEG" if ending.endswith("jpg") else "PNG")
            files.append((f"s{sample}.{ending}", b'{"a": 1}' if ending == "json" else image))
    return files


@pytest.mark.parametrize("streaming", [False, True])
def test_several_images_in_a_sample(tmp_path, caplog, streaming):
    caplog.set_level("INFO")

    def of(endings, **given):
        write_tar(tmp_path / "-".join(endings) / "a.tar", several(endings))
        return numbers(train_dir=[str(tmp_path / "-".join(endings))], streaming=streaming, **given)

    numbered = ("1.jpg", "2.jpg", "3.jpg", "json")
    each = [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert of(numbered) == of(numbered, image_column_name="jpg") == each
    assert "its samples have several images (1.jpg, 2.jpg, 3.jpg); each of them is a row" in caplog.text
    assert of(("view-0.png", "view-1.png")) == [0, 1, 10, 11, 20, 21]
    assert of(numbered, image_column_name="2.jpg") == [1, 11, 21]
    assert "3 images from column '2.jpg'; other columns of images: 1.jpg, 3.jpg" in caplog.text
    with pytest.raises(ValueError, match=r"^image_column_name: .* no images '4.jpg'; they have 1.jpg, 2.jpg, 3.jpg"):
        of(numbered, image_column_name="4.jpg")
    assert of(("mask.png", "jpg")) == of(("png", "jpg")) == of(("depth.png", "png")) == [1, 11, 21]
    assert "3 images from column 'jpg'; other columns of images: mask.png" in caplog.text
    assert of(("png", "jpg"), image_column_name="png") == [0, 10, 20]
    with pytest.raises(ValueError, match=r"^image_column_name: .* left.png, right.png; choose with"):
        of(("left.png", "right.png"))


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_sample_apart(tmp_path, monkeypatch, streaming):
    order = np.random.default_rng(0).permutation(12).tolist()
    images = [(f"d/{n}.png", encoded(n)) for n in range(12)]
    labels = [(f"d/{n}.cls", b"%d\n" % (n % 3)) for n in order]
    classes = ["0", "1", "2"], [(n, n % 3) for n in range(12)]
    for number, files in enumerate((images + labels, labels + images, sorted(images + labels))):
        write_tar(tmp_path / f"{number}" / "a.tar", files)
        found, rows = numbers(labels=True, train_dir=[str(tmp_path / f"{number}")], streaming=streaming)
        assert (found, sorted(rows)) == classes
    # Labels of another kind far away from the images are read as well, and not what lies between.
    big = ("d/big.bin", bytes(3 * 2**20))
    archive = write_tar(tmp_path / "a.tar", [*images, big, *((name[:-3] + "txt", data) for name, data in labels)])
    source = TarSource("a", [str(archive)]).select("png", "txt")
    assert [label.strip() for _, label in source.read(range(12))] == [str(n % 3) for n in range(12)]
    data, _ = source._read_chunk(0)
    assert sum(map(len, data.values())) < 2**16


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_of_tars(tmp_path, caplog, streaming):
    """The same names in the same order, and rows without one."""

    def of(labels):
        files = [file for n, label in enumerate(labels) for file in ((f"{n}.jpg", encoded(n)), (f"{n}.cls", label))]
        write_tar(tmp_path / f"{len(labels)}" / "a.tar", [file for file in files if file[1] is not None])
        return numbers(labels=True, train_dir=[str(tmp_path / f"{len(labels)}")], streaming=streaming)

    assert of([b"%d" % n for n in range(11)]) == (
        ["0", "1", "10", *"23456789"],
        [(n, n if n < 2 else 2 if n == 10 else n + 1) for n in range(11)],
    )
    assert of([b"dog", b"cat", b"dog"]) == (["cat", "dog"], [(0, 1), (1, 0), (2, 1)])
    names, rows = of([b"dog", b"cat", None, b"dog"])
    assert (names, rows) == (["cat", "dog"], [(0, 1), (1, 0), (2, None), (3, 1)])


def test_other_types_of_images_are_one_column(tmp_path):
    """Whatever the files end in: a photograph each."""
    names = ("0.png", "1.jpg", "2.PNG", "2.seg.png", "3.webp")
    files = [(name, encoded(n)) for n, name in enumerate(names)]
    archive = write_tar(tmp_path / "a.tar", files)
    for streaming in (False, True):
        assert numbers(train_dir=[str(archive)], streaming=streaming) == [0, 1, 2, 4]
    with pytest.raises(Exception, match=r"two files of one sample are called 0\.png"):
        TarSource("a", [str(write_tar(tmp_path / "b.tar", [*files, files[0]]))])


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
    assert len(source.chunks) > 5
    check_rows(source, 40)


@pytest.mark.parametrize("streaming", [False, True])
def test_hidden_and_system_folders(tmp_path, caplog, streaming):
    """As in folders of files; a key may begin with "./"."""
    shown = [(f"./d/{n}.png", encoded(n)) for n in range(4)]
    hidden = [f"d/{folder}/9.png" for folder in (".thumbnails", "@eaDir", "$RECYCLE.BIN")]
    write_tar(tmp_path / "a.tar", [*shown, *((name, encoded(9)) for name in hidden)])
    assert numbers(dataset_name=[str(tmp_path / "a.tar")], streaming=streaming) == list(range(4))
    assert "3 files in hidden and system folders are left out, such as d/.thumbnails/9.png" in caplog.text
