"""What a training record says of the data."""

from modeling_a2mim.arguments.data import ClassificationArguments, PreTrainingDataArguments
from modeling_a2mim.export.provenance import BUNDLED, classification_provenance, few_labels, pretraining_provenance


def test_the_bundled_sample():
    found = pretraining_provenance(PreTrainingDataArguments())
    assert found["datasets"] == [BUNDLED]
    assert (found["data"], found["evaluated_on"]) == ("the bundled sample of Fashion-MNIST", BUNDLED)
    assert found["evaluation_note"] == "a sample of the test split"


def test_paths_are_not_named(tmp_path):
    found = pretraining_provenance(
        PreTrainingDataArguments(train_dir=[str(tmp_path)], max_eval_samples=1000, hflip=0.0, rotate90=True)
    )
    assert str(tmp_path) not in str(found)
    assert found == {
        "datasets": [],
        "data": "images of the author",
        "evaluation_data": "the author's, held out",
        "evaluation_note": "at most 1,000 of them",
        "augmentation": "rotate90",
    }


def test_few_labels():
    assert few_labels(ClassificationArguments()) is None
    args = ClassificationArguments(dataset_name=["org/data"], labels_per_class=5)
    found = classification_provenance(args, "validation")
    assert found["evaluated_on"] == "org/data"
    assert found["evaluation_note"] == "split validation, trained with 5 labels of each class"
    assert few_labels(ClassificationArguments(label_fraction=0.1)) == "0.1 of the labels of each class"
