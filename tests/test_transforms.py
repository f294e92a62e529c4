"""Images to samples: what is drawn, and what comes out."""

import io
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from modeling_a2mim import A2MIMConfig
from modeling_a2mim.decoding import BrokenImage
from modeling_a2mim.transforms import (
    FineTuneTransform,
    PreTrainTransform,
    generators_kept,
    random_crop,
    seed_generators,
    seeded,
)


PHOTO = Image.fromarray(load_sample_images().images[0])
FINE_TUNING = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "crop_mode": "center",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}
pytestmark = pytest.mark.usefixtures("one_thread")


def config(**kwargs):
    return A2MIMConfig(architecture="test_resnet", **{"image_size": 32, "mask_patch_size": 8, **kwargs})


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def drawn(transform, value, seed: int):
    """The sample, and where torch's generator is afterwards."""
    with seeded(seed):
        sample = transform(value)
        return sample, torch.get_rng_state()


@pytest.mark.parametrize("size", [32, [64, 96]])
def test_as_torchvision_resizes_flips_and_normalises(size):
    cfg = config(image_size=size)
    to_normal = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(cfg.image_mean, cfg.image_std)]
    )
    transform = PreTrainTransform(cfg, crop_scale=(0.3, 1.0))
    levels = 2.01 / 255 / min(cfg.image_std)
    for image in (PHOTO.resize((150, 110)), PHOTO.crop((0, 0, 80, 160))):
        for seed in range(8):
            sample, _ = drawn(transform, encode(image, "PNG"), seed)
            with seeded(seed):
                box = random_crop(image.height, image.width, (0.3, 1.0))
                flip = torch.rand(1) < 0.5
            expected = v2.functional.resized_crop(image, *box, list(cfg.input_size), InterpolationMode.BICUBIC)
            expected = to_normal(v2.functional.hflip(expected) if flip else expected)
            assert sample["pixel_values"].is_contiguous()
            torch.testing.assert_close(sample["pixel_values"], expected.as_subclass(torch.Tensor), atol=levels, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (100, 400), (400, 100), (64, 64), (1, 3)])
def test_crops_are_distributed_as_torchvisions(height, width):
    image, ratio = torch.empty(1, height, width), (3 / 4, 4 / 3)
    for scale in ((0.1, 1.0), (0.8, 1.0)):
        ours, theirs = (
            np.array([draw() for _ in range(1500)], dtype=float)
            for draw in (
                lambda scale=scale: random_crop(height, width, scale),
                lambda scale=scale: RandomResizedCrop.get_params(image, scale, ratio),
            )
        )
        assert (ours[:, :2] >= 0).all()
        assert (ours[:, 0] + ours[:, 2] <= height).all()
        assert (ours[:, 1] + ours[:, 3] <= width).all()
        for column, side in enumerate((height, width, height, width)):
            # Kolmogorov and Smirnov: 1500 of each, one in a million; the draws are seeded.
            grid = np.linspace(0, side, 50)
            one, two = (np.searchsorted(np.sort(x[:, column]), grid, side="right") / 1500 for x in (ours, theirs))
            assert np.abs(one - two).max() < 0.1


def test_bytes_are_drawn_and_normalised_later():
    transform = PreTrainTransform(config())
    for value in (encode(PHOTO, "PNG"), np.asarray(PHOTO), np.asarray(PHOTO).astype(np.float32) / 255):
        (sample, _), (whole, _) = drawn(transform.draw, value, 3), drawn(transform, value, 3)
        kind = torch.float32 if isinstance(value, np.ndarray) and value.dtype == np.float32 else torch.uint8
        assert sample["pixel_values"].dtype == kind
        assert torch.equal(transform.normalize(sample["pixel_values"][None])[0], whole["pixel_values"])
        assert torch.equal(sample["bool_masked_pos"], whole["bool_masked_pos"])
        used = torch.full_like(whole["pixel_values"], 7.0)
        assert transform.normalize(sample["pixel_values"], out=used) is used
        assert torch.equal(used, whole["pixel_values"])
        assert transform.normalize(sample["pixel_values"][:, :5], out=used).shape == (3, 5, 32)


def test_draws_do_not_depend_on_how_an_image_is_decoded():
    image = PHOTO.resize((1600, 1200), Image.Resampling.BICUBIC)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    transform = PreTrainTransform(config(), crop_scale=(0.2, 1.0))
    values = {
        "reduced": encode(image, "JPEG", quality=95),
        "reduced and rotated": encode(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=rotated),
        "whole": encode(image, "BMP"),
        "decoded": image,
    }
    for seed in range(6):
        samples = {name: drawn(transform, value, seed) for name, value in values.items()}
        expected, state = samples["decoded"]
        for name in values:
            sample, other = samples[name]
            assert torch.equal(other, state)
            assert torch.equal(sample["bool_masked_pos"], expected["bool_masked_pos"])
            error = (sample["pixel_values"] - expected["pixel_values"]).square().mean()
            assert error < (255 * 0.226) ** -2 * 255**2 * 10**-3.5, name  # 35 dB
    assert not torch.equal(
        drawn(transform, image, 0)[0]["pixel_values"], drawn(transform, image, 1)[0]["pixel_values"]
    )


def test_half_of_the_images_are_flipped():
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    transform = PreTrainTransform(config(num_channels=1))
    samples = [transform(ramp)["pixel_values"] for _ in range(200)]
    flipped = sum(bool(pixels[0, 0, 0] > pixels[0, 0, -1]) for pixels in samples)
    assert 70 < flipped < 130


def test_masks():
    cfg = config()
    masks = [PreTrainTransform(cfg)(PHOTO)["bool_masked_pos"] for _ in range(10)]
    assert all(mask.shape == (4, 4) and mask.dtype == torch.bool and mask.sum() == cfg.num_masked for mask in masks)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1


def test_evaluation_takes_the_whole_image():
    transform, photo = PreTrainTransform(config(), train=False), PHOTO.resize((150, 100))
    once, again = (transform(encode(photo, "PNG"))["pixel_values"] for _ in range(2))
    assert torch.equal(once, again)
    whole = torch.from_numpy(np.array(photo.resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    cfg = transform.config
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.image_mean, cfg.image_std))
    torch.testing.assert_close(once * std + mean, whole, atol=2.01 / 255, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pretraining_transform_normalises(channels):
    pixels = np.full((20, 30, channels), 255, dtype=np.uint8)
    image = Image.fromarray(pixels.squeeze()) if channels in (1, 3) else pixels
    cfg = config(num_channels=channels)
    white = ((1 - torch.tensor(cfg.image_mean)) / torch.tensor(cfg.image_std)).view(-1, 1, 1).expand(channels, 32, 32)
    for train in (False, True):
        out = PreTrainTransform(cfg, train=train)(image)["pixel_values"]
        torch.testing.assert_close(out, white)
    floats = pixels.astype(np.float32) / 255
    torch.testing.assert_close(PreTrainTransform(cfg)(floats)["pixel_values"], white)
    assert (floats == 1).all()  # what was given is not changed
    unchanged = torch.ones(channels, 32, 32)
    PreTrainTransform(cfg, train=False)(unchanged)
    assert (unchanged == 1).all()


def test_every_kind_of_value(tmp_path):
    photo = PHOTO.resize((150, 100))
    data = encode(photo, "PNG")
    (tmp_path / "photo.png").write_bytes(data)
    path = str(tmp_path / "photo.png")
    values = [data, path, tmp_path / "photo.png", photo, {"bytes": data, "path": None}, {"bytes": None, "path": path}]
    values += [np.asarray(photo), torch.from_numpy(np.array(photo)).permute(2, 0, 1)]
    pre_training, fine_tuning = PreTrainTransform(config(), train=False), FineTuneTransform(FINE_TUNING, train=False)
    for transform, accepted in ((pre_training, values), (fine_tuning, values[:-2])):  # timm's takes no arrays
        first, *others = (transform(value)["pixel_values"] for value in accepted)
        assert all(torch.equal(other, first) for other in others)


def test_errors():
    for transform in (
        PreTrainTransform(config(), max_pixels=1000),
        FineTuneTransform(FINE_TUNING, max_pixels=1000),
        PreTrainTransform(config(), train=False, max_pixels=1000),
    ):
        with pytest.raises(BrokenImage, match="a sample holds no image"):
            transform(None)
        with pytest.raises(BrokenImage, match=r"640 x 427 pixels; expected 1 to 1000 \(max_pixels\)"):
            transform(encode(PHOTO, "PNG"))
        with pytest.raises(BrokenImage, match="^decoding: "):
            transform(encode(PHOTO.crop((0, 0, 20, 20)), "PNG")[:200])
        with pytest.raises(FileNotFoundError):
            transform({"bytes": None, "path": "nowhere.png"})
    for value in (PHOTO, encode(PHOTO, "JPEG"), np.asarray(PHOTO)):
        with pytest.raises(ValueError, match="^num_channels: ") as raised:
            PreTrainTransform(config(num_channels=5))(value)
        assert not isinstance(raised.value, BrokenImage)


def test_transforms_can_be_sent_to_workers():
    transform = PreTrainTransform(config(), crop_scale=(0.5, 1.0))
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(drawn(transform, PHOTO, 0)[0]["pixel_values"], drawn(again, PHOTO, 0)[0]["pixel_values"])


def test_fine_tuning_transform_augments_and_evaluates():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    evaluate, train = FineTuneTransform(FINE_TUNING, train=False), FineTuneTransform(FINE_TUNING, scale=(0.3, 1.0))
    assert torch.equal(evaluate(image)["pixel_values"], evaluate(image)["pixel_values"])
    assert not torch.equal(train(image)["pixel_values"], train(image)["pixel_values"])
    assert train(image)["pixel_values"].shape == (3, 32, 32)


def test_fine_tuning_sees_images_the_right_way_up():
    rotated = Image.Exif()
    rotated[0x0112] = 6
    stored = encode(PHOTO.transpose(Image.Transpose.ROTATE_90), "PNG", exif=rotated)
    evaluate = FineTuneTransform(FINE_TUNING, train=False)
    assert torch.equal(evaluate(stored)["pixel_values"], evaluate(PHOTO)["pixel_values"])


def test_seeded_leaves_global_generators_alone():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = draw()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with seeded(1, 2, 3):
        inside = draw()
    assert draw() == expected
    with seeded(1, 2, 3):
        assert draw() == inside
    with seeded(1, 2, 4):
        assert draw() != inside


def test_seeding_torch_alone_draws_the_same():
    transform = PreTrainTransform(config())
    with seeded(7):
        expected = transform(PHOTO)["pixel_values"]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with generators_kept(torch_only=True):
        seed_generators(7, torch_only=True)
        assert torch.equal(transform(PHOTO)["pixel_values"], expected)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
