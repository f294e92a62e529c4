"""Splits by the names of files and folders."""

import pytest

from modeling_a2mim.arguments.data import PreTrainingDataArguments
from modeling_a2mim.data.formats.named_splits import split_kinds
from modeling_a2mim.data.splits import load_evaluation_split

from ...image_files import lines, numbers, write_parquet


@pytest.mark.parametrize(
    ("folders", "kinds"),
    [
        (["train", "val", "extra"], {"train": "train", "val": "validation"}),
        (["TRAIN", "Test"], {"TRAIN": "train", "Test": "test"}),
        (["train2017", "val2017"], {"train2017": "train", "val2017": "validation"}),
        (["training_set", "test set"], {"training_set": "train", "test set": "test"}),
        (["Validation", "dev"], {"Validation": "validation", "dev": "validation"}),
        (["train station", "test tube"], {}),
        (["train_set", "car"], {}),  # there is none for evaluation
        (["valid", "invalid"], {}),
    ],
)
def test_names_of_splits(folders, kinds):
    assert split_kinds(folders) == kinds


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
