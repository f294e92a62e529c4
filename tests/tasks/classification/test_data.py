"""The images that a classifier is trained on: drawn, kept in a file, and at another size."""

import pytest
from datasets import ClassLabel, Dataset, Features

from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.tasks.classification.data import SUBSET, choose_rows, keep_subset
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages

from ...integration.test_scripts import finetune


pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def test_sizes_that_an_encoder_does_not_take(tmp_path):
    vit = ["--architecture", "vit_tiny_patch16_224", "--model_args", '{"depth": 1, "embed_dim": 24}']
    vit += ["--image_size", 64, "--train_image_size", 48]
    with pytest.raises(
        ValueError, match="^train_image_size: vit_tiny_patch16_224 takes images of 64 x 64 px and no others"
    ):
        finetune(tmp_path / "out", *vit)


def test_a_subset_is_drawn_and_found_again(tmp_path):
    labels = [0, 1] * 6
    rows = Dataset.from_dict({"label": labels}, features=Features({"label": ClassLabel(names=["cat", "dog"])}))
    images = LabelledImages(rows, None, "label", ["cat", "dog"])
    assert choose_rows(ClassificationArguments(), images, 0) is None
    few = ClassificationArguments(labels_per_class=2)
    drawn = choose_rows(few, images, 3)
    assert sorted(labels[row] for row in drawn) == [0, 0, 1, 1]
    assert choose_rows(few, images, 3) == drawn
    keep_subset(str(tmp_path / "out"), drawn, few, images, 3)
    kept = ClassificationArguments(label_subset=str(tmp_path / "out" / SUBSET))
    assert choose_rows(kept, images, 4) == drawn
