"""Whether images to evaluate on are trained on."""

import json

import pytest

from modeling_a2mim.arguments.data import ClassificationArguments, PreTrainingDataArguments
from modeling_a2mim.arguments.detection import DetectionArguments
from modeling_a2mim.arguments.segmentation import SegmentationArguments
from modeling_a2mim.data.overlap import evaluates_on_training
from modeling_a2mim.data.splits import load_pretraining_splits
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages
from modeling_a2mim.tasks.detection.images import load_annotated
from modeling_a2mim.tasks.segmentation.data import load_labelled

from ..image_files import write_images, write_parquet, write_tars
from ..tasks.detection.test_annotation_folders import coco, image, write


WARNING = "images to evaluate on are trained on as well"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "images"
    names = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("cat", "dog") for i in range(3)]
    write_images(folder, names)
    (folder.parent / "link").symlink_to(folder / "train")
    return folder


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        ({"train_dir": "train", "validation_dir": "test"}, False),
        ({"train_dir": "train", "validation_dir": "train"}, True),
        ({"train_dir": "train", "validation_dir": "test/../train"}, True),
        ({"train_dir": "train", "validation_dir": "../link"}, True),
        ({"dataset_name": "", "validation_dir": "test"}, False),
        ({"dataset_name": "", "validation_dir": "train"}, True),
        ({"dataset_name": "", "validation_split": "test"}, False),
        ({"dataset_name": "", "validation_split": "train"}, True),
        ({"dataset_name": ""}, False),  # the split for evaluation is found
        ({"train_dir": "train"}, False),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_files(named, seen, streaming, folder, caplog):
    named = {name: value if name.endswith("split") else str(folder / value) for name, value in named.items()}
    for name in {"train_dir", "dataset_name"} & named.keys():
        named[name] = [named[name]]
    images = LabelledImages.load(ClassificationArguments(**named, streaming=streaming), None)
    assert images.seen is seen
    assert (WARNING in caplog.text) is seen


def test_parts_of_a_mix(folder, caplog):
    for validation, seen in (("test/dog", True), ("train/dog", False)):
        args = PreTrainingDataArguments(
            train_dir=[str(folder / "train/cat"), str(folder / "test")], validation_dir=str(folder / validation)
        )
        train, evaluation, _ = load_pretraining_splits(args)
        assert evaluates_on_training(args, None, train, evaluation) is seen


def test_archives_are_told_apart_by_their_folders(tmp_path):
    for name in ("train", "test"):
        write_tars(tmp_path / name, shards=1)
    for validation, seen in (("test", False), ("train", True)):
        args = PreTrainingDataArguments(train_dir=[str(tmp_path / "train")], validation_dir=str(tmp_path / validation))
        train, evaluation, _ = load_pretraining_splits(args)
        assert evaluates_on_training(args, None, train, evaluation) is seen


def test_splits_of_parquet(tmp_path, caplog):
    for split in ("train", "validation"):
        path = write_parquet(tmp_path / f"{split}.parquet", 4, ("image", "mask"))
    path.with_name("id2label.json").write_text(json.dumps({number: f"class {number}" for number in range(100, 104)}))
    for split, seen in (("validation", False), ("train", True)):
        args = SegmentationArguments(dataset_name=[str(tmp_path)], validation_split=split)
        assert load_labelled(args).seen is seen
    assert caplog.text.count(WARNING) == 1


def test_splits_of_one_folder_in_coco_form(tmp_path):
    for split in ("train", "val"):
        image(tmp_path / split / "a.jpg")
        write(tmp_path / split / "_annotations.coco.json", coco(files=["a.jpg"]))
    whole = str(tmp_path)
    assert not load_annotated(DetectionArguments(train_dir=[whole], validation_dir=whole), masks=False).seen
    part = str(tmp_path / "val")
    assert load_annotated(DetectionArguments(train_dir=[part], validation_dir=part), masks=False).seen
