"""Which column holds the images or the labels."""

import datasets
import pytest

from modeling_a2mim.data.columns import choose_images, find_column, image_candidates, same_view

from ..image_files import numbers, write_parquet


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


def test_the_names_of_columns_tell_which_the_images_are():
    assert choose_images(["seg.png", "jpg"]) == "jpg"
    assert choose_images(["depthMap", "photo"]) == "photo"
    assert choose_images(["png", "jpg"]) == "jpg"  # which is no mask
    assert choose_images(["front", "back"]) is None
    assert image_candidates(["mask", "depth"]) == ["mask", "depth"]  # there are no others
    assert same_view(["view-0.png", "view-1.png"])
    assert not same_view(["left.png", "right.png"])
    assert not same_view(["1.jpg"])
