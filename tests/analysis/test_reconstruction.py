"""Reconstructions: the four images, how good they are said to be, at which frequencies they err, and the panel."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_a2mim import A2MIMForPreTraining
from modeling_a2mim.analysis.reconstruction import (
    error_spectrum,
    panel,
    plot_reconstructions,
    power_spectrum,
    reconstruct,
    reconstruction_quality,
    with_mask_ratio,
)
from modeling_a2mim.commands.reconstruct import main
from modeling_a2mim.export.folder import export_model

from ..families import family_config


pytestmark = pytest.mark.usefixtures("one_thread")


def four(original: torch.Tensor, pasted: torch.Tensor) -> dict[str, torch.Tensor]:
    images = {"original": original, "masked": original, "reconstruction": pasted, "pasted": pasted}
    return images | {"mean_guess": torch.full_like(original, 0.25)}


def test_the_four_images():
    model = A2MIMForPreTraining(family_config("vit", image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.1])).train()
    pixels = torch.randn(2, 3, 64, 64)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1, 2], mask[1] = True, True
    images = reconstruct(model, pixels, mask)
    assert model.training
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.image_mean, model.config.image_std))
    original = (pixels * std + mean).clamp(0, 1)
    torch.testing.assert_close(images["original"], original)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[16:32, 32:48] = True
    for name in ("masked", "pasted"):
        assert torch.equal(images[name][0][:, ~inside], images["original"][0][:, ~inside])
    assert torch.equal(images["pasted"][0][:, inside], images["reconstruction"][0][:, inside])
    assert torch.equal(images["pasted"][1], images["reconstruction"][1])
    assert images["masked"][0][:, inside].std(1).max() < 1e-6
    assert min(image.min() for image in images.values()) >= 0
    assert max(image.max() for image in images.values()) <= 1


@pytest.mark.parametrize("clip", [True, False])
def test_values_beyond_a_range_that_cuts_nothing_off(clip):
    known = {"low": [0.0], "high": [10.0], "clip": clip}
    model = A2MIMForPreTraining(family_config("vit", value_range=known))
    pixels = torch.full((1, 3, 64, 64), 20.0)
    images = reconstruct(model, pixels, torch.zeros(1, 4, 4, dtype=torch.bool))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.image_mean, model.config.image_std))
    expected = (pixels * std + mean).clamp(max=1) if clip else pixels * std + mean
    torch.testing.assert_close(images["original"], expected)


def test_quality_by_hand():
    """An error of 0.1 in a quarter of the pixels: 10 log10(1 / 0.01) dB there, 6.02 dB more over all."""
    original = torch.full((1, 3, 32, 32), 0.5)
    pasted, mask = original.clone(), torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    pasted[..., :16, :16] += 0.1
    (quality,) = reconstruction_quality(four(original, pasted), mask)
    assert quality["masked_psnr"] == pytest.approx(20, abs=1e-5)
    assert quality["psnr"] == pytest.approx(20 + 10 * np.log10(4), abs=1e-5)
    assert quality["mean_fill_psnr"] == pytest.approx(20 * np.log10(4), abs=1e-5)
    (perfect,) = reconstruction_quality(four(original, original), mask)
    assert perfect["psnr"] == perfect["masked_psnr"] == np.inf
    assert perfect["ssim"] == pytest.approx(1)
    assert 0 < quality["ssim"] < 1


def test_similarity_by_its_formula():
    """Images that are flat but for their level have only the first factor of SSIM: (2ab + c) / (a^2 + b^2 + c)."""
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    images = four(torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6))
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert reconstruction_quality(images, mask)[0]["ssim"] == pytest.approx(expected, abs=1e-4)
    small = four(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8))
    assert np.isnan(reconstruction_quality(small, mask)[0]["ssim"])


def test_power_of_noise_and_waves():
    noise = 0.3 * torch.randn(200, 1, 32, 32, dtype=torch.float64)
    frequencies, power = power_spectrum(noise)
    assert frequencies.tolist() == [step / 32 for step in range(17)]
    # 200 images: the fewest values of a ring are 200, of exponential distribution but for frequency 0.
    np.testing.assert_allclose(power[1:], 0.09, rtol=0.25)
    wave = torch.cos(2 * torch.pi * 5 * torch.arange(32).double() / 32).expand(1, 2, 32, 32)
    _, power = power_spectrum(wave)
    assert power.argmax() == 5
    assert power[np.arange(17) != 5].max() < 1e-12 * power[5]
    assert frequencies[power.argmax()] == 5 / 32
    rectangle = power_spectrum(torch.rand(1, 1, 16, 40))[0]
    assert rectangle[-1] == 0.5


def test_spectrum_of_an_error():
    original = torch.rand(4, 3, 16, 16)
    pasted = original.clone()
    pasted += 0.25
    _, power = error_spectrum(four(original, pasted))
    assert power[0] == pytest.approx(0.25**2 * 256)
    assert power[1:].max() < 1e-6


def test_panel():
    images = {name: torch.rand(3, 1, 32, 32) for name in ("original", "masked", "reconstruction", "pasted")}
    plain = panel(images)
    assert plain.size == (4 * (128 + 4) + 4, 16 + 4 + 3 * (128 + 4))
    quality = [{"psnr": 20.0, "masked_psnr": 14.0, "mean_fill_psnr": 12.0, "ssim": 0.5}] * 3
    full = panel(images, quality, "some model, mask ratio 0.6")
    assert full.height == plain.height + 14 * (3 + 1)
    tile = np.asarray(full)[34:162, 4:132, 0]
    np.testing.assert_array_equal(tile[::4, ::4], (images["original"][0, 0] * 255).round().byte().numpy())
    columns = np.asarray(full)[34 + 128 : 34 + 142, 4:].reshape(14, 4, 132, 3).min((0, 2, 3))
    assert (columns < 128).tolist() == [False, True, False, True]
    named = np.asarray(panel(images, names=["short.png", "ä" * 80, "目.png"]))
    columns = named[20 + 128 : 20 + 142, 4:].reshape(14, 4, 132, 3).min((0, 2, 3))
    assert (columns < 128).tolist() == [True, False, False, False]
    accents = [f"{letter}.png" for letter in ("\ufffe", "é", "e\u0301", "目", "?")]  # the second and third are one
    letters = [np.asarray(panel(images, names=[name] * 3))[148:162, 4:16].tobytes() for name in accents]
    assert letters[0] == letters[3] == letters[4] != letters[1]
    assert letters[1] == letters[2]
    assert named[20 + 142 + 4 + 128 : 20 + 142 + 4 + 142, 4 + 128 :].min() == 255  # no long name runs over
    assert panel({name: torch.rand(1, 5, 200, 120) for name in images}).width == 4 * 124 + 4


@pytest.mark.parametrize("decoder", ["linear", "multiscale"])
def test_picture_of_training(decoder):
    model = A2MIMForPreTraining(family_config("resnet", decoder=decoder))
    mask = torch.zeros(10, 4, 4, dtype=torch.bool)
    mask[:, 0] = True
    picture = plot_reconstructions(model, torch.randn(10, 3, 64, 64), mask)
    assert picture.height == 16 + 4 + 8 * (128 + 4 + 14)


def test_mask_ratio():
    config = family_config("vit")
    assert with_mask_ratio(config, 0.3).num_masked == 5
    assert config.mask_ratio == 0.6
    for wrong in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="mask_ratio"):
            with_mask_ratio(config, wrong)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for family in ("vit", "resnet"):
        export_model(A2MIMForPreTraining(family_config(family)), folder / family)
    return folder


def test_command(exported, tmp_path, capsys):
    models = [str(exported / family) for family in ("vit", "resnet")]
    common = ["--images", "3", "--batch_size", "2", "--device", "cpu"]
    main([*models, *common, "--mask_ratio", "0.5", "--seed", "7", "--out", str(tmp_path / "out")])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"vit.png", "resnet.png", "reconstruction.json", "spectrum.png"}
    text = (tmp_path / "out" / "reconstruction.json").read_text()
    assert str(exported) not in text
    record = json.loads(text)["models"]
    assert list(record) == ["vit", "resnet"]
    for found in record.values():
        assert found["mask_ratio"] == 0.5
        assert len(found["images"]) == 3
        assert found["mean"]["psnr"] == pytest.approx(np.mean([i["psnr"] for i in found["images"]]), abs=1e-3)
    assert record["vit"]["rows"] == record["resnet"]["rows"]
    # Again, the same; another seed, others.
    main([models[0], *common, "--mask_ratio", "0.5", "--seed", "7", "--out", str(tmp_path / "again")])
    again = json.loads((tmp_path / "again" / "reconstruction.json").read_text())["models"]
    assert again["vit"] == record["vit"]
    main([models[0], *common, "--mask_ratio", "0.5", "--seed", "8", "--out", str(tmp_path / "other")])
    other = json.loads((tmp_path / "other" / "reconstruction.json").read_text())["models"]
    assert other["vit"]["images"] != record["vit"]["images"]
    with pytest.raises(SystemExit):
        main([models[0], "--mask_ratio", "1.5", "--out", str(tmp_path / "none")])
    assert "mask_ratio" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    with pytest.raises(SystemExit):
        main([models[0], str(tmp_path / "images"), "--out", str(tmp_path / "none")])
    assert "images is here, but is no model; images are given with --dataset" in capsys.readouterr().err
    for shown in (["4"], ["1", "2"]):
        with pytest.raises(SystemExit):
            main([models[0], "--display_channels", *shown, "--out", str(tmp_path / "none")])
        assert "display_channels: must be one or three numbers from 1 to 3" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_files_of_any_kind(exported, tmp_path, capsys):
    Image.new("RGB", (70, 50), "red").save(tmp_path / "a.jpg")
    Image.new("L", (64, 64), 99).save(tmp_path / "b.png")
    files = [str(tmp_path / name) for name in ("a.jpg", "b.png")]
    main([str(exported / "vit"), "--files", *files, "--out", str(tmp_path / "out"), "--device", "cpu"])
    record = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert len(record["models"]["vit"]["images"]) == 2
    assert record["models"]["vit"]["mask_ratio"] == 0.6
    with pytest.raises(SystemExit):
        main([str(exported / "vit"), "--files", str(tmp_path / "c.png"), "--out", str(tmp_path / "none")])
    assert "files: there is no file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(exported / "vit"), "--files", *files, "--out", str(tmp_path)])
    assert f"the folder of images {tmp_path} (--files), where the pictures would be" in capsys.readouterr().err
    few = ["--files", *files, "--images", "1", "--out", str(tmp_path / "few"), "--device", "cpu"]
    main([str(exported / "vit"), *few])
    record = json.loads((tmp_path / "few" / "reconstruction.json").read_text())
    assert len(record["models"]["vit"]["images"]) == 1


def test_results_are_replaced_only_if_asked(exported, tmp_path, capsys, caplog):
    """And then nothing stays of a model that is not among the new ones."""
    caplog.set_level(logging.INFO, "a2mim")
    out = tmp_path / "out"
    vit, resnet = ([str(exported / name)] for name in ("vit", "resnet"))
    out.mkdir()
    (out / "mine.png").write_text("mine")
    options = ["--images", "1", "--device", "cpu", "--out", str(out)]
    main([*vit, "--names", "my ViT", *options])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before.keys() == {"mine.png", "my_ViT.png", "reconstruction.json", "spectrum.png"}
    for argv, words in (
        (resnet, f"out: {out / 'reconstruction.json'} is there already; give --overwrite to replace it"),
        ([*resnet, "--overwrite", "--seed", "-1"], "seed: must be at least 0, got -1"),
        ([*resnet, "--overwrite", "--batch_size", "0"], "batch_size: must be at least 1, got 0"),
        ([*resnet, "--overwrite", "--mask_ratio", "2"], "mask_ratio"),
        ([*vit, *resnet, "--names", "a b", "a_b"], "names: a_b.png would be written twice; give each model another"),
        ([*vit, "--names", "spectrum", "--overwrite"], "names: spectrum.png would be written twice"),
    ):
        with pytest.raises(SystemExit):
            main([*argv, *options])
        assert words in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    main([*resnet, *options, "--overwrite"])
    assert {path.name for path in out.iterdir()} == {"mine.png", "resnet.png", "reconstruction.json", "spectrum.png"}
    assert f"removed: {out / 'my_ViT.png'}, of the results that were there" in caplog.text
    (out / "reconstruction.json").unlink()
    (out / "spectrum.png").unlink()
    with pytest.raises(SystemExit):  # whoever made the picture
        main([*resnet, *options])
    assert f"{out / 'resnet.png'} is there already" in capsys.readouterr().err
