"""Metadata files beside images, as imagefolder documents them."""

import logging
from pathlib import Path

import pytest

from modeling_a2mim.arguments.data import ClassificationArguments, PreTrainingDataArguments
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.data.splits import load_labelled_split, load_pretraining_splits
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages

from ...image_files import (
    both,
    classes,
    metadata,
    names,
)
from ...integration.test_scripts import SMALL, finetune, pretrain


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]


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
        # The first is of datasets 5.2, the second of 5.0.
        (["file_name,label", "../other.png,x"], "(cannot be read as metadata of images: .*other.png|names none)"),
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
