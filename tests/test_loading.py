"""What the user names, as a dataset or a stream; columns."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_a2mim.data.loading import find_column, find_validation_split, load_images
from modeling_a2mim.data.sources import DatasetSource


def test_image_folder(folder):
    dataset = load_images(folder, every_file=True)
    assert len(dataset) == 12
    assert find_column(dataset, datasets.Image, None, "image_column_name") == "image"
    assert dataset.features["label"].names == ["cats", "dogs"]
    streamed = load_images(folder, every_file=True, streaming=True)
    assert isinstance(streamed, DatasetSource)
    assert len(streamed) == 12
    by_split = load_images(folder, streaming=True, split="test")  # which the names of the files say
    assert len(by_split) == 12


def test_parquet_file_folder_and_saved_dataset(folder, tmp_path):
    dataset = load_images(folder, every_file=True)
    (tmp_path / "parquet").mkdir()
    dataset.to_parquet(tmp_path / "parquet" / "part.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "both")
    for source, streaming in [("parquet/part.parquet", False), ("parquet", False), ("saved", False)]:
        found = list(load_images(tmp_path / source, streaming=streaming))
        assert [np.asarray(row["image"]).sum() for row in found] == [np.asarray(i).sum() for i in dataset["image"]]
    assert len(load_images(tmp_path / "both", "test")) == 1
    assert find_validation_split(tmp_path / "both") == "test"
    with pytest.raises(ValueError, match="no split 'val'; there are train, test"):
        load_images(tmp_path / "both", "val")


def test_bundled_sample():
    train, test = load_images(), load_images(split="test")
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.features["label"].names[0] == "T-shirt/top"
    assert np.bincount(train["label"]).tolist() == [1000] * 10
    assert train[0]["image"].size == (28, 28)
    assert find_validation_split() == "test"


def test_sources_that_do_not_work(tmp_path):
    with pytest.raises(ValueError, match=r"/nowhere: no such file or folder"):
        load_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"/empty: no images found; expected images .*there are 1 \.txt file"):
        load_images(tmp_path / "empty", every_file=True)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"table\.csv: none of its columns \(a, b\) names files of images"):
        load_images(tmp_path / "table.csv")
    (tmp_path / "one.txt").write_text("a.png")
    with pytest.raises(ValueError, match=r"one\.txt: expected a folder or a file ending in \.parquet"):
        load_images(tmp_path / "one.txt")
    with pytest.raises(ValueError, match=r"^nobody/nothing: neither a local folder nor a dataset"):
        load_images("nobody/nothing")


def test_columns_that_are_missing():
    dataset = datasets.Dataset.from_dict({"text": ["a"], "n": [1]})
    with pytest.raises(
        ValueError, match="^image_column_name: the dataset has no column of images; its columns are text, n"
    ):
        find_column(dataset, datasets.Image, None, "image_column_name")
    with pytest.raises(ValueError, match="^image_column_name: the dataset has no column 'photo'; it has text, n"):
        find_column(dataset, datasets.Image, "photo", "image_column_name")
    with pytest.raises(ValueError, match="^label_column_name: the dataset has no column of class labels"):
        find_column(dataset, datasets.ClassLabel, None, "label_column_name")


def test_listing_follows_imagefolder(folder, tmp_path):
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "cats" / "dangling.png").symlink_to("nowhere")
    mine = load_images(folder, every_file=True)
    theirs = datasets.load_dataset("imagefolder", data_files=str(folder / "**"), split="train")
    assert mine.features == theirs.features
    rows = [
        sorted((row["image"]["path"], row["label"]) for row in d.cast_column("image", datasets.Image(decode=False)))
        for d in (mine, theirs)
    ]
    assert rows[0] == rows[1]
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(folder / "test_top.png")
    assert load_images(folder, every_file=True)["label"].count(None) == 1  # which torchvision's ImageFolder leaves out
    assert "label" not in load_images(folder, split="test").features  # `datasets`' has
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png") if path.name[0] == "t")[:12]
    lines = [json.dumps({"file_name": name, "text": "hello"}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    rows = load_images(folder, every_file=True)
    assert ("text" in rows.features, len(rows)) == (True, 12)


def test_links_do_not_repeat_images(folder):
    (folder / "cats" / "again").symlink_to(folder)
    assert len(load_images(folder, every_file=True)) == 12


def test_splits_of_streams(folder, tmp_path):
    with pytest.raises(ValueError, match="no split 'train'; there are test"):
        load_images(folder, streaming=True)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(ValueError, match=r"none of its columns \(text\) names files of images"):
        load_images(tmp_path / "lines", streaming=True)
    with pytest.raises(ValueError, match=r"/\*\.parquet: no such file"):
        load_images(str(tmp_path / "*.parquet"), streaming=True)


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "images").mkdir()
    with open(bytes(tmp_path / "images") + b"/\xff.png", "wb"):
        pass
    with pytest.raises(ValueError, match="the name of this file is not UTF-8; rename it"):
        load_images(tmp_path / "images", every_file=True)
