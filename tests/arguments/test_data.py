"""What arguments of data are refused, and the sources that they name."""

import pytest

from modeling_a2mim.arguments.data import (
    ClassificationArguments,
    DataArguments,
    PreTrainingDataArguments,
    images_field,
    sources_by_field,
    sources_of,
)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (DataArguments, {"crop_scale": [0.9, 0.5]}, "^crop_scale: expected 0 < smallest <= largest <= 1"),
        (DataArguments, {"dataset_name": ["a"], "train_dir": ["b"]}, "^dataset_name: give either"),
        (DataArguments, {"max_train_samples": 0}, "^max_train_samples: must be at least 1, got 0"),
        (DataArguments, {"read_retries": -1}, "^read_retries: must be at least 0"),
        (DataArguments, {"max_skipped_ratio": 2.0}, r"^max_skipped_ratio: must be in \[0, 1\]"),
        (DataArguments, {"train_dir": ["a", "b"], "dataset_weights": [1.0]}, "^dataset_weights: there are 2 sources"),
        (DataArguments, {"train_dir": ["a", "b", "a/"]}, "^train_dir: a b a/ names a source twice"),
        (DataArguments, {"dataset_name": ["org/a", "org/a"]}, "^dataset_name: org/a org/a names a source twice"),
        (DataArguments, {"train_dir": ["a", "b"], "max_train_samples": 1}, "^max_train_samples: cannot be used with"),
        (PreTrainingDataArguments, {"holdout": 0}, "^holdout: must be at least 1"),
        (PreTrainingDataArguments, {"holdout": 1, "validation_dir": "a"}, "^holdout: give either it or images"),
        (PreTrainingDataArguments, {"holdout": 1, "max_eval_samples": 1}, "^max_eval_samples: --holdout says"),
        (PreTrainingDataArguments, {"grayscale": 1.5}, r"^grayscale: must be in \[0, 1\]"),
        (PreTrainingDataArguments, {"color_jitter": float("inf")}, "^color_jitter: must be a finite number"),
        (
            ClassificationArguments,
            {"labels_per_class": 1, "label_fraction": 0.1},
            "^label_fraction: give either it or",
        ),
        (ClassificationArguments, {"labels_per_class": 1, "streaming": True}, "^labels_per_class: a stream cannot"),
        (ClassificationArguments, {"seeds": [1, 2, 1]}, r"^seeds: \[1, 2, 1\] repeats one"),
        (ClassificationArguments, {"train_dir": ["a", "b"]}, "^train_dir: labelled images come from one source"),
    ],
)
def test_what_is_refused(kind, given, message):
    with pytest.raises(ValueError, match=message):
        kind(**given)


def test_sources():
    bundled, mixed = DataArguments(), DataArguments(train_dir=["a", "b"], validation_dir="c")
    assert (sources_of(bundled), sources_of(mixed)) == ([None], ["a", "b"])
    assert sources_by_field(bundled) == {"dataset_name": [None], "validation_dir": [None]}
    assert sources_by_field(mixed) == {"train_dir": ["a", "b"], "validation_dir": ["c"]}
    assert [images_field(args, train=False) for args in (bundled, mixed)] == ["validation_split", "validation_dir"]
