"""Folders of images as rows: in order, with labels by folder, and by the splits of `datasets`."""

import json
import logging
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_a2mim.data.loading import load_images

from ...image_files import both, classes, names
from ...integration.test_scripts import pretrain


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


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


def test_names_that_are_no_text(tmp_path):
    (tmp_path / "images").mkdir()
    with open(bytes(tmp_path / "images") + b"/\xff.png", "wb"):
        pass
    with pytest.raises(ValueError, match="the name of this file is not UTF-8; rename it"):
        load_images(tmp_path / "images", every_file=True)


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


def test_classes_by_datasets(make, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    root = make("x/train/cat/p1/0.png", "x/train/dog/p2/1.png", "x/test/cat/p3/2.png")
    shutil.move(root / "x" / "train", root / "train")
    shutil.move(root / "x" / "test", root / "test")
    (root / "x").rmdir()
    for streaming in (False, True):  # those of all splits
        assert classes(root, streaming, dataset_name=[str(root)]) == {"p1": 1, "p2": 1, "p3": 0}
