"""What the user names, as a dataset or a stream; columns."""

import datasets
import numpy as np
import pytest

from modeling_a2mim.arguments.data import PreTrainingDataArguments
from modeling_a2mim.data.columns import find_column
from modeling_a2mim.data.loading import find_validation_split, load_images
from modeling_a2mim.data.sources import DatasetSource
from modeling_a2mim.data.splits import load_evaluation_split

from ..image_files import numbers, write_images, write_parquet


NAMES = ["x [raw]", "train[1]", "{a,b} who?*", "50% c#d", "k::v", "~tilde"]


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


@pytest.mark.parametrize("streaming", [False, True])
def test_files_whose_names_look_like_urls(tmp_path, monkeypatch, streaming):
    write_images(tmp_path / "data", ["a::b.png", "http:__c.png", "file:/d.png"])
    monkeypatch.chdir(tmp_path)
    assert sorted(numbers(train_dir=["data"], streaming=streaming)) == [0, 1, 2]


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


def test_splits_of_streams(folder, tmp_path):
    with pytest.raises(ValueError, match="no split 'train'; there are test"):
        load_images(folder, streaming=True)
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(ValueError, match=r"none of its columns \(text\) names files of images"):
        load_images(tmp_path / "lines", streaming=True)
    with pytest.raises(ValueError, match=r"/\*\.parquet: no such file"):
        load_images(str(tmp_path / "*.parquet"), streaming=True)


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
