"""What tests of several tasks train on, and start from."""

import json

import pytest

from benchmarks import shapes

from ..integration.test_scripts import pretrain


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(folder, "--max_train_samples", 32)
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """16 and 5 canvases of test images (the training part takes longer to decode), and their names."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "data").mkdir()
    rows = shapes.compose("test", 21, 40, channels=3, most=2)
    for split, part in (("train", range(16)), ("validation", range(16, 21))):
        rows.select(part).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    (folder / "id2label.json").write_text(json.dumps(shapes.id2label()))
    return folder
