import numpy as np
import pytest
import torch

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.data.arrays import BrokenImage
from modeling_a2mim.data.content import Content
from modeling_a2mim.data.transforms import PreTrainTransform, seeded


RANGE = {"low": [0], "high": [4000]}
SMALL = {"architecture": "test_convnext", "image_size": 32, "mask_patch_size": 8, "mask_site": -3}
CONFIG = A2MIMConfig(**SMALL, num_channels=1, value_range=RANGE)


def slide(side=100):
    """Glass, and a piece of tissue in its middle."""
    values = np.full((1, side, side), 3900, np.uint16)
    values[0, 40:70, 30:80] = np.random.default_rng(0).integers(500, 2000, (30, 50))
    return values


def test_shares():
    values = slide()
    content = Content.of(values)
    assert content.share(values) == pytest.approx(0.15)
    assert content.share(values[:, :40]) == 0
    assert content.share(values[:, 40:70, 30:80]) == 1
    noise = np.random.default_rng(0).integers(0, 4000, (1, 50, 50))
    assert Content.of(noise).share(noise[:, :4]) == 1  # without a border all of it is content


def crops(transform, values, count=20):
    found = []
    for seed in range(count):
        with seeded(seed):
            found.append(transform.draw(values)["pixel_values"])
    return found


def test_crops_are_at_the_resolution_of_the_image():
    values = np.arange(100 * 120, dtype=np.uint16).reshape(1, 100, 120) // 3
    found = crops(PreTrainTransform(CONFIG, crop_pixels=32, hflip=0), values)
    corners = {int(pixels[0, 0, 0] * 4000 * 3 + 0.5) for pixels in found}
    assert len(corners) > 10
    for pixels in found:
        steps = pixels[0, :, 1:] - pixels[0, :, :-1]
        assert steps.abs().max() <= 1.5 / 4000  # neighbors in the file are neighbors in the crop
    whole = PreTrainTransform(CONFIG, train=False, crop_pixels=32).draw(values)["pixel_values"]
    expected = torch.from_numpy((values[:, 34:66, 44:76] / 4000).astype(np.float32))
    assert torch.equal(whole, expected)
    with pytest.raises(BrokenImage, match="120 x 100 pixels, which --crop_pixels 101 does not fit into"):
        PreTrainTransform(CONFIG, crop_pixels=101).draw(values)


def test_crops_with_content():
    shares = [
        float((pixels < 0.9).float().mean()) for pixels in crops(PreTrainTransform(CONFIG, crop_pixels=32), slide())
    ]
    chosen = PreTrainTransform(CONFIG, crop_pixels=32, min_content=0.3)
    better = [float((pixels < 0.9).float().mean()) for pixels in crops(chosen, slide())]
    assert min(shares) == 0
    assert np.mean([share >= 0.3 for share in better]) > 0.8
    assert min(better) > 0
    assert all(torch.equal(one, two) for one, two in zip(crops(chosen, slide()), crops(chosen, slide()), strict=True))
    with pytest.raises(BrokenImage, match="of 10 crops of 32 x 32 pixels none shows anything but background"):
        chosen.draw(np.full((1, 64, 64), 3900, np.uint16))


def test_crops_with_content_in_evaluation():
    """The middle, or where else there is something to be seen; an empty image is none, as in training."""
    transform = PreTrainTransform(CONFIG, train=False, crop_pixels=32, min_content=0.3)
    plain = PreTrainTransform(CONFIG, train=False, crop_pixels=32)
    assert torch.equal(transform.draw(slide())["pixel_values"], plain.draw(slide())["pixel_values"])
    corner = np.roll(slide(), (-40, -30), (1, 2))
    corner[0, 0], corner[0, :, 0] = 3900, 3900  # the border is glass
    assert (plain.draw(corner)["pixel_values"] > 0.9).all()
    found = transform.draw(corner)["pixel_values"]
    assert float((found < 0.9).float().mean()) >= 0.3
    assert torch.equal(transform.draw(corner)["pixel_values"], found)
    with pytest.raises(BrokenImage, match="of 25 crops of 32 x 32 pixels none shows anything but background"):
        transform.draw(np.full((1, 64, 64), 3900, np.uint16))
