"""The command that compares the interactions of several classifiers."""

import json

import numpy as np
import pytest

from modeling_a2mim import A2MIMForImageClassification
from modeling_a2mim.commands.interactions import main
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.export.folder import export_model

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """Two classifiers of the bundled sample's classes."""
    folder = tmp_path_factory.mktemp("classifiers")
    names = load_images().features["label"].names
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    for family in ("vit", "resnet"):
        config = family_config(family, image_size=32, num_channels=1, **labels)
        export_model(A2MIMForImageClassification(config), folder / family)
    return folder


COMMAND = ["--images", "4", "--grid", "4", "--ratios", "0", "0.5", "1", "--pairs", "5", "--contexts", "3"]


def test_command(classifiers, tmp_path, capsys):
    models, out = [str(classifiers / family) for family in ("vit", "resnet")], tmp_path / "out"
    main([*models, "--names", "a ViT", "a CNN", *COMMAND, "--device", "cpu", "--out", str(out)])
    assert {path.name for path in out.iterdir()} == {
        "interactions.json", "interactions.png", "a_ViT.npz", "a_CNN.npz"
    }  # fmt: skip
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| order m | a ViT | a CNN |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| 0", "| 7", "| 14"]
    text = (out / "interactions.json").read_text()
    assert str(tmp_path) not in text
    assert str(classifiers) not in text
    record = json.loads(text)["models"]
    assert record["a ViT"]["settings"] == record["a CNN"]["settings"]
    assert record["a ViT"]["settings"]["pairs"] == 5
    assert record["a ViT"]["images"] == 4
    assert list(json.loads(text)["differences"]) == ["a CNN - a ViT"]
    # The same command once more: everything is there, to the last digit.
    again = [np.load(out / name)["interactions"] for name in ("a_ViT.npz", "a_CNN.npz")]
    main([*models, "--names", "a ViT", "a CNN", *COMMAND, "--device", "cpu", "--out", str(out)])
    assert (out / "interactions.json").read_text() == text
    assert again[0].shape == (4, 3, 5)
    with pytest.raises(SystemExit) as stopped:
        main([*models, "--names", "a ViT", "a CNN", *COMMAND, "--seed", "1", "--device", "cpu", "--out", str(out)])
    assert stopped.value.code == 2
    assert "resume: " in capsys.readouterr().err
    # Fewer models: those that are left out would be lost.
    fewer = [models[1], "--names", "a CNN", *COMMAND, "--device", "cpu", "--out", str(out)]
    with pytest.raises(SystemExit):
        main(fewer)
    assert "interactions.json is there already; give --overwrite to replace it" in capsys.readouterr().err
    assert (out / "interactions.json").read_text() == text
    main([*fewer, "--seed", "1", "--overwrite"])
    assert {path.name for path in out.iterdir()} == {"interactions.json", "interactions.png", "a_CNN.npz"}
    # More models: nothing is lost, and nothing measured again.
    before = (out / "a_CNN.npz").stat().st_mtime_ns
    main([*models, "--names", "a ViT", "a CNN", *COMMAND, "--seed", "1", "--device", "cpu", "--out", str(out)])
    assert (out / "a_CNN.npz").stat().st_mtime_ns == before
    assert list(json.loads((out / "interactions.json").read_text())["models"]) == ["a ViT", "a CNN"]


def test_command_of_what_cannot_be(classifiers, tmp_path, capsys):
    model, out = str(classifiers / "vit"), str(tmp_path / "out")
    for argv, message in (
        (["--pairs", "99999"], "error: pairs: a grid of 14 x 14"),
        (["--label_column_name", "none"], "error: label_column_name: the dataset has no column 'none'"),
        (["--labels", "predicted", "--label_column_name", "a"], "error: label_column_name: has no effect with --la"),
        (["--dataset", "./nothing"], "error: ./nothing: no such file or folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([model, *argv, "--device", "cpu", "--out", out])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
