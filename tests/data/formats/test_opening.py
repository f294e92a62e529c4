"""Files of every format, on the Hub, prepared and streamed."""

import pytest

from ...image_files import encoded, evaluated, numbers, write_parquet, write_tar, write_zip


PETS = [(f"data/{'cat' if n % 2 else 'dog'}/{n}.png", encoded(n)) for n in range(6)]
PETS_LABELLED = (["cat", "dog"], [(n, 1 - n % 2) for n in range(6)])


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
