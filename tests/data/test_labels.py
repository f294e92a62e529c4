"""Images without labels, and classes that are told apart by their names."""

import json
import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pillow

from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.data.dataset import ImageSamples
from modeling_a2mim.data.decoding import BrokenImage
from modeling_a2mim.data.held_out import spread_rows
from modeling_a2mim.data.labels import encode_classes, has_label, labelled, with_column
from modeling_a2mim.data.splits import load_labelled_split
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages

from ..integration.test_scripts import SMALL, finetune


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
SCRATCH = SMALL[:4]


def images_of(labels, kind=None, name="label"):
    """A dataset of grey images, each darker than the next one, with these labels."""
    pixels = [Pillow.fromarray(np.full((32, 32), 5 * i + 10, np.uint8)) for i in range(len(labels))]
    features = {"image": Image()} if kind is None else {"image": Image(), name: kind}
    dataset = Dataset.from_dict({"image": pixels}, Features({"image": Image()}))
    if kind is None:
        return dataset.add_column(name, labels)
    return dataset.add_column(name, labels, feature=features[name])


def saved(folder, **splits):
    DatasetDict(splits).save_to_disk(str(folder))
    return folder


PETS = ClassLabel(names=["cat", "dog"])


def test_what_is_a_label():
    assert [has_label(v, PETS) for v in (0, 1, -1, None)] == [True, True, False, False]
    assert [has_label(v, Value("int64")) for v in (0, -2, -1, None)] == [True, True, False, False]
    assert [has_label(v, Value("string")) for v in ("-1", "a", "", "  ")] == [True, True, False, False]
    assert [has_label(v, Value("float64")) for v in (0.0, -1.0, float("nan"))] == [True, False, False]
    assert has_label(False, Value("bool"))


@pytest.mark.parametrize(
    ("values", "expected", "names"),
    [
        (["dog", None, "cat", "", "dog"], [1, None, 0, None, 1], ["cat", "dog"]),
        ([10, 2, -1, None], [0, 1, None, None], ["10", "2"]),
        ([1.0, None, 0.0, float("nan")], [1, None, 0, None], ["0", "1"]),  # as pandas reads whole numbers with gaps
    ],
)
def test_words_and_numbers_as_classes(values, expected, names):
    encoded = encode_classes(images_of(values), "label")
    assert list(encoded["label"]) == expected
    assert encoded.features["label"].names == names
    with pytest.raises(ValueError, match=r"holds fractions.*--problem_type regression"):
        encode_classes(images_of([0.5, 1.0]), "label")
    with pytest.raises(ValueError, match=r"--problem_type multi_label_classification"):
        encode_classes(images_of([[0], [1]]), "label")


def test_images_without_labels_are_left_out_and_counted(tmp_path, caplog):
    train = [0, 1, -1, 0, 1, None, 0, 1, -1, 0, 1, 0]
    rows = [row for row, label in enumerate(train) if label in (0, 1)]
    data = {"train": images_of(train, PETS), "test": images_of([-1, 0, 1, None, 1, 0], PETS)}
    whole = {"train": data["train"].select(rows), "test": data["test"].select([1, 2, 4, 5])}
    found = {}
    for name, splits in (("gaps", data), ("whole", whole)):
        saved(tmp_path / name, **splits)
        out = tmp_path / f"{name}-out"
        with caplog.at_level(logging.WARNING, "a2mim"):
            caplog.clear()
            finetune(out, *SCRATCH, "--dataset_name", tmp_path / name, "--knn")
        lines = [record.message for record in caplog.records if "have no label" in record.message]
        found[name] = json.loads((out / "results.json").read_text())["results"], lines
    assert found["gaps"][0] == found["whole"][0]
    assert found["gaps"][0][0]["images"] == 9
    assert found["whole"][1] == []
    missing = "have no label (column 'label' holds nothing or -1) and are left out"
    assert found["gaps"][1] == [
        f"dataset_name: 3 of the 12 images to train on {missing}",
        f"validation_split: 2 of the 6 images to evaluate on {missing}",
    ]
    metrics = finetune(tmp_path / "tuned", *SCRATCH, "--dataset_name", tmp_path / "gaps")
    record = json.loads((tmp_path / "tuned" / "training.json").read_text())
    assert (record["images"], record["evaluation"]["images"]) == (9, 4)
    assert record["evaluation_counts"] == {"cat": 2, "dog": 2}
    assert metrics["eval_accuracy"] in (0, 0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize("labels", [[-1, -1], [None, -1]])
def test_no_labels_at_all(tmp_path, labels):
    saved(tmp_path / "data", train=images_of([0, 1], PETS), test=images_of(labels, PETS))
    saved(tmp_path / "one", train=images_of([1, 1, -1], PETS))
    for more in ([], ["--knn"]):
        with pytest.raises(
            ValueError, match="^validation_split: none of the 2 images to evaluate on has a label, col"
        ):
            finetune(tmp_path / "out", *SCRATCH, "--dataset_name", tmp_path / "data", *more)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="^label_column_name: all images to train on are of one class, 'dog'"):
        finetune(tmp_path / "out", *SCRATCH, "--dataset_name", tmp_path / "one")


def test_streams_without_labels(tmp_path):
    images_of([0, -1, 1, None, 1], PETS).to_parquet(tmp_path / "train-0.parquet")
    args = ClassificationArguments(dataset_name=[str(tmp_path)], streaming=True)
    images = LabelledImages.load(args, None)
    assert images.counts(images.train) == [1, 2]
    samples = ImageSamples(images.train, lambda image: {}, "image", "label")
    assert [int(sample["labels"]) for sample in samples.first(3)] == [0, 1, 1]
    # What cannot be known before it is read counts as broken.
    source = load_labelled_split(args, True)
    samples = ImageSamples(source, lambda image: {}, "image", "label")
    for row in (1, 3):
        with pytest.raises(BrokenImage, match="has no label$"):
            samples[row]


def test_some_rows_of_a_stream_have_their_labels(tmp_path):
    labels = [0, -1, 1, 0]
    images_of(labels, PETS).to_parquet(tmp_path / "train-0.parquet", batch_size=2)
    args = ClassificationArguments(dataset_name=[str(tmp_path)], streaming=True, max_train_samples=3)
    rows = spread_rows(3, [2, 2]).tolist()
    assert load_labelled_split(args, True).column("label") == [labels[row] for row in rows]
    left = labelled(load_labelled_split(args, True), "label", "dataset_name", "train on")
    assert left.column("label") == [labels[row] for row in rows if labels[row] >= 0]


def test_a_validation_set_that_lacks_classes(tmp_path, caplog):
    three = ClassLabel(names=["cat", "cow", "dog"])
    saved(
        tmp_path / "data",
        train=images_of([0, 1, 2, 2], three),
        test=images_of(["dog", "cat", "dog"], None, "labels"),  # not numbers, not in this order, in another column
    )
    images = LabelledImages.load(ClassificationArguments(dataset_name=[str(tmp_path / "data")]), None)
    assert images.names == ["cat", "cow", "dog"]
    assert list(images.validation["label"]) == [2, 0, 2]
    assert images.metrics()["recall_dog"] is True
    assert not {"recall_cow", "precision_cow"} & set(images.metrics())
    argv = [*SCRATCH, "--dataset_name", tmp_path / "data"]
    with caplog.at_level(logging.WARNING, "a2mim"):
        metrics = finetune(tmp_path / "out", *argv)
    assert "no images to evaluate on of 1 of the 3 classes: cow" in caplog.text
    assert {"eval_recall_dog", "eval_auroc"} <= set(metrics)
    assert "eval_recall_cow" not in metrics
    again = finetune(tmp_path / "again", *argv[4:], "--model_name_or_path", tmp_path / "out", "--eval_only")
    kept = [name for name in metrics if name.startswith("eval_") and not name.endswith(("runtime", "second"))]
    assert {name: again[name] for name in kept} == pytest.approx({name: metrics[name] for name in kept})


def test_a_validation_class_that_is_not_known(tmp_path):
    saved(
        tmp_path / "data",
        train=images_of(["cat", "dog", "cat"]),
        test=images_of(["dog", "yak", "yak", "gnu"]),
        one=images_of(["dog", "dog"]),
    )
    argv = ["--dataset_name", tmp_path / "data"]
    message = r"2 of its classes are not those {} \('cat', 'dog'\): 'yak' \(2 images\), 'gnu' \(1 images\); leave"
    with pytest.raises(ValueError, match=f"^validation_split: {message.format('trained on')}"):
        finetune(tmp_path / "out", *SCRATCH, *argv)
    assert not (tmp_path / "out").exists()
    metrics = finetune(tmp_path / "out", *SCRATCH, *argv, "--validation_split", "one")
    assert not {"eval_auroc", "eval_average_precision"} & set(metrics)  # there is no rest
    with pytest.raises(ValueError, match=f"^validation_split: {message.format('of the model')}"):
        finetune(tmp_path / "eval", *argv, "--model_name_or_path", tmp_path / "out", "--eval_only")
    best = ["--validation_split", "one", "--metric_for_best_model", "auroc"]
    with pytest.raises(ValueError, match="^metric_for_best_model: no evaluation gives 'auroc'"):
        finetune(tmp_path / "best", *SCRATCH, *argv, *best)


def test_images_are_not_copied():
    dataset = images_of([0, 1, 1])
    other = with_column(dataset, "label", ["a", "b", None], Value("string"))
    assert list(other["label"]) == ["a", "b", None]
    assert other.data["image"].chunk(0).field("bytes").buffers()[2].address == (
        dataset.data["image"].chunk(0).field("bytes").buffers()[2].address
    )


def test_minus_one_is_no_class(tmp_path, caplog):
    saved(tmp_path / "data", train=images_of([-1, 1, -1, 1]))
    with pytest.raises(ValueError, match=r"^label_column_name: column 'label' has fewer than two classes: \['1'\]"):
        finetune(tmp_path / "out", *SCRATCH, "--dataset_name", tmp_path / "data")
    assert "2 of the 4 images to train on have no label (column 'label' holds nothing or -1)" in caplog.text
