"""What arguments of segmentation and detection are refused."""

import pytest

from modeling_a2mim.arguments.dense import DenseArguments, DenseModelArguments, DenseTrainingArguments


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (DenseModelArguments, {"architecture": "test_vit", "drop_path": 1.0}, "^drop_path: "),
        (DenseArguments, {}, "^dataset_name: annotated images are needed"),
        (DenseArguments, {"dataset_name": ["a", "b"]}, "^dataset_name: annotated images come from one"),
        (DenseArguments, {"train_dir": ["a"], "crop_scale": [0.5, 1.0]}, "^crop_scale: "),
        (DenseTrainingArguments, {"output_dir": "x", "layer_decay": 0.0}, "^layer_decay: "),
    ],
)
def test_what_is_refused(kind, given, message):
    with pytest.raises(ValueError, match=message):
        kind(**given)
