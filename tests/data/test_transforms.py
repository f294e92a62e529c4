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
from modeling_a2mim.data.decoding import BrokenImage, open_stored, resized_crop, upright_size
from modeling_a2mim.data.pixel_spec import PixelSpec
from modeling_a2mim.data.transforms import (
    FineTuneTransform,
    PreTrainTransform,
    generators_kept,
    random_crop,
    seed_generators,
    seeded,
)
from modeling_a2mim.masking import random_mask
from modeling_a2mim.utils.value_range import ValueRange


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


EVERYTHING = {"hflip": 0.3, "vflip": 0.5, "rotate90": True, "color_jitter": 0.4}


def paper_sample(value, cfg, scale=(0.8, 1.0), num_channels=3):
    """What is drawn without any further augmentation: box, flip, pixels and mask."""
    spec = PixelSpec(num_channels)
    image = open_stored(value, spec)
    box, flip = random_crop(*upright_size(image), scale), torch.rand(1).item()
    pixels = resized_crop(image, box, cfg.input_size, spec)
    return box, flip, pixels.flip(-1) if flip < 0.5 else pixels, random_mask(1, cfg.mask_grid, cfg.num_masked)[0]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_nothing_changes_unless_it_is_asked_for(channels):
    cfg = config(num_channels=channels, image_size=[32, 64])
    value = np.random.default_rng(0).integers(0, 256, (50, 70, channels), dtype=np.uint8)
    values = [value, value.astype(np.float32) / 255, encode(PHOTO, "JPEG")][: 2 if channels == 5 else 3]
    augmented = PreTrainTransform(cfg, **EVERYTHING)
    for one in values:
        for seed in range(6):
            with seeded(seed):
                _, _, pixels, mask = paper_sample(one, cfg, num_channels=channels)
                state = torch.get_rng_state()
            sample, after = drawn(PreTrainTransform(cfg).draw, one, seed)
            assert torch.equal(sample["pixel_values"], pixels)
            assert torch.equal(sample["bool_masked_pos"], mask)
            assert torch.equal(after, state)  # not even a draw more
            more, _ = drawn(augmented.draw, one, seed)
            assert torch.equal(more["bool_masked_pos"], mask)
            assert more["pixel_values"].shape == pixels.shape
            assert more["pixel_values"].dtype == pixels.dtype
            whole = PreTrainTransform(cfg, train=False, **EVERYTHING).draw(one)["pixel_values"]
            assert torch.equal(whole, PreTrainTransform(cfg, train=False).draw(one)["pixel_values"])


def test_share_of_flips():
    draws = {h: [drawn(PreTrainTransform(config(), hflip=h).draw, PHOTO, s)[0] for s in range(8)] for h in (0, 0.5, 1)}
    for never, half, always in zip(*draws.values(), strict=True):
        assert torch.equal(never["pixel_values"].flip(-1), always["pixel_values"])
        assert torch.equal(never["bool_masked_pos"], always["bool_masked_pos"])
        assert any(torch.equal(half["pixel_values"], one["pixel_values"]) for one in (never, always))
    always_down = drawn(PreTrainTransform(config(), hflip=0, vflip=1).draw, PHOTO, 0)[0]["pixel_values"]
    assert torch.equal(always_down, draws[0][0]["pixel_values"].flip(-2))


@pytest.mark.parametrize("size", [32, [32, 96]])
def test_turning_is_that_of_the_crop(size):
    """Whatever the size of the model's images, as if the image had been turned before, and the same crop taken."""
    cfg, seen = config(image_size=size), []
    value = encode(PHOTO.resize((150, 110)), "PNG")
    transform = PreTrainTransform(cfg, (0.3, 1.0), hflip=0.3, vflip=0.6, rotate90=True)
    for seed in range(24):
        sample, _ = drawn(transform.draw, value, seed)
        with seeded(seed):
            (top, left, height, width), flip, _, mask = paper_sample(value, cfg, (0.3, 1.0))
            down, turn, _ = torch.rand(3).tolist()
        crop = np.asarray(PHOTO.resize((150, 110)))[top : top + height, left : left + width]
        crop = crop[:, ::-1] if flip < 0.3 else crop
        crop = np.rot90(crop[::-1] if down < 0.6 else crop, int(4 * turn))
        crop = torch.from_numpy(crop.copy()).permute(2, 0, 1)
        expected = v2.functional.resize(crop, list(cfg.input_size), InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(sample["pixel_values"], expected, atol=2, rtol=0)
        assert torch.equal(sample["bool_masked_pos"], mask)
        seen.append(int(4 * turn))
    assert set(seen) == {0, 1, 2, 3}


def test_colours_are_jittered_as_torchvision_does():
    value = encode(PHOTO.resize((64, 64)), "PNG")
    for channels in (1, 3):
        cfg = config(num_channels=channels)
        for seed in range(4):
            with seeded(seed):
                _, _, pixels, _ = paper_sample(value, cfg, num_channels=channels)
                torch.rand(3)
                expected = v2.ColorJitter(0.4, 0.4, 0.4 if channels == 3 else 0)(pixels)
            sample, _ = drawn(PreTrainTransform(cfg, color_jitter=0.4).draw, value, seed)
            assert torch.equal(sample["pixel_values"], expected)
            assert not torch.equal(expected, pixels)
    levels = []
    flat = np.full((40, 40, 5), 100, dtype=np.uint8)
    for value in (flat, flat.astype(np.float32) / 255):
        for seed in range(100):
            sample, _ = drawn(PreTrainTransform(config(num_channels=5), color_jitter=0.4).draw, value, seed)
            pixels = sample["pixel_values"].float()
            assert pixels.max() - pixels.min() < 1e-5  # all channels alike
            levels.append(float(pixels.mean()) * (1 if value is flat else 255))
    assert levels[:100] == pytest.approx(levels[100:], abs=2)  # bytes are cut off twice
    assert 58 < min(levels) < 65  # an even image has no contrast
    assert 135 < max(levels) < 141


def test_contrast_of_many_channels_is_about_one_mean():
    value = np.stack([np.full((40, 40), v, dtype=np.float32) for v in (0.3, 0.4, 0.45, 0.5)], 2)
    factors = []
    for seed in range(20):
        sample, _ = drawn(PreTrainTransform(config(num_channels=4), color_jitter=0.3).draw, value, seed)
        a, b, c, d = sample["pixel_values"][:, 0, 0].tolist()
        assert (b - a) == pytest.approx(2 * (c - b), abs=1e-5) == pytest.approx(2 * (d - c), abs=1e-5)
        factors.append((b - a) / 0.1 / (sum((a, b, c, d)) / 1.65))  # without brightness
    assert 0.69 < min(factors) < 0.8
    assert 1.2 < max(factors) < 1.31


def test_some_images_lose_their_colour():
    transform = PreTrainTransform(config(), grayscale=0.3)
    samples = [drawn(transform.draw, PHOTO.resize((48, 48)), s)[0]["pixel_values"] for s in range(200)]
    assert 40 < sum(bool((pixels == pixels[:1]).all()) for pixels in samples) < 80
    grey = drawn(PreTrainTransform(config(), grayscale=1.0).draw, PHOTO, 0)[0]["pixel_values"]
    colour = drawn(PreTrainTransform(config()).draw, PHOTO, 0)[0]["pixel_values"].float()
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    torch.testing.assert_close(grey.float(), luma.expand(3, 32, 32), atol=1.1, rtol=0)
    with pytest.raises(ValueError, match="^grayscale: is for images of 3 channels, this model takes 1"):
        PreTrainTransform(config(num_channels=1), grayscale=0.1)


def test_one_augmentation_does_not_change_another():
    pixels = drawn(PreTrainTransform(config(), **EVERYTHING, grayscale=1.0).draw, PHOTO, 5)[0]["pixel_values"]
    coloured = drawn(PreTrainTransform(config(), **EVERYTHING).draw, PHOTO, 5)[0]["pixel_values"]
    assert torch.equal(pixels, v2.functional.rgb_to_grayscale(coloured, 3))
    turned = drawn(PreTrainTransform(config(), hflip=0.3, rotate90=True).draw, PHOTO, 5)[0]["pixel_values"]
    both = drawn(PreTrainTransform(config(), hflip=0.3, rotate90=True, vflip=1.0).draw, PHOTO, 5)[0]["pixel_values"]
    assert torch.equal(turned.flip(-2), both) or torch.equal(turned.flip(-1), both)


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
        FineTuneTransform(FINE_TUNING, spec=PixelSpec(max_pixels=1000)),
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


def test_auto_augment_is_of_bytes_however_they_are_stored():
    """As an array, the same as a photograph; numbers that timm cannot augment are refused by name."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    augment = FineTuneTransform(FINE_TUNING, auto_augment="rand-m9-mstd0.5")
    for seed in range(4):
        with seeded(seed):
            expected = augment(image)["pixel_values"]
        with seeded(seed):
            assert torch.equal(augment(np.asarray(image))["pixel_values"], expected)
    with pytest.raises(ValueError, match=r"^auto_augment: is of images of 8 bits, and this one is of torch.float32"):
        augment(np.asarray(image, dtype=np.float32) / 255)


@pytest.mark.parametrize(
    "spec", [PixelSpec(13), PixelSpec(channels=(3, 2, 1)), PixelSpec(value_range=ValueRange((0,), (9,)))]
)
def test_augmentation_of_photographs_alone(spec):
    cfg = FINE_TUNING | {"input_size": [spec.num_channels, 32, 32], "mean": [0.5] * spec.num_channels}
    cfg["std"] = cfg["mean"]
    with pytest.raises(ValueError, match=r"^auto_augment: is of photographs of 8 bits, and this model takes"):
        FineTuneTransform(cfg, spec=spec, auto_augment="rand-m9-mstd0.5")
    FineTuneTransform(cfg, train=False, spec=spec, auto_augment="rand-m9-mstd0.5")  # which is not used
    unclipped = PixelSpec(spec.num_channels, value_range=ValueRange((0,), (9,), clip=False))
    with pytest.raises(
        ValueError, match="^color_jitter: cuts off .* values 0 to 9, not cut off; .*--value_range 0 9,"
    ):
        FineTuneTransform(cfg, spec=unclipped, color_jitter=0.4)
    if spec.num_channels == 13:
        with pytest.raises(ValueError, match="^color_jitter: is for images of 1 or 3 channels, this model takes 13"):
            FineTuneTransform(cfg, spec=spec, color_jitter=0.4)
    else:
        FineTuneTransform(cfg, spec=spec, color_jitter=0.4)


def test_values_beyond_the_range_are_seen_in_training_and_in_evaluation():
    """Where nothing is cut off, no augmentation does."""
    limits = {"low": [0.0], "high": [9.0], "clip": False}
    values = np.where(np.arange(40) < 20, -90, 180).astype(np.float32) * np.ones((40, 1), np.float32)
    cfg = config(num_channels=1, value_range=limits, image_mean=[0.0], image_std=[1.0])
    with pytest.raises(ValueError, match="^color_jitter: cuts off what lies outside of the range"):
        PreTrainTransform(cfg, color_jitter=0.1)
    one = FINE_TUNING | {"input_size": [1, 32, 32], "mean": [0.0], "std": [1.0]}
    spec = PixelSpec(1, value_range=ValueRange.from_config(limits))
    for transform in (
        PreTrainTransform(cfg, vflip=0.5, rotate90=True),
        PreTrainTransform(cfg, train=False, color_jitter=0.1),
        FineTuneTransform(one, spec=spec, vflip=0.5, re_prob=0.5),
        FineTuneTransform(one, train=False, spec=spec),
    ):
        pixels = transform(values)["pixel_values"]
        assert pixels.min() < -8
        assert pixels.max() > 18


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


@pytest.mark.parametrize("identity", [(0, 0, 0), (1, 2, 3), (2**32 - 1, 0, 2**31), (2**32, 5), (2**70, 1, 2)])
def test_seeds_are_those_of_a_seed_sequence(identity):
    first, second = np.random.SeedSequence(identity).generate_state(2).tolist()
    with generators_kept():
        seed_generators(*identity)
        assert torch.initial_seed() == first << 32 | second
        drawn = random.random(), np.random.rand()
    assert drawn == (random.Random(first).random(), np.random.RandomState(second).rand())
