"""Errors of masked pixels beside those of two trivial guesses, against values by hand, of scikit-image and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.evaluation.baselines import blur_visible, masked_errors, psnr, summarise_errors


def config(size, cell, **kwargs):
    return A2MIMConfig(
        image_size=size, mask_patch_size=cell, num_channels=1, image_mean=[0.25], image_std=[0.5], **kwargs
    )


def test_three_images_by_hand():
    """2 x 2 px, one cell a pixel. Pixels in [0, 1], masked ones in brackets:
    [0.0] 1.0 / 0.5 0.5: mean 0.5, off by 0.5; predicted 0.2, off by 0.2;
    [1.0] [0.0] / 1.0 1.0: mean 0.75, off by 0.25 and 0.75; predicted 1.5, which is 1, and 0.4: off by 0 and 0.4;
    all of 0.5, three masked: mean off by 0; predicted 0.4: off by 0.1 three times."""
    pixels = torch.tensor([[0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 1.0, 1.0], [0.5] * 4]).view(3, 1, 2, 2)
    guess = torch.tensor([[0.2, 9.0, 9.0, 9.0], [1.5, 0.4, 9.0, 9.0], [0.4, 0.4, 0.4, 9.0]]).view(3, 1, 2, 2)
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).bool().view(3, 2, 2)
    errors = masked_errors((guess - 0.25) / 0.5, (pixels - 0.25) / 0.5, mask, config(2, 1, mask_ratio=0.5))
    assert errors[:, 0].tolist() == [1, 2, 3]
    found = summarise_errors(errors)
    assert found["masked_l1"] == pytest.approx((0.2 + 0 + 0.4 + 0.3) / 6, abs=1e-6)
    assert found["masked_psnr"] == pytest.approx(-10 * math.log10((0.04 + 0.16 + 0.03) / 6), abs=1e-4)
    assert found["mean_fill_l1"] == pytest.approx((0.5 + 1.0 + 0) / 6, abs=1e-6)
    assert found["mean_fill_psnr"] == pytest.approx(-10 * math.log10((0.25 + 0.0625 + 0.5625) / 6), abs=1e-4)


def test_psnr_is_scikit_images():
    images, guesses = np.random.default_rng(0).random((2, 5, 9, 9))
    expected = peak_signal_noise_ratio(images, guesses, data_range=1)
    assert psnr(float(np.square(images - guesses).mean())) == pytest.approx(expected)
    assert psnr(0.0) == pytest.approx(100)


def test_blur_is_the_weighted_mean_of_visible_pixels():
    images, mask = torch.rand(2, 3, 24, 32), torch.rand(2, 3, 4) < 0.6
    blurred = blur_visible(images, mask, sigma=3.0)
    visible = (~mask).repeat_interleave(8, 1).repeat_interleave(8, 2).numpy().astype(float)
    for image in range(2):
        weight = gaussian_filter(visible[image], 3.0, mode="mirror", radius=13)
        for channel in range(3):
            total = gaussian_filter(
                images[image, channel].double().numpy() * visible[image], 3.0, mode="mirror", radius=13
            )
            near = weight > 1e-3
            # float32 against float64, divided by weights down to 1e-3.
            np.testing.assert_allclose(blurred[image, channel].numpy()[near], (total / weight)[near], atol=1e-4)


def test_blur_where_nothing_is_visible_near_is_the_mean():
    images, mask = torch.rand(1, 1, 64, 64), torch.ones(1, 8, 8).bool()
    mask[0, 0, 0] = False
    torch.testing.assert_close(blur_visible(images, mask, 2.0)[0, 0, 63, 63], images.mean())
    assert torch.isfinite(blur_visible(images, torch.ones(1, 8, 8).bool(), 2.0)).all()


def test_masked_pixels_are_not_seen():
    images, mask = torch.rand(1, 1, 32, 32), torch.rand(1, 4, 4) < 0.6
    pixels = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    other = torch.where(pixels, torch.rand(1, 1, 32, 32), images)
    other += pixels * (images.mean() - other.mean()) * other.numel() / pixels.sum()  # the same mean
    torch.testing.assert_close(blur_visible(images, mask, 3.0), blur_visible(other, mask, 3.0))
