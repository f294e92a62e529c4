"""The 15 corruptions of ImageNet-C at 5 severities, and a figure of them.

Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions and Perturbations*, ICLR 2019
(https://arxiv.org/abs/1903.12261). How strong a severity is depends on the size of the image: a blur that a photograph
of 224 px survives leaves nothing of one of 32 px. The authors published constants for three sizes, and an image gets
those of the nearest: CIFAR-10-C up to 45 px (shorter side), Tiny ImageNet-C up to 119 px, ImageNet-C beyond.

As published: constants, kernels, order of operations, random distributions and borders, including that `glass_blur`
copies neighbors rather than swapping pixels. Not as published:

- `frost` adds ice crystals that are drawn here, about as bright, uneven and blue as the authors' photographs, whose
  origin is not stated;
- what is random is drawn from other generators; results are rounded, not cut off, to 8 bits; borders of
  `elastic_transform` are mirrored without repeating the last row;
- the files of ImageNet-C went through a JPEG of quality 85 in the end; these images do not;
- images need not be square, nor have three channels.

The package that is kept, imagecorruptions-imaug, has the constants of 224 px alone and others for `elastic_transform`,
refuses images under 32 px, makes grey ones RGB, and brings OpenCV and Numba; hence SciPy, Pillow and PyTorch here.
"""

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve
from torch.nn import functional as F

from ..utils.plotting import to_pil_image


# The size of the images in pixels, and the data set that the constants come from (`create_c/make_*_c.py` of
# https://github.com/hendrycks/robustness): for each corruption and size, the arguments of its function at severity 1
# to 5.
BENCHMARKS = {32: "CIFAR-10-C", 64: "Tiny ImageNet-C", 224: "ImageNet-C"}
CONSTANTS: dict[str, dict[int, tuple]] = {
    "gaussian_noise": {
        32: (0.04, 0.06, 0.08, 0.09, 0.10),
        64: (0.04, 0.08, 0.12, 0.15, 0.18),
        224: (0.08, 0.12, 0.18, 0.26, 0.38),
    },
    "shot_noise": {32: (500, 250, 100, 75, 50), 64: (250, 100, 50, 30, 15), 224: (60, 25, 12, 5, 3)},
    "impulse_noise": {
        32: (0.01, 0.02, 0.03, 0.05, 0.07),
        64: (0.01, 0.02, 0.05, 0.08, 0.14),
        224: (0.03, 0.06, 0.09, 0.17, 0.27),
    },
    "defocus_blur": {
        32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    },
    "glass_blur": {
        32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    },
    "motion_blur": {
        32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "zoom_blur": {
        32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    },
    "snow": {
        32: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        64: (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        224: (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    },
    "frost": {  # the last number is the scale of the crystals, to which the authors reduced their photographs
        32: ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        64: ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        224: ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    },
    "fog": {
        32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    },
    "brightness": {32: (0.05, 0.1, 0.15, 0.2, 0.3), 64: (0.1, 0.2, 0.3, 0.4, 0.5), 224: (0.1, 0.2, 0.3, 0.4, 0.5)},
    "contrast": {32: (0.75, 0.5, 0.4, 0.3, 0.15), 64: (0.4, 0.3, 0.2, 0.1, 0.05), 224: (0.4, 0.3, 0.2, 0.1, 0.05)},
    "elastic_transform": {  # shares of the shorter side; the authors took 244 for 224
        32: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        64: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        224: tuple(
            tuple(share * 244 / 224 for share in shares)
            for shares in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
    },
    "pixelate": {32: (0.95, 0.9, 0.85, 0.75, 0.65), 64: (0.9, 0.8, 0.7, 0.6, 0.5), 224: (0.6, 0.5, 0.4, 0.3, 0.25)},
    "jpeg_compression": {32: (80, 65, 58, 50, 40), 64: (65, 58, 50, 40, 25), 224: (25, 18, 15, 10, 7)},
}
CORRUPTIONS = tuple(CONSTANTS)
SEVERITIES = (1, 2, 3, 4, 5)


def check_corruptions(corruptions: Sequence[str], severities: Sequence[int] = SEVERITIES):
    """Refuse corruptions and severities that do not exist.

    Raises:
        ValueError: if there are none, or one is unknown or named twice.
    """
    for given, known, noun in ((corruptions, CORRUPTIONS, "type"), (severities, SEVERITIES, "severity")):
        if not given:
            raise ValueError(f"corruptions: expected at least one {noun} of {', '.join(map(str, known))}")
        for value in given:
            if value not in known:
                raise ValueError(f"corruptions: unknown {noun} {value!r}; there are {', '.join(map(str, known))}")
        if len(set(given)) < len(given):
            raise ValueError(f"corruptions: a {noun} is named twice: {', '.join(map(str, given))}")


def published_size(height: int, width: int) -> int:
    """The size, a key of `BENCHMARKS`, whose constants an image gets: the nearest, by ratio, to its shorter side."""
    return min(BENCHMARKS, key=lambda size: abs(math.log(min(height, width) / size)))


def corrupt(image: np.ndarray, corruption: str, severity: int, generator: np.random.Generator) -> np.ndarray:
    """An image with a corruption.

    Args:
        image: uint8 (height, width, channels), at least 4 pixels wide and high. Three channels are taken as RGB.
        corruption: one of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: of everything random.

    Returns:
        uint8, of the same shape.

    Raises:
        ValueError: if there is no such corruption or severity.
    """
    check_corruptions([corruption], [severity])
    constants = CONSTANTS[corruption][published_size(*image.shape[:2])][severity - 1]
    constants = constants if isinstance(constants, tuple) else (constants,)
    # Each corruption is the function of its name below.
    result = globals()[corruption](image.astype(np.float32) / 255, generator, *constants)
    return to_bytes(result)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], cut off there, as uint8."""
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


# They take an image, float32 (height, width, channels) with values in [0, 1], a generator and their constants; results
# may leave that range.


def gaussian_noise(x: np.ndarray, generator: np.random.Generator, deviation: float) -> np.ndarray:
    """Normal noise of this standard deviation is added to each value."""
    return x + generator.normal(0, deviation, x.shape)


def shot_noise(x: np.ndarray, generator: np.random.Generator, photons: float) -> np.ndarray:
    """Each value is counted in photons (Poisson), of which white has so many."""
    return generator.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, generator: np.random.Generator, share: float) -> np.ndarray:
    """A share of the values becomes black or white, each channel for itself."""
    return np.where(generator.random(x.shape) < share, generator.integers(0, 2, x.shape), x)


def defocus_blur(x: np.ndarray, generator: np.random.Generator, radius: float, deviation: float) -> np.ndarray:
    """A disk, smoothed a little, in place of a point."""
    reach = max(8, int(radius))
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float32)
    disk = gaussian_filter(disk / disk.sum(), deviation, mode="mirror", radius=1 if radius <= 8 else 2)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return fftconvolve(padded, disk[..., None], mode="valid", axes=(0, 1))


def glass_blur(x: np.ndarray, generator: np.random.Generator, deviation: float, reach: int, rounds: int) -> np.ndarray:
    """Pixels take on neighbors, one after the other from below to above, and may pass on what they took."""
    height, width = x.shape[:2]
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    places = rows[:, None] * width + columns
    origin = list(range(height * width))
    for _ in range(rounds):
        down, right = generator.integers(-reach, reach, (2, *places.shape))
        neighbors = places + down * width + right
        for place, neighbor in zip(places.ravel().tolist(), neighbors.ravel().tolist(), strict=True):
            origin[place] = origin[neighbor]
    shuffled = _smooth(x, deviation).reshape(height * width, -1)[origin].reshape(x.shape)
    return _smooth(shuffled, deviation)


def _smooth(x: np.ndarray, deviation: float) -> np.ndarray:
    return gaussian_filter(x, (deviation, deviation, 0), mode="nearest")


def motion_blur(x: np.ndarray, generator: np.random.Generator, radius: int, deviation: float) -> np.ndarray:
    """A trail in a random direction within 45 degrees of the rows."""
    return _motion(x, radius, deviation, generator.uniform(-45, 45))


def _motion(x: np.ndarray, radius: int, deviation: float, angle: float) -> np.ndarray:
    """Half a Gaussian along a line that starts at each pixel. `angle`: of the line with the rows, in degrees."""
    height, width = x.shape[:2]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    angle = math.radians(angle)
    down, right = (np.ceil(steps * slope - 0.5).astype(int) for slope in (math.sin(angle), math.cos(angle)))
    padded = np.pad(x, [(steps[-1], steps[-1])] * 2 + [(0, 0)], mode="edge")
    result = np.zeros_like(x)
    for weight, top, left in zip(weights / weights.sum(), down + steps[-1], right + steps[-1], strict=True):
        result += np.float32(weight) * padded[top : top + height, left : left + width]
    return result


def zoom_blur(x: np.ndarray, generator: np.random.Generator, stop: float, step: float) -> np.ndarray:
    """The mean of the image and of its enlargements by 1, 1 + step, ... below `stop`."""
    factors = np.arange(1, stop, step)
    return (x + sum(_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def _zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of an image, enlarged to its size (bilinear, corners on corners)."""
    height, width = x.shape[:2]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = _to_torch(x[top : top + rows, left : left + columns])
    size = (round(rows * factor), round(columns * factor))
    enlarged = _from_torch(F.interpolate(middle, size, mode="bilinear", align_corners=True))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return enlarged[top : top + height, left : left + width]


def snow(
    x: np.ndarray,
    generator: np.random.Generator,
    mean: float,
    deviation: float,
    factor: float,
    threshold: float,
    radius: int,
    blur: float,
    kept: float,
) -> np.ndarray:
    """Flakes that are blown at an angle, in front of an image that is whitened."""
    flakes = _zoom(generator.normal(mean, deviation, (*x.shape[:2], 1)).astype(np.float32), factor)
    flakes = np.where(flakes < threshold, 0, flakes.clip(0, 1))
    flakes = _motion(flakes, radius, blur, generator.uniform(-135, -45))
    weights = (0.299, 0.587, 0.114) if x.shape[-1] == 3 else np.full(x.shape[-1], 1 / x.shape[-1])
    grey = (x * np.asarray(weights, np.float32)).sum(-1, keepdims=True)
    return kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5) + flakes + np.rot90(flakes, 2)


def frost(x: np.ndarray, generator: np.random.Generator, kept: float, added: float, scale: float) -> np.ndarray:
    """Ice crystals (`ice_crystals`) are added to an image that is darkened."""
    crystals = ice_crystals(x.shape[0], x.shape[1], generator, scale)
    if x.shape[-1] != 3:
        crystals = crystals.mean(-1, keepdims=True)
    return kept * x + added * crystals


def ice_crystals(height: int, width: int, generator: np.random.Generator, scale: float) -> np.ndarray:
    """A frozen window, (height, width, 3) with values in [0, 1]: feathers with barbs at 60 degrees in front of haze.
    `scale`: 1 for feathers of 16 to 48 pixels."""
    count = math.ceil(height * width / (16 * scale) ** 2)
    finer = (2 * width, 2 * height)  # reduced in the end, for smooth edges
    start = generator.uniform(0, finer, (count, 1, 2))
    angle = generator.uniform(0, 2 * np.pi, (count, 1)) + np.radians((0, 60, -60))
    length = 2 * 40 * scale * generator.uniform(0.4, 1.2, (count, 1, 1))
    stem, *sides = np.split(length * np.stack([np.cos(angle), np.sin(angle)], -1), 3, axis=1)
    where = np.linspace(0.05, 0.95, 9)[:, None]
    roots = start + where * stem
    lines = [np.concatenate([start, start + stem], -1)]
    lines += [np.concatenate([roots, roots + 0.4 * (1 - where) * side], -1) for side in sides]
    strokes = np.concatenate(lines, 1)
    shades = np.sort(generator.uniform(40, 255, (count, 1)), axis=0) * generator.uniform(0.6, 1, strokes.shape[:2])
    drawn = Image.new("L", finer)
    draw = ImageDraw.Draw(drawn)
    for line, shade in zip(strokes.reshape(-1, 4).tolist(), shades.ravel().astype(int).tolist(), strict=True):
        draw.line(line, fill=shade)
    haze = plasma(_power_of_two(height, width), 2, generator)[:height, :width]
    ice = np.asarray(drawn.resize((width, height), Image.Resampling.BOX)) / 255 + haze
    # Mean, deviation and colour are within those of the authors' photographs, which differ as much from each other.
    ice = generator.uniform(0.48, 0.81) + generator.uniform(0.09, 0.17) * (ice - ice.mean()) / ice.std()
    return (ice[..., None] * (0.93, 1.01, 1.06)).clip(0, 1)


def fog(x: np.ndarray, generator: np.random.Generator, strength: float, decay: float) -> np.ndarray:
    """Clouds (`plasma`) are added, and the range of the values is kept."""
    height, width = x.shape[:2]
    clouds = plasma(_power_of_two(height, width), decay, generator)[:height, :width, None]
    return (x + strength * clouds) * x.max() / (x.max() + strength)


def _power_of_two(height: int, width: int) -> int:
    return 2 ** math.ceil(math.log2(max(height, width)))


def plasma(size: int, decay: float, generator: np.random.Generator) -> np.ndarray:
    """Clouds by the diamond-square algorithm on a torus: (size, size) with values in [0, 1]; `size` is a power of two.
    What is added at random to the mean of four neighbors falls by the square of `decay` when they move closer."""
    heights = np.zeros((size, size))
    step, most = size, 100.0**2
    while step > 1:
        half = step // 2
        corners, centres = heights[::step, ::step], heights[half::step, half::step]
        upper = corners + np.roll(corners, -1, 1)
        places = [(centres, upper + np.roll(upper, -1, 0))]
        centres[:] = places[0][1] / 4 + generator.uniform(-most, most, centres.shape)
        beside = heights[::step, half::step], heights[half::step, ::step]
        sums = (
            upper + centres + np.roll(centres, 1, 0),
            corners + np.roll(corners, -1, 0) + centres + np.roll(centres, 1, 1),
        )
        for place, total in zip(beside, sums, strict=True):
            place[:] = total / 4 + generator.uniform(-most, most, place.shape)
        step, most = half, most / decay**2
    heights -= heights.min()
    return heights / heights.max()


def brightness(x: np.ndarray, generator: np.random.Generator, more: float) -> np.ndarray:
    """The value of HSV, the largest of RGB, is raised; hue and saturation stay, so all three grow by one factor."""
    value = x.max(-1, keepdims=True) if x.shape[-1] == 3 else x
    brighter = (value + more).clip(0, 1)
    return np.where(value > 0, x * brighter / np.maximum(value, 1e-6), brighter)


def contrast(x: np.ndarray, generator: np.random.Generator, share: float) -> np.ndarray:
    """Values move toward the mean of their channel, and keep a share of their distance."""
    mean = x.mean((0, 1))
    return (x - mean) * share + mean


def elastic_transform(
    x: np.ndarray, generator: np.random.Generator, strength: float, smoothness: float, jitter: float
) -> np.ndarray:
    """A random affine map, then a random smooth field of displacements."""
    height, width = x.shape[:2]
    side = min(height, width)
    middle, reach = np.array([width // 2, height // 2]), side // 3
    corners = middle + np.array([[reach, reach], [reach, -reach], [-reach, -reach]])
    moved = corners + generator.uniform(-1, 1, corners.shape) * jitter * side
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    rows, columns = np.mgrid[:height, :width]
    source = np.stack([columns, rows, np.ones_like(rows)], -1) @ back
    x = _sample(x, source[..., 1], source[..., 0])
    across, down = (
        gaussian_filter(generator.uniform(-1, 1, (height, width)), smoothness * side, truncate=3) * strength * side
        for _ in range(2)
    )
    return _sample(x, rows + down, columns + across)


def _sample(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The values of an image at positions in pixels (bilinear), which is mirrored beyond its borders."""
    height, width = x.shape[:2]
    places = np.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], -1)
    grid = torch.from_numpy(places.astype(np.float32))[None]
    return _from_torch(F.grid_sample(_to_torch(x), grid, padding_mode="reflection", align_corners=True))


def pixelate(x: np.ndarray, generator: np.random.Generator, share: float) -> np.ndarray:
    """The image is reduced to a share of its sides, and enlarged again."""
    height, width = x.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    return _as_images(x, lambda p: p.resize(small, Image.Resampling.BOX).resize(p.size, Image.Resampling.BOX))


def jpeg_compression(x: np.ndarray, generator: np.random.Generator, quality: int) -> np.ndarray:
    """The image is stored as a JPEG of this quality, and read again."""

    def through_file(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _as_images(x, through_file)


def _as_images(x: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """What a function makes of an RGB image as one of Pillow, of other channels as one grey image each."""
    values = to_bytes(x)
    parts = [values] if x.shape[-1] == 3 else [values[..., channel] for channel in range(x.shape[-1])]
    return np.dstack([np.asarray(function(Image.fromarray(part))) for part in parts]) / np.float32(255)


def _to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None]


def _from_torch(x: torch.Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).numpy()


def plot_corruptions(
    pixel_values: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    corruptions: Sequence[str] = CORRUPTIONS,
    seed: int = 0,
) -> Image.Image:
    """An image (channels, height, width), normalised with `mean` and `std`, under each corruption: one labelled row
    for each, with the clean image and severities 1 to 5. Images smaller than 96 px are enlarged.

    Raises:
        ValueError: as `check_corruptions`.
    """
    check_corruptions(corruptions)
    shift, scale = (np.asarray(values, np.float32) for values in (mean, std))
    clean = to_bytes(pixel_values.permute(1, 2, 0).cpu().numpy() * scale + shift)
    height, width = (side * max(1, math.ceil(96 / min(clean.shape[:2]))) for side in clean.shape[:2])
    gap, header, label = 4, 16, 112
    size = (label + (1 + len(SEVERITIES)) * (width + gap), header + len(corruptions) * (height + gap))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("clean", *map(str, SEVERITIES))):
        draw.text((label + column * (width + gap), 2), title, fill="black")
    for row, corruption in enumerate(corruptions):
        top = header + row * (height + gap)
        draw.text((gap, top), corruption, fill="black")
        images = [clean]
        for severity in SEVERITIES:
            images.append(corrupt(clean, corruption, severity, np.random.default_rng((seed, row, severity))))
        for column, image in enumerate(images):
            tile = to_pil_image(torch.from_numpy(image).permute(2, 0, 1) / 255)
            sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST), (label + column * (width + gap), top))
    return sheet
