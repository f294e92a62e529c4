"""The images that a classifier is trained on: drawn, kept in a file, and at another size."""

import shutil

import pytest

from modeling_a2mim.arguments.data import ClassificationArguments
from modeling_a2mim.tasks.classification.data import SUBSET, choose_rows, keep_subset
from modeling_a2mim.tasks.classification.labelled_images import LabelledImages

from ...image_files import write_images
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
    def opened(folder, **given):
        args = ClassificationArguments(train_dir=[str(folder)], **given)
        return args, LabelledImages.load(args, None)

    root, kept = tmp_path / "train", {"label_subset": str(tmp_path / "out" / SUBSET)}
    write_images(root, [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(1, 7)])
    assert choose_rows(*opened(root), 0) is None
    few, images = opened(root, labels_per_class=3)
    drawn = choose_rows(few, images, 3)
    labels = images.train["label"]
    assert sorted(labels[row] for row in drawn) == [0, 0, 0, 1, 1, 1]
    assert choose_rows(few, images, 3) == drawn
    keep_subset(str(tmp_path / "out"), drawn, few, images, 3)
    assert choose_rows(*opened(root, **kept), 4) == drawn
    shutil.copytree(root, tmp_path / "elsewhere" / "other")
    assert choose_rows(*opened(tmp_path / "elsewhere" / "other", **kept), 4) == drawn
    (root / "cat" / "6.png").rename(root / "cat" / "0.png")
    with pytest.raises(ValueError, match="^label_subset: the rows in subset.json are other images"):
        choose_rows(*opened(root, **kept), 4)
