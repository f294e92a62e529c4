"""Arguments hold fields and their checks; what is loaded with them leaves them as they were parsed."""

import importlib
import inspect
import pkgutil
from dataclasses import asdict, is_dataclass

import datasets
import numpy as np
import pytest

from modeling_a2mim import arguments
from modeling_a2mim.arguments.data import (
    ClassificationArguments,
    DataArguments,
    PreTrainingDataArguments,
    images_field,
    sources_by_field,
    sources_of,
)
from modeling_a2mim.arguments.detection import DetectionArguments
from modeling_a2mim.data.decoding import open_image
from modeling_a2mim.data.labels import stored_labels
from modeling_a2mim.data.splits import (
    find_evaluation_split,
    image_samples,
    load_evaluation_split,
    load_labelled_split,
    load_pretraining_splits,
    load_training_split,
)
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages
from modeling_a2mim.tasks.detection.images import load_annotated

from ..image_files import encoded, write_images, write_parquet


# What is worked out from the fields alone.
PROPERTIES = {"optimizer_name", "optimizes_like_adam", "step_batch_size", "usual_learning_rate"}
PROPERTIES |= {"steps_per_epoch", "usual_epochs", "warms_up", "get_warmup_steps"}


def test_arguments_have_no_behaviour():
    found = {}
    for module in pkgutil.iter_modules(arguments.__path__):
        module = importlib.import_module(f"{arguments.__name__}.{module.name}")
        for name, kind in inspect.getmembers(module, is_dataclass):
            if name.endswith("Arguments") and kind.__module__ == module.__name__:
                public = {
                    n for n, v in vars(kind).items() if inspect.isroutine(v) or isinstance(v, property | classmethod)
                }
                found[name] = {n for n in public if not n.startswith("_")}
    assert len(found) == 17
    assert {name: methods - PROPERTIES for name, methods in found.items() if methods - PROPERTIES} == {
        "A2MIMTrainingArguments": {"from_plain"}
    }


def folder_of_splits(folder):
    write_parquet(folder / "train-0.parquet", 4)
    write_parquet(folder / "test-0.parquet", 2)
    return folder


def test_the_split_to_evaluate_on_is_found_and_not_written_down(tmp_path):
    args = DataArguments(dataset_name=[str(folder_of_splits(tmp_path))])
    before = asdict(args)
    split = find_evaluation_split(args)
    assert split == "test"
    assert len(load_evaluation_split(args, split)) == 2
    assert load_evaluation_split(args, None) is None
    assert asdict(args) == before
    assert find_evaluation_split(DataArguments(dataset_name=["x"], validation_split="mine")) == "mine"
    assert find_evaluation_split(DataArguments(train_dir=["x"])) is None
    assert find_evaluation_split(DataArguments(dataset_name=["x"], validation_dir="y")) is None


def test_labelled_images_know_their_split(tmp_path):
    image = {"bytes": encoded(0), "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": [image] * 4, "label": [0, 1, 0, 1]}, features=features)
    datasets.DatasetDict(train=rows, validation=rows.select([0, 1])).save_to_disk(str(tmp_path / "data"))
    args = ClassificationArguments(dataset_name=[str(tmp_path / "data")])
    before = asdict(args)
    images = LabelledImages.load(args, None)
    assert (images.split, images.rows, len(images.chosen)) == ("validation", None, 4)
    assert asdict(args) == before


def test_annotated_images_know_their_form(tmp_path):
    """A folder in YOLO's form gives boxes as COCO has them, whatever `bbox_format` says."""
    for split in ("train", "val"):
        (folder := tmp_path / split).mkdir()
        (folder / "0.png").write_bytes(encoded(0))
        (folder / "0.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("thing\n")
    args = DetectionArguments(dataset_name=[str(tmp_path)], bbox_format="yolo")
    before = asdict(args)
    images = load_annotated(args, masks=False)
    assert (images.train.box_format, images.validation.box_format, images.split) == ("coco", "coco", "validation")
    assert asdict(args) == before


def test_images_to_pretrain_on(tmp_path):
    args = PreTrainingDataArguments(dataset_name=[str(folder_of_splits(tmp_path))], holdout=1)
    train, evaluation, words = load_pretraining_splits(args)
    assert (len(train), len(evaluation), words) == (3, 1, "the training data, held out of it")
    args = PreTrainingDataArguments(dataset_name=[str(tmp_path)], validation_split="test")
    assert load_pretraining_splits(args)[2] is None


@pytest.mark.parametrize("streaming", [False, True])
def test_some_of_the_images_are_from_all_over(tmp_path, streaming):
    """Files come class by class."""
    write_images(tmp_path, [f"{name}/{i}.png" for name in ("cat", "dog", "eel") for i in range(20)])
    args = ClassificationArguments(train_dir=[str(tmp_path)], max_train_samples=12, streaming=streaming)
    split = load_labelled_split(args, True)
    assert len(split) == 12
    assert np.bincount(stored_labels(split, "label")).tolist() == [4, 4, 4]
    assert stored_labels(load_labelled_split(args, True), "label") == stored_labels(split, "label")
    args = ClassificationArguments(train_dir=[str(tmp_path)], max_train_samples=100)
    assert len(load_labelled_split(args, True)) == 60


@pytest.mark.parametrize("weights", [[0.0, 1.0], [1.0, float("nan")], [1e-9, 1.0]])
def test_weights_are_checked_before_anything_is_read(weights):
    args = DataArguments(train_dir=["nowhere", "elsewhere"], dataset_weights=weights)
    with pytest.raises(ValueError, match="^dataset_weights: "):
        load_training_split(args)


def test_repeats_are_given_when_samples_are_made(tmp_path):
    write_images(tmp_path, ["0.png", "1.png"])
    args = ClassificationArguments(train_dir=[str(tmp_path)])
    dataset = load_training_split(args)
    assert image_samples(args, dataset, None, 0, repeats=3).repeats == 3
    assert image_samples(args, dataset, None, 0).repeats == 1


def test_what_names_the_images():
    args = DataArguments(train_dir=["a", "b"], validation_dir="c")
    assert sources_of(args) == ["a", "b"]
    assert sources_by_field(args) == {"train_dir": ["a", "b"], "validation_dir": ["c"]}
    assert sources_of(DataArguments()) == [None]
    assert [images_field(DataArguments(), train) for train in (True, False)] == ["dataset_name", "validation_split"]


def test_one_limit_of_pixels():
    assert inspect.signature(open_image).parameters["max_pixels"].default == DataArguments().max_image_pixels
