"""What a training record says of the data."""

from modeling_a2mim.arguments.data import ClassificationArguments, PreTrainingDataArguments
from modeling_a2mim.export.provenance import (
    BUNDLED,
    classification_provenance,
    few_labels,
    labels_used,
    pretraining_provenance,
)


def test_the_bundled_sample():
    found = pretraining_provenance(PreTrainingDataArguments(), seen=False)
    assert found["datasets"] == [BUNDLED]
    assert (found["data"], found["evaluated_on"]) == ("the bundled sample of Fashion-MNIST", BUNDLED)
    assert found["evaluation_note"] == "a sample of the test split"


def test_paths_are_not_named(tmp_path):
    found = pretraining_provenance(
        PreTrainingDataArguments(train_dir=[str(tmp_path)], max_eval_samples=1000, hflip=0.0, rotate90=True),
        seen=False,
    )
    assert str(tmp_path) not in str(found)
    assert found == {
        "datasets": [],
        "data": "images of the author",
        "evaluation_data": "the author's, held out",
        "evaluation_note": "at most 1,000 of them",
        "augmentation": "rotate90",
    }


def test_what_is_trained_on_is_not_held_out():
    named = {"train_dir": ["images"], "validation_dir": "images"}
    for seen, words in ((True, "the author's, which it was trained on"), (False, "the author's, held out")):
        assert pretraining_provenance(PreTrainingDataArguments(**named), seen)["evaluation_data"] == words
    args = ClassificationArguments(dataset_name=["org/data"], validation_split="train")
    found = classification_provenance(args, "train", seen=True)
    assert found["evaluation_note"] == "split train, which it was trained on"


def test_few_labels():
    some = ClassificationArguments(max_train_samples=20)
    assert labels_used(some) == "at most 20 images"
    assert classification_provenance(some, "test", False)["evaluation_note"].endswith("trained with at most 20 images")
    assert labels_used(ClassificationArguments(max_train_samples=20, labels_per_class=2)) == (
        "2 labels of each class, of at most 20 images"
    )
    assert labels_used(ClassificationArguments()) == "all labels"
    assert few_labels(ClassificationArguments()) is None
    args = ClassificationArguments(dataset_name=["org/data"], labels_per_class=5)
    found = classification_provenance(args, "validation", seen=False)
    assert found["evaluated_on"] == "org/data"
    assert found["evaluation_note"] == "split validation, trained with 5 labels of each class"
    assert few_labels(ClassificationArguments(label_fraction=0.1)) == "0.1 of the labels of each class"
