"""Frequencies and variances of feature maps: of signals that are known, and for encoders of every kind."""

import json

import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextModel, SwinConfig, SwinModel, ViTConfig, ViTModel

from modeling_a2mim import A2MIMForImageClassification, A2MIMForPreTraining, A2MIMModel
from modeling_a2mim.analysis.fourier import (
    LEAST,
    diagonal,
    feature_variance,
    fourier_analysis,
    log_amplitude,
)
from modeling_a2mim.commands.fourier import main
from modeling_a2mim.encoders.sites import block_layouts
from modeling_a2mim.export.folder import export_model

from ..families import FAMILIES, family_config


pytestmark = pytest.mark.usefixtures("one_thread")


def as_published(maps: torch.Tensor) -> torch.Tensor:
    """Relative log amplitude as Park & Kim define it: of all frequencies, shifted, the diagonal from the middle on."""
    spectrum = (torch.fft.fft2(maps).abs() + LEAST).log()
    spectrum = torch.fft.fftshift(spectrum, dim=(-2, -1)).mean((0, 1))
    half = spectrum.diag()[maps.shape[-1] // 2 :]
    return half - half[0]


@pytest.mark.parametrize("side", [2, 7, 8, 14])
def test_is_the_published_one(side):
    """To 1e-12 in float64; of even sides the highest frequency (side / 2), which shifting puts first, comes on top."""
    maps = torch.randn(3, 5, side, side, dtype=torch.float64)
    found = log_amplitude(maps).mean(0)
    found, published = found - found[0], as_published(maps)
    torch.testing.assert_close(found[: len(published)], published, rtol=0, atol=1e-12)
    assert len(found) == side // 2 + 1
    _, _, frequencies = diagonal((side, side))
    assert frequencies.tolist() == [2 * step / side for step in range(side // 2 + 1)]


def test_waves():
    """A constant has frequency 0 alone, a chessboard the highest alone."""
    constant = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    chessboard = (-1.0) ** (torch.arange(8)[:, None] + torch.arange(8))[None, None].double()
    low = [np.log(LEAST)] * 4
    np.testing.assert_allclose(log_amplitude(constant)[0], [np.log(64 + LEAST), *low])
    np.testing.assert_allclose(log_amplitude(chessboard)[0], [*low, np.log(64 + LEAST)], rtol=1e-6)
    assert feature_variance(constant).item() == 0
    assert feature_variance(chessboard).item() == pytest.approx(64 / 63)


def test_maps_that_are_not_square():
    rows, columns, frequencies = diagonal((8, 12))
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert columns.tolist() == [0, 2, 3, 5, 6]
    assert frequencies.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert diagonal((1, 5))[2].tolist() == [0]
    assert log_amplitude(torch.randn(2, 3, 9, 5)).shape == (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_timm(family):
    """Each layer as a hook on the encoder itself sees it."""
    model = A2MIMForPreTraining(family_config(family))
    encoder, images = model.a2mim.encoder, torch.randn(5, 3, 64, 64)
    result = fourier_analysis(model, images, batch_size=2)
    assert result.images == 5
    assert len(result.layers) == len(result.variance) == len(result.depth) > 3
    seen, name = {}, result.layers[2]
    handle = encoder.get_submodule(name).register_forward_hook(lambda *call: seen.update(output=call[-1]))
    with torch.no_grad():
        model.eval().a2mim.encoder.forward_features(images)
    handle.remove()
    layout = block_layouts(encoder, (64, 64))[name]
    maps = layout.to_map(seen["output"], layout.grid).double()
    assert result.grids[2] == layout.grid
    np.testing.assert_allclose(result.variance[2], feature_variance(maps).mean(), rtol=1e-4)
    expected = log_amplitude(maps).mean(0)
    np.testing.assert_allclose(result.log_amplitude[2], expected - expected[0], atol=1e-3)
    assert all(amplitude[0] == 0 for amplitude in result.log_amplitude)


def test_any_holder_of_an_encoder():
    model = A2MIMForImageClassification(family_config("vit", num_labels=3)).train()
    images = torch.randn(3, 3, 64, 64)
    one = fourier_analysis(model, images)
    assert model.training
    for other in (model.a2mim, model.a2mim.encoder, model.a2mim.requires_grad_(False)):
        np.testing.assert_array_equal(fourier_analysis(other, images).variance, one.variance)
    assert [name for name in one.layers if name.startswith("blocks.")] != []
    assert not any(module._forward_hooks for module in model.a2mim.encoder.modules())


def test_plain_timm_models_of_other_sizes():
    model = timm.create_model("test_vit", img_size=(32, 64), in_chans=1)
    result = fourier_analysis(model, torch.randn(2, 1, 32, 64))
    assert set(result.grids) == {(2, 4)}
    with pytest.raises(ValueError, match="^image_size: VisionTransformer cannot take images of 30 x 64 px"):
        fourier_analysis(model, torch.randn(2, 1, 30, 64))


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("model", "grids"),
    [
        (lambda: ViTModel(ViTConfig(image_size=32, patch_size=8, **SMALL)), [(4, 4)] * 3),
        (
            lambda: SwinModel(SwinConfig(image_size=64, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=2)),
            [(16, 16), (8, 8), (8, 8)],
        ),
        (lambda: ConvNextModel(ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)), None),
    ],
)
def test_hidden_states_of_transformers(model, grids):
    model = model()
    size = getattr(model.config, "image_size", 64)
    images = torch.randn(3, 3, size, size)
    result = fourier_analysis(model, images)
    assert result.layers == [f"hidden_states.{i}" for i in range(len(result.layers))]
    assert grids is None or result.grids == grids
    with torch.no_grad():
        output = model.eval()(images, output_hidden_states=True)
    state = (getattr(output, "reshaped_hidden_states", None) or output.hidden_states)[1]
    if state.ndim == 3:  # the class token is no part of the map
        state = state[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    np.testing.assert_allclose(result.variance[1], state.flatten(2).var(2).mean(), rtol=1e-4)


def test_bad_input():
    model = A2MIMModel(family_config("resnet"))
    with pytest.raises(ValueError, match="^images: there are none"):
        fourier_analysis(model, [])
    with pytest.raises(ValueError, match="^images: the model gives features that are not finite"):
        fourier_analysis(model, torch.full((1, 3, 64, 64), torch.nan))
    with pytest.raises(ValueError, match="^batch_size: "):
        fourier_analysis(model, torch.zeros(1, 3, 64, 64), batch_size=0)
    with pytest.raises(ValueError, match="^model: Linear is neither of timm nor of transformers"):
        fourier_analysis(nn.Linear(3, 3), torch.zeros(1, 3, 64, 64))


def test_command(tmp_path, capsys):
    for family in ("vit", "resnet"):
        export_model(A2MIMForPreTraining(family_config(family)), tmp_path / family)
    folders = [str(tmp_path / family) for family in ("vit", "resnet")]
    main([*folders, "--names", "one", "two", "--images", "3", "--out", str(tmp_path / "out"), "--device", "cpu"])
    text = (tmp_path / "out" / "fourier.json").read_text()
    record = json.loads(text)
    assert list(record["models"]) == ["one", "two"]
    layer = record["models"]["one"]["layers"][0]
    assert layer.keys() == {"name", "grid", "frequency_over_pi", "relative_log_amplitude", "variance"}
    assert str(tmp_path) not in text
    assert (tmp_path / "out" / "fourier.png").read_bytes().startswith(b"\x89PNG")
    again = [folders[0], "--images", "3", "--out", str(tmp_path / "out"), "--device", "cpu"]
    with pytest.raises(SystemExit):
        main(again)
    assert "fourier.json is there already; give --overwrite to replace it" in capsys.readouterr().err
    assert (tmp_path / "out" / "fourier.json").read_text() == text
    main([*again, "--overwrite"])
    assert list(json.loads((tmp_path / "out" / "fourier.json").read_text())["models"]) == ["vit"]
