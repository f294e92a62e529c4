"""What commands that run a model say of images that are none for it."""

import numpy as np
import pytest
from PIL import Image

from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification, A2MIMForPreTraining
from modeling_a2mim.commands import embed, fourier, interactions, predict, reconstruct
from modeling_a2mim.export.folder import export_model

from ..image_files import write_parquet


RANGE = {"low": [0.0], "high": [4095.0]}


SAID = "value_range: the model takes values 0 to 4095, and 3 of 3 images that were looked at are of 8 bits"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of grey images of 12 bits."""
    config = A2MIMConfig.for_encoder(
        32, architecture="test_convnext", num_channels=1, value_range=RANGE, id2label={0: "a", 1: "b"}
    )
    return export_model(A2MIMForImageClassification(config).eval(), tmp_path_factory.mktemp("model"))


def write(folder, dtype):
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((40, 40), 200 + number, dtype)).save(folder / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize("command", [predict, embed])
def test_photographs_for_a_model_of_more_bits(model, command, tmp_path, capsys):
    deep, bytes_ = write(tmp_path / "deep", np.uint16), write(tmp_path / "bytes", np.uint8)
    command.main([str(model), deep, "--out", str(tmp_path / "deep.parquet")])
    with pytest.raises(SystemExit) as ended:
        command.main([str(model), bytes_, "--out", str(tmp_path / "bytes.parquet")])
    assert ended.value.code == 2
    said = "value_range: the model takes values 0 to 4095, and 3 of 3 images that were looked at are of 8 bits"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "bytes.parquet").exists()
    command.main([str(model), bytes_, "--out", str(tmp_path / "bytes.parquet"), "--value_range", "0", "255"])
    assert (tmp_path / "bytes.parquet").exists()


@pytest.mark.parametrize("command", [predict, embed])
def test_other_channels_are_told_without_flags_that_there_are_not(model, command, tmp_path, caplog, capsys):
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "a.npy", np.zeros((5, 40, 40), np.uint16))
    Image.fromarray(np.full((40, 40), 200, np.uint16)).save(tmp_path / "images" / "b.png")
    command.main([str(model), str(tmp_path / "images"), "--out", str(tmp_path / "out.parquet")])
    told = caplog.text + capsys.readouterr().err
    assert "has 5 channel(s), the model takes 1" in told
    assert "--num_channels" not in told


@pytest.mark.parametrize("command", [reconstruct, fourier, interactions])
@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
def test_photographs_for_models_that_are_compared(model, command, streaming, tmp_path, capsys):
    argv, out = [str(model)], tmp_path / "out"
    if command is reconstruct:
        config = A2MIMConfig.for_encoder(32, architecture="test_convnext", num_channels=1, value_range=RANGE)
        argv = [str(export_model(A2MIMForPreTraining(config), tmp_path / "model"))]
    if command is interactions:
        argv += ["--labels", "predicted", "--grid", "4", "--ratios", "0", "1", "--pairs", "2", "--contexts", "1"]
    argv += ["--device", "cpu", *streaming, "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        command.main([*argv, "--dataset", write(tmp_path / "bytes", np.uint8)])
    assert ended.value.code == 2
    assert SAID in capsys.readouterr().err
    assert not out.exists()
    command.main([*argv, "--dataset", write(tmp_path / "deep", np.uint16)])
    assert out.exists()


def test_a_photograph_whose_neighbors_are_asked_for(model, tmp_path, capsys):
    deep, bytes_ = write(tmp_path / "deep", np.uint16), write(tmp_path / "bytes", np.uint8)
    with pytest.raises(SystemExit):
        embed.main(
            [str(model), deep, "--out", str(tmp_path / "v.npy"), "--neighbors", "1", "--query", f"{bytes_}/0.png"]
        )
    assert "0 to 4095, and 1 of 1 images that were looked at are of 8 bits" in capsys.readouterr().err
    assert not (tmp_path / "v.npy").exists()


def test_what_would_be_taken_for_images(model, tmp_path, capsys):
    """A table beside image files is none of them."""
    folder = write(tmp_path / "deep", np.uint16)
    write_parquet(tmp_path / "shards" / "a.parquet", 3)
    for command, images, out in (
        (embed, folder, f"{folder}/v.npy"),
        (embed, str(tmp_path / "shards"), f"{tmp_path}/shards/v.parquet"),
        (predict, str(tmp_path / "shards"), f"{tmp_path}/shards/p.parquet"),
    ):
        with pytest.raises(SystemExit):
            command.main([str(model), images, "--out", out])
        assert f"error: out: {out} lies where the images are read from ({images})" in capsys.readouterr().err
    embed.main([str(model), folder, "--out", f"{folder}/v.parquet"])
    predict.main([str(model), folder, "--out", f"{folder}/p.csv", "--num_workers", "0"])
    embed.main([str(model), folder, "--out", f"{folder}/v.parquet", "--neighbors", "1"])
