"""Folders as people have them: splits, classes, thumbnails, metadata; the same with and without streaming."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from modeling_a2mim.arguments.data import ClassificationArguments, PreTrainingDataArguments
from modeling_a2mim.data.formats.image_folders import split_kinds
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.sources import DatasetSource
from modeling_a2mim.data.splits import class_names, load_labelled_split, load_pretraining_splits
from modeling_a2mim.tasks.labelled_images import LabelledImages
from modeling_a2mim.training.outputs import check_apart

from .test_scripts import SMALL, finetune, pretrain


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]


@pytest.fixture
def make(tmp_path):
    """Images by their names below a folder, each of its own grey."""

    def make_images(*names: str, root: str = "images") -> Path:
        for number, name in enumerate(names):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(path, "PNG")
        return tmp_path / root

    return make_images


def names(root: Path, dataset) -> list[str]:
    """The images of what was loaded, relative to its folder, sorted."""
    rows = (dataset.dataset if isinstance(dataset, DatasetSource) else dataset).data["image"]
    indices = getattr(dataset.dataset if isinstance(dataset, DatasetSource) else dataset, "_indices", None)
    rows = rows.take(indices.column(0)) if indices is not None else rows
    return sorted(os.path.relpath(row["path"], root) for row in rows.to_pylist())


def both(root: Path, **options) -> Dataset:
    """What is loaded, which is the same streamed."""
    prepared, streamed = (load_images(root, streaming=streaming, **options) for streaming in (False, True))
    assert isinstance(streamed, DatasetSource)
    assert names(root, prepared) == names(root, streamed)
    assert prepared.features == streamed.dataset.features
    others = [column for column in prepared.column_names if column != "image"]
    assert [prepared[c] for c in others] == [streamed.dataset[c] for c in others]
    return prepared


def classes(root: Path, streaming: bool = False, **options) -> dict[str, int]:
    """The classes that are trained on, and how many images each has."""
    arguments = ClassificationArguments(streaming=streaming, **options)
    dataset = load_labelled_split(arguments, True)
    column, found = class_names(dataset)
    return dict(zip(found, LabelledImages(dataset, None, column, found).counts(dataset), strict=True))


# Splits


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


# Words in names, as `datasets` reads them


def test_words_of_splits_in_names(make, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    root = make("photo of a train.png", *(f"{i}.png" for i in range(5)))
    for streaming in (False, True):
        with pytest.raises(
            ValueError,
            match=r"train \(1 images, such as photo of a train\.png\); 5 are in none, such as 0\.png; use --train_dir",
        ):
            load_images(root, streaming=streaming)
    with pytest.raises(ValueError, match="5 are in none"):
        pretrain(root.parent / "out", "--dataset_name", root)
    assert not (root.parent / "out").exists()
    assert len(both(root, every_file=True)) == 6
    stations = make("train station/0.png", "airport/1.png", "airport/2.png", root="places")
    with pytest.raises(ValueError, match="train .*train station/0.png.*; 2 are in none, such as airport/1.png"):
        load_images(stations)
    capitals = make("Train/a/0.png", "Test/a/1.png", root="capitals")
    with pytest.raises(ValueError, match="takes Test, Train for folders of the split train, as it knows splits by"):
        load_images(capitals)
    plain = make("train/a/0.png", "train/b/1.png", "test/a/2.png", "banner.png", root="plain")
    assert names(plain, both(plain)) == ["train/a/0.png", "train/b/1.png"]
    assert "1 images are in none of its splits and left out, such as banner.png" in caplog.text
    assert "train (2 images, such as train/a/0.png); test (1 images" in caplog.text


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


def test_classes_by_datasets(make, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    root = make("x/train/cat/p1/0.png", "x/train/dog/p2/1.png", "x/test/cat/p3/2.png")
    shutil.move(root / "x" / "train", root / "train")
    shutil.move(root / "x" / "test", root / "test")
    (root / "x").rmdir()
    for streaming in (False, True):  # those of all splits
        assert classes(root, streaming, dataset_name=[str(root)]) == {"p1": 1, "p2": 1, "p3": 0}


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


# Metadata


def metadata(folder: Path, *rows: str, name: str = "metadata.csv"):
    (folder / name).write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("by", ["train_dir", "dataset_name"])
def test_metadata_says_which_images_there_are(make, caplog, by):
    root = make(*(f"{'ward a' if i % 2 else 'ward b'}/{i}.png" for i in range(8)))
    metadata(root, "file_name,label", "ward b/0.png,sick", "ward a/1.png,well", "./ward b/2.png,well", "gone.png,well")
    for streaming in (False, True):
        assert classes(root, streaming, **{by: [str(root)]}) == {"sick": 1, "well": 2}
        train, *_ = load_pretraining_splits(PreTrainingDataArguments(**{by: [str(root)]}, streaming=streaming))
        assert len(train) == 3
    options = {"every_file": by == "train_dir"}
    assert names(root, both(root, **options)) == ["ward a/1.png", "ward b/0.png", "ward b/2.png"]
    assert "5 images are left out, as metadata.csv does not name them, such as ward a/3.png" in caplog.text
    assert "1 images that metadata.csv names are not there, such as gone.png" in caplog.text


def test_metadata_of_each_folder(make, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    root = make("a/0.png", "a/1.png", "b/0.png", "b/1.png")
    for folder in (root / "a", root / "b"):
        metadata(
            folder,
            '{"file_name": "0.png", "label": "x"}',
            '{"file_name": "1.png", "label": "y"}',
            name="metadata.jsonl",
        )
    assert both(root)["label"] == both(root, every_file=True)["label"] == ["x", "y", "x", "y"]
    LabelledImages.load(ClassificationArguments(train_dir=[str(root)], streaming=True), None).check()
    assert "training: 2 classes by column label of metadata.jsonl: x 2, y 2" in caplog.text


def test_metadata_at_the_root_of_splits(make, monkeypatch, caplog):
    root = make("train/0.png", "train/1.png", "test/2.png", "test/3.png")
    metadata(root, "file_name,label", "train/0.png,x", "train/1.png,y", "test/2.png,x", "test/3.png,y")
    assert both(root, every_file=True, needs="labels")["label"] == ["x", "y"]
    assert names(root, both(root, every_file=True, train=False)) == ["test/2.png", "test/3.png"]
    monkeypatch.chdir(root.parent)
    assert both(Path("images"), every_file=True, train=False)["label"] == ["x", "y"]
    assert "metadata.csv" not in caplog.text  # nothing is outside of it


def test_metadata_on_the_hub(make, hub, caplog):
    """Streamed, too, the file says which images there are."""
    root = make("a/0.png", "a/1.png", "b/2.png")
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}
    hub.put("org/wards", files | {"metadata.csv": b"file_name,label\na/0.png,x\nb/2.png,y\n"}, repo_type="dataset")
    for streaming in (False, True):
        assert classes(root, streaming, dataset_name=["org/wards"]) == {"x": 1, "y": 1}
    assert "1 images are left out, as metadata.csv does not name them, such as " in caplog.text
    source = load_images("org/wards", streaming=True).select("image", "label")
    assert [label for _, label in source.read([0, 1])] == ["x", "y"]
    assert source.read([1])[0][0]["bytes"] == files["b/2.png"]


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (["isic_id,diagnosis", "0,a", "1,b"], "has no column file_name"),
        (["file_name;label", "a/0.png;x"], "has no column file_name"),
        (["file_name,label"], "has no rows"),
        (["file_name,label", "../other.png,x"], "cannot be read as metadata of images: .*other.png"),
        (["file_name,label", "0,x", "1,y"], "has no column file_name that holds names of images"),
        (["file_name,label", "a.png,x", ",y"], "names none of the images"),
    ],
)
def test_metadata_that_is_not_of_imagefolder(make, caplog, rows, what):
    root = make("a/0.png", "b/1.png")
    metadata(root, *rows)
    for arguments in ({"train_dir": [str(root)]}, {"dataset_name": [str(root)]}):
        with pytest.raises(
            ValueError, match=rf"/images/metadata\.csv ({what}).*; correct it, or move it out of the folder"
        ):
            load_labelled_split(ClassificationArguments(**arguments), True)
        for streaming in (False, True):
            train, *_ = load_pretraining_splits(PreTrainingDataArguments(**arguments, streaming=streaming))
            assert len(train) == 2
    assert "it is not needed here, and ignored: all images are used" in caplog.text


def test_commands_with_metadata_of_others(make):
    root = make("a/0.png", "b/1.png")
    metadata(root, "isic_id,diagnosis", "0,x")
    with pytest.raises(ValueError, match=r"/images/metadata\.csv has no column file_name"):
        finetune(root.parent / "out", *SCRATCH, "--train_dir", root)
    assert not (root.parent / "out").exists()
    pretrain(root.parent / "out", "--train_dir", root, "--streaming", "--max_steps", 1)
    assert (root.parent / "out" / "model.safetensors").is_file()


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
