"""`target="normalised"`: MAE's target, its loss, and reconstructions that are pixels again."""

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining
from modeling_a2mim.analysis.reconstruction import plot_reconstructions, reconstruct, reconstruction_quality
from modeling_a2mim.evaluation.baselines import masked_errors, mean_guess, summarise_errors
from modeling_a2mim.losses import frequency_loss, spatial_loss
from modeling_a2mim.targets import cell_statistics, normalise_cells, restore_cells

from .families import family_config


def test_target_is_that_of_mae():
    """With ours, its prediction has the loss that transformers computes."""
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    mae = ViTMAEForPreTraining(ViTMAEConfig(image_size=32, patch_size=8, norm_pix_loss=True, **small, **decoder))
    images = torch.randn(2, 3, 32, 32)
    target = mae.patchify(normalise_cells(images, cell_statistics(images, (8, 8))))
    output = mae(images)
    errors = (output.logits - target).square().mean(-1)
    torch.testing.assert_close((errors * output.mask).sum() / output.mask.sum(), output.loss)


@pytest.mark.parametrize("cell", [(8, 8), (4, 16), (32, 32)])
def test_cells_have_mean_0_and_deviation_1_and_come_back(cell):
    images = 3 * torch.randn(2, 3, 32, 32, dtype=torch.float64) + 5
    statistics = cell_statistics(images, cell)
    target = normalise_cells(images, statistics)
    first = target[0, :, : cell[0], : cell[1]]
    assert abs(first.mean()) < 1e-12
    assert abs(first.std() - 1) < 1e-6  # 1e-6 is added to the variance
    torch.testing.assert_close(restore_cells(target, statistics), images)
    means = restore_cells(torch.zeros_like(images), statistics)
    torch.testing.assert_close(means[1, 0, -1, -1], images[1, :, -cell[0] :, -cell[1] :].mean())


def test_cells_of_one_colour_are_0():
    images = torch.full((1, 1, 8, 8), 0.7)
    assert normalise_cells(images, cell_statistics(images, (4, 4))).abs().max() < 1e-3


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_losses_and_reconstruction_of_a_model(family):
    """Both losses compare with the target; what comes out is the same prediction, as pixels."""
    torch.manual_seed(0)
    config = family_config(family, target="normalised", frequency_loss_weight=0.5)
    model, images = A2MIMForPreTraining(config).eval(), torch.randn(2, 3, 64, 64)
    mask = torch.rand(2, *config.mask_grid) < 0.5
    output = model(images, mask)
    statistics = cell_statistics(images, config.mask_cell_size)
    target, prediction = normalise_cells(images, statistics), normalise_cells(output.reconstruction, statistics)
    fourier = {
        "focal": config.frequency_focal,
        "replacement": config.frequency_replacement,
        "unmasked_weight": config.frequency_unmasked_weight,
        "kind": config.spatial_loss,
    }
    torch.testing.assert_close(output.spatial_loss, spatial_loss(prediction, target, mask, config.spatial_loss))
    torch.testing.assert_close(output.frequency_loss, frequency_loss(prediction, target, mask, **fourier))
    plain = A2MIMForPreTraining(A2MIMConfig.from_dict(config.to_dict(), target="pixels")).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(images, mask).reconstruction, prediction)


def test_what_it_is_compared_with_is_given_as_much():
    """A model that predicts 0 has the means of cells, and no better a PSNR than they."""
    torch.manual_seed(0)
    config = family_config("vit", target="normalised", image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.1])
    model, images = A2MIMForPreTraining(config).eval(), torch.randn(2, 3, 64, 64)
    mask = torch.rand(2, *config.mask_grid) < 0.5
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        reconstruction = model(images, mask).reconstruction
    found = summarise_errors(masked_errors(reconstruction, images, mask, config))
    assert found["masked_psnr"] == pytest.approx(found["mean_fill_psnr"], abs=1e-4)
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand_as(images)
    guess = mean_guess(images, mask, config)
    assert torch.equal(guess[~hidden], images[~hidden])
    torch.testing.assert_close(guess[hidden], reconstruction[hidden])
    for quality in reconstruction_quality(reconstruct(model, images, mask), mask):
        assert quality["masked_psnr"] == pytest.approx(quality["mean_fill_psnr"], abs=1e-4)
    assert plot_reconstructions(model, images, mask).size[1] > 0


def test_images_of_another_size():
    model = A2MIMForPreTraining(family_config("resnet", target="normalised"))
    assert model(torch.randn(1, 3, 96, 64)).reconstruction.shape == (1, 3, 96, 64)
    with pytest.raises(ValueError, match="pixel_values: 70 x 64 px are no whole number of cells of 16 x 16 px"):
        model(torch.randn(1, 3, 70, 64))


def test_cells_of_one_value_are_refused():
    with pytest.raises(ValueError, match="target: a cell of one pixel and one channel is its own mean"):
        A2MIMConfig(image_size=8, mask_patch_size=1, num_channels=1, target="normalised")
    A2MIMConfig(image_size=8, mask_patch_size=1, num_channels=3, target="normalised")
