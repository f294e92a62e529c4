"""Folders as people have them: splits, classes, thumbnails, metadata; the same with and without streaming."""

import logging
import os
import shutil

import pytest

from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.splits import load_labelled_split
from modeling_a2mim.training.outputs import check_apart

from ...image_files import (
    both,
    classes,
    names,
)
from ...integration.test_scripts import SMALL, finetune, pretrain


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]


# Splits


@pytest.mark.parametrize("validation", ["val", "VALID", "validation", "Dev"])
def test_evaluation_images_are_not_trained_on(make, caplog, validation):
    root = make(
        "Train/a/0.png", "Train/b/1.png", f"{validation}/a/2.png", f"{validation}/b/3.png", "test/a/4.png", "x.png"
    )
    dataset = both(root, every_file=True, needs="labels")
    assert names(root, dataset) == ["Train/a/0.png", "Train/b/1.png"]
    assert dataset.features["label"].names == ["a", "b"]
    assert "2 files are for validation, as the name of their folder says" in caplog.text
    assert "1 files are for test, as the name of their folder says, and left out, such as test" in caplog.text
    assert "1 files beside the splits are left out, such as x.png" in caplog.text
    evaluation = both(root, every_file=True, train=False, needs="labels")
    assert names(root, evaluation) == [f"{validation}/a/2.png", f"{validation}/b/3.png"]


def test_splits_below_the_root(make):
    root = make("a/train/0.png", "a/val/1.png", "b/train/2.png", "b/val/3.png")
    assert both(root, every_file=True)["label"] == [0, 1]
    assert names(root, both(root, every_file=True, train=False)) == ["a/val/1.png", "b/val/3.png"]
    assert names(root, both(root, split="validation")) == [
        "a/val/1.png",
        "b/val/3.png",
    ]  # `datasets` finds them as well


def test_a_folder_called_as_a_split_may_be_a_class(make):
    root = make("car/0.png", "train/1.png", "truck/2.png")
    assert classes(root, train_dir=[str(root)]) == {"car": 1, "train": 1, "truck": 1}
    make("test/3.png")
    with pytest.raises(ValueError, match=r"/images: holds splits \(train, test\) beside car, truck, of which nothing"):
        load_images(root, every_file=True)
    shutil.rmtree(root / "train")
    with pytest.raises(
        ValueError, match="/images: test may be a class or images that are not for training, beside car"
    ):
        load_images(root, every_file=True)
    make("test/car/0.png", "test/truck/1.png")  # the classes again: a split
    assert names(root, both(root, every_file=True)) == ["car/0.png", "truck/2.png"]
    shutil.rmtree(root / "car")
    shutil.rmtree(root / "truck")
    with pytest.raises(
        ValueError, match=r"/images: holds nothing for training but test; if .*, name .*/images/test itself"
    ):
        load_images(root, every_file=True)


def test_shards_in_folders_and_of_splits(make, caplog):
    root = make("a/0.png", "b/1.png")
    rows, place = load_images(root, every_file=True), root.parent / "shards"
    for name in ("train/0", "Val/0", "data/train-0", "data/test-0"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(place / f"{name}.parquet")
    flat = place / "data"
    for streaming in (False, True):
        assert len(load_images(flat, every_file=True, streaming=streaming)) == 2
    assert "1 files are for test, as their names say, and left out, such as test-0.parquet" in caplog.text
    shutil.rmtree(flat)
    for streaming in (False, True):
        assert len(load_images(place, every_file=True, streaming=streaming)) == 2
    assert "1 files are for validation, as the name of their folder says" in caplog.text
    assert load_images(place, every_file=True, streaming=True, train=False).files == [str(place / "Val" / "0.parquet")]


# Classes


def test_the_first_folder_names_the_class(make, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    root = make("cat/p1/0.png", "cat/p2/1.png", "cat/2.png", "dog/p1/deep/3.png", "banner.png")
    make("@eaDir/t.png", "dog/@eaDir/t.png", "dog/.thumbnails/t.png", "__MACOSX/cat/t.png", "cat/._2.png")
    (root / "empty").mkdir()
    finetune(root.parent / "out", *SCRATCH, "--train_dir", root, "--validation_dir", root)
    assert (
        "training: 2 classes by the first folder below the root, as torchvision's ImageFolder: cat 3, dog 1"
        in caplog.text
    )
    assert "evaluation: 2 classes by the first folder" in caplog.text
    assert "1 images are left out, as they lie in no class folder, such as banner.png" in caplog.text
    assert "4 files in hidden and system folders are left out, such as " in caplog.text
    assert "1 hidden files are left out, such as cat/._2.png" in caplog.text
    assert "folders without images, which are no classes: empty" in caplog.text
    assert len(both(root, every_file=True, needs="labels")) == 4
    assert names(root, both(root, every_file=True, needs="images"))[0] == "banner.png"  # pre-training uses it
    with pytest.raises(
        ValueError, match="the images have no labels; `datasets` takes .* equally deep; --train_dir takes"
    ):
        load_labelled_split(ClassificationArguments(dataset_name=[str(root)]), True)


def test_splits_are_no_classes(make):
    root = make("train/0.png", "train/1.png", "test/2.png")
    with pytest.raises(
        ValueError, match="^label_column_name: the images have no labels; for each class a folder must"
    ):
        finetune(root.parent / "out", *SCRATCH, "--train_dir", root)
    for flags in ([], ["--streaming"]):  # `datasets` gives labels by folder, which here are the splits
        with pytest.raises(ValueError, match="^label_column_name: all images to train on are of one class, 'train'"):
            finetune(root.parent / "out", *SCRATCH, "--dataset_name", root, *flags)
    assert not (root.parent / "out").exists()


def test_training_and_evaluation_agree_on_classes(make):
    train = make("cat/p/0.png", "dog/p/1.png", root="train")
    evaluation = make("dog/2.png", "cat/q/q/3.png", root="evaluation")
    folders = {"train_dir": [str(train)], "validation_dir": str(evaluation)}
    found = load_labelled_split(ClassificationArguments(**folders), False)
    assert (found.features["label"].names, found["label"]) == (["cat", "dog"], [0, 1])


# The folder of a run


def test_output_inside_of_the_data(make):
    root, other = make("a/0.png", "b/1.png"), make("0.png", root="other")
    (root.parent / "alias").symlink_to(root)
    (other / "link").symlink_to(root)
    before = sorted(root.parent.rglob("*"))
    train, out = ["--train_dir", root], root / "out"
    for output, arguments in [
        (out, train),
        (root, train),
        (root.parent / "alias" / "x" / "y", train),
        (out, ["--train_dir", root.parent / "alias"]),
        (root.parent / "other" / ".." / "images" / "out", train),
        (os.path.relpath(out), train),
        (out, ["--dataset_name", root]),
        (out, ["--train_dir", root.parent / "new", root]),
        (out, ["--train_dir", root.parent / "other", "--validation_dir", root]),
        (out, ["--train_dir", other]),  # through its link
        (out, [*train, "--resume_from_checkpoint", "last"]),
    ]:
        with pytest.raises(ValueError, match=r"^output_dir: .* lies in .* \(--.*\), where the figures"):
            pretrain(output, *arguments)
    (other / "link").unlink()
    with pytest.raises(ValueError, match=r"^output_dir: .* lies in .* \(--validation_dir\)"):
        finetune(out, *SCRATCH, "--train_dir", other, "--validation_dir", root, "--eval_only")
    (other / "link").symlink_to(root)
    assert sorted(root.parent.rglob("*")) == before


def test_data_inside_of_the_output(make):
    root = make("images/0.png", "images/1.png", "reconstructions/2.png", root="out")
    with pytest.raises(
        ValueError, match=r"^train_dir: .*/reconstructions lies in .*, which the run writes or deletes"
    ):
        pretrain(root, "--train_dir", root / "reconstructions")
    shutil.copytree(root / "images", root / "pretraining" / "images")
    check_apart(root, {"train_dir": [str(root / "images")]}, overwrite=True)  # what is written lies beside them
    with pytest.raises(
        ValueError, match=r"^train_dir: .*/images lies in .*/pretraining, which the run writes or deletes"
    ):
        pretrain(root, "--train_dir", root / "pretraining" / "images", "--overwrite_output_dir")


def test_links_do_not_repeat_images(folder):
    (folder / "cats" / "again").symlink_to(folder)
    assert len(load_images(folder, every_file=True)) == 12
