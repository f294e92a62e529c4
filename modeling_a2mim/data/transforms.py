"""From a stored image to tensors: crop, augmentation, normalisation and mask for pre-training; timm's transforms for
fine-tuning; and the seeds of what they draw."""

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from ..configuration_a2mim import A2MIMConfig
from ..masking import random_mask
from ..utils.value_range import ValueRange
from .arrays import ArrayImage, BrokenImage
from .arrays.array_image import Box
from .content import Content, border_of
from .decoding import MAX_PIXELS, MODES, as_array, load_pixels, open_stored, resized_crop, upright_size
from .pixel_spec import PixelSpec


ASPECT_RATIO = (3 / 4, 4 / 3)
DRAWS = 10  # crops among which one with content is looked for
# Where one is looked for in evaluation, shares of the way down and to the right: the middle first, corners last.
PLACES = sorted(((i / 4, j / 4) for i in range(5) for j in range(5)), key=lambda p: math.dist(p, (0.5, 0.5)))


def random_crop(height: int, width: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a random crop of an image of `height` x `width`, distributed as by
    `RandomResizedCrop.get_params` of torchvision, which takes 0.2 ms for its single draws. `scale`: smallest and
    largest share of the area, in (0, 1]."""
    draws = torch.rand(10, 4, dtype=torch.float64).tolist()
    low, high = math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1])
    for share, ratio, down, right in draws:
        area, aspect = (
            height * width * (scale[0] + share * (scale[1] - scale[0])),
            math.exp(low + ratio * (high - low)),
        )
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    # No such crop fits: the largest in the middle that has an allowed aspect ratio.
    columns = min(width, max(1, round(height * ASPECT_RATIO[1])))
    rows = min(height, max(1, round(width / ASPECT_RATIO[0])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


class PreTrainTransform:
    """Random resized crop, flip, normalisation, and a mask (the augmentation of the A2MIM paper), and more if asked
    for; in evaluation only a resize of the whole image, and a mask. Random values come from torch's CPU generator, and
    do not depend on how an image is decoded; crop, flip and mask are the same whatever other augmentation is in use.

    Args:
        config: image size, channels, normalisation and mask.
        crop_scale: smallest and largest share of the image's area that a crop covers, in (0, 1].
        train: whether to crop and augment.
        max_pixels: images of more pixels are refused.
        hflip, vflip: shares of images, in [0, 1], that are mirrored left to right, and top to bottom.
        rotate90: whether to turn images by 0, 90, 180 or 270 degrees.
        color_jitter: brightness, contrast and saturation are multiplied by up to 1 ± this; of images of other than 3
            channels, brightness and contrast of all channels alike.
        grayscale: share of images of 3 channels that lose their colour.
        crop_pixels: side of a square that is cropped at the resolution of the image, in place of `crop_scale`; in
            evaluation from its middle.
        min_content: the least share of a crop that is no background (see `content.Content`); of `DRAWS` crops, in
            evaluation of those at `PLACES`, the first that has it, else the one with the most.

    Raises:
        ValueError: naming `grayscale`, if it is for images of another number of channels, or `color_jitter`, as
            `refuse_cutting`.
    """

    def __init__(
        self,
        config: A2MIMConfig,
        crop_scale: tuple[float, float] = (0.8, 1.0),
        train: bool = True,
        max_pixels: int = MAX_PIXELS,
        *,
        hflip: float = 0.5,
        vflip: float = 0.0,
        rotate90: bool = False,
        color_jitter: float = 0.0,
        grayscale: float = 0.0,
        crop_pixels: int | None = None,
        min_content: float | None = None,
    ):
        self.config, self.crop_scale, self.train = config, crop_scale, train
        self.spec = PixelSpec.from_config(config, max_pixels)
        self.size, self.num_channels = config.input_size, config.num_channels
        if grayscale and self.num_channels != 3:
            raise ValueError(f"grayscale: is for images of 3 channels, this model takes {self.num_channels}")
        self.hflip, self.vflip, self.rotate90, self.grayscale = hflip, vflip, rotate90, grayscale
        self.crop_pixels, self.min_content = crop_pixels, min_content
        self.jitter = None
        if train:
            refuse_cutting("color_jitter", color_jitter, self.spec.value_range)
        if color_jitter:
            self.jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter if self.num_channels == 3 else 0)
        self.augments = bool(vflip or rotate90 or color_jitter or grayscale)  # beyond crop and flip
        self.mask_grid, self.num_masked = config.mask_grid, config.num_masked  # a config's properties are slow
        self.mean, self.std = (torch.tensor(v).view(-1, 1, 1) for v in (config.image_mean, config.image_std))
        self._constants: dict[torch.device, tuple] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_constants": {}}  # tensors on a device do not go to other processes

    def __call__(self, image: Any) -> dict[str, torch.Tensor]:
        """As `draw`, with `pixel_values` normalised by the mean and standard deviation of the config: float32
        (channels, height, width)."""
        sample = self.draw(image)
        return {**sample, "pixel_values": self.normalize(sample["pixel_values"])}

    def draw(self, image: Any) -> dict[str, torch.Tensor]:
        """A sample of an image, whose pixels are not normalised.

        Args:
            image: a row of an undecoded dataset, bytes, path, PIL image, array or tensor (see `open_stored`).

        Returns:
            `pixel_values`, uint8 in [0, 255] (channels, height, width), or float32, 0 to 1 in the range of the values;
            `bool_masked_pos`, bool (rows, columns) of the mask's grid, true where the image is masked.

        Raises:
            BrokenImage: if there is no image that can be used.
            ValueError: if it has another number of channels than the config.
        """
        image = open_stored(image, self.spec)
        height, width = upright_size(image)
        box, flip = (0, 0, height, width), False
        if self.crop_pixels is not None:
            image, box = self._native_crop(image)
        elif self.train:
            box = random_crop(height, width, self.crop_scale)
        if self.train:
            flip = torch.rand(1).item() < self.hflip
        mask = random_mask(1, self.mask_grid, self.num_masked)[0]
        # Drawn last, and all three if one is needed, so that no augmentation changes another.
        down, turn, grey = torch.rand(3).tolist() if self.train and self.augments else (1.0, 0.0, 1.0)
        turns = int(4 * turn) if self.rotate90 else 0
        # A crop that will be turned is resized to the size turned back, so that turning it stretches nothing. It need
        # not be drawn anew for that: `ASPECT_RATIO` is the same for a crop and for the same one turned.
        pixels = resized_crop(image, box, self.size[::-1] if turns % 2 else self.size, self.spec)
        pixels = pixels.flip(-1) if flip else pixels
        pixels = pixels.flip(-2) if down < self.vflip else pixels
        pixels = pixels.rot90(turns, (-2, -1)) if turns else pixels
        if self.train and self.jitter is not None:
            pixels = self._jittered(pixels)
        if grey < self.grayscale:
            pixels = v2.functional.rgb_to_grayscale(pixels, num_output_channels=3)
        return {"pixel_values": pixels, "bool_masked_pos": mask}

    def _native_crop(self, image: Image.Image | ArrayImage) -> tuple[Image.Image | ArrayImage, Box]:
        """The image, as an array if its values were looked at, and a crop of `crop_pixels`."""
        side, (height, width) = self.crop_pixels, upright_size(image)
        if min(height, width) < side:
            reason = f"{width} x {height} pixels, which --crop_pixels {side} does not fit into"
            raise BrokenImage(reason, argument="crop_pixels")
        down, right = height - side, width - side
        if self.train:
            draws = torch.rand(1 if self.min_content is None else DRAWS, 2).tolist()
            boxes = [(int(y * (down + 1)), int(x * (right + 1)), side, side) for y, x in draws]
        else:
            boxes = [(int(y * down), int(x * right), side, side) for y, x in PLACES]
        if self.min_content is None:
            return image, boxes[0]
        image = as_array(image) if isinstance(image, Image.Image) else image
        content, most, best = background_of(image, self.spec), 0.0, boxes[0]
        for box in boxes:
            share = content.share(image.read(box))
            if share > most:
                most, best = share, box
            if share >= self.min_content:
                break
        if not most:
            raise BrokenImage(f"of {len(boxes)} crops of {side} x {side} pixels none shows anything but background")
        return image, best

    def _jittered(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.num_channels in (1, 3):
            return self.jitter(pixels)
        # torchvision knows no others: all channels are shown to it as one, so that they share a mean.
        return self.jitter(pixels.reshape(1, -1, pixels.shape[-1])).reshape(pixels.shape)

    def normalize(self, pixel_values: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Pixels as `draw` gives them, (..., channels, height, width) on any device, normalised: float32.
        `out`: a former result that is no longer needed, whose memory is used again if its shape and device fit."""
        device = pixel_values.device
        if device not in self._constants:
            self._constants[device] = self.mean.to(device), self.std.to(device)
        mean, std = self._constants[device]
        white = 255 if pixel_values.dtype == torch.uint8 else 1
        if out is None or out.shape != pixel_values.shape or out.device != device:
            out = torch.empty(pixel_values.shape, dtype=torch.float32, device=device)
        return out.copy_(pixel_values).sub_(mean * white).div_(std * white)


def refuse_cutting(field: str, given: Any, known: ValueRange | None):
    """Refuse what cuts pixels to [0, 1] where the range of values cuts nothing off: what is jittered, or corrupted,
    would be of other values than the images that a model is evaluated on.

    Args:
        field: the argument: `color_jitter` (torchvision cuts) or `corruptions` (which are of 8 bits).
        given: its value.
        known: the range.

    Raises:
        ValueError: naming the field.
    """
    if given and known is not None and not known.clip:
        words = " ".join(replace(known, clip=True).to_words())
        raise ValueError(
            f"{field}: cuts off what lies outside of the range of values, and the model takes values {known}; leave "
            f"it out, or give --value_range {words}, which cuts these off everywhere"
        )


def background_of(image: ArrayImage, spec: PixelSpec) -> Content:
    """The background of an image, without decoding more than its border where the range of values is known."""
    known = spec.value_range
    if known is not None and known.of is None:
        low, high = min(known.low), max(known.high)
    elif image.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        return Content.of(image.read())
    border = border_of(image.height, image.width, image.read)
    return Content(border, np.full(image.channels, low), np.full(image.channels, high))


class FineTuneTransform:
    """timm's augmentation for training, or timm's evaluation transform, which `AutoImageProcessor` applies to the
    exported model as well. Random values come from the generators of torch, Python and NumPy.

    Args:
        pretrained_cfg: timm's `input_size`, `interpolation`, `mean`, `std`, `crop_pct` and `crop_mode`.
        train: whether to augment.
        spec: what is taken of a stored image; of its own, the channels of `input_size` of images of 8 bits.
        options: keyword arguments of `timm.data.create_transform` for training.

    Raises:
        ValueError: naming `auto_augment` or `color_jitter`, if it knows nothing of such images.
    """

    def __init__(self, pretrained_cfg: dict, train: bool = True, spec: PixelSpec | None = None, **options: Any):
        self.spec = spec or PixelSpec(pretrained_cfg["input_size"][0])
        self.of_bytes = bool(train and options.get("auto_augment"))
        if train:
            _check_augmentation(self.spec, options)
        self.crop_scale = options.get("scale")
        settings = {k: pretrained_cfg[k] for k in ("interpolation", "mean", "std", "crop_pct")}
        settings |= {"crop_mode": pretrained_cfg.get("crop_mode")}
        settings |= {"color_jitter": None, **options} if train else {}
        self.transform = create_transform(tuple(pretrained_cfg["input_size"]), is_training=train, **settings)

    def __call__(self, image: Any) -> dict[str, torch.Tensor]:
        """Argument and errors as `PreTrainTransform.draw`; returns `pixel_values`, float32 (channels, height, width),
        normalised."""
        image = load_pixels(image, self.spec)
        if isinstance(image, torch.Tensor) and self.of_bytes:
            if image.dtype != torch.uint8:
                raise ValueError(f"auto_augment: is of images of 8 bits, and this one is of {image.dtype}")
            image = v2.functional.to_pil_image(image)
        elif isinstance(image, torch.Tensor) and image.dtype == torch.uint8:  # an array, which timm would not scale
            image = image / 255
        return {"pixel_values": self.transform(image)}


def _check_augmentation(spec: PixelSpec, options: dict[str, Any]):
    """Refuse what timm has for photographs alone, before any image is read. Errors as `FineTuneTransform`."""
    channels, photographs = spec.num_channels, spec.plain and spec.num_channels in MODES
    if options.get("auto_augment") and not photographs:
        takes = f"values {spec.value_range}" if spec.value_range else f"{channels} channel(s) of its choice"
        raise ValueError(f"auto_augment: is of photographs of 8 bits, and this model takes {takes}; leave it out")
    refuse_cutting("color_jitter", options.get("color_jitter"), spec.value_range)
    if options.get("color_jitter") and channels not in (1, 3) and not photographs:
        raise ValueError(f"color_jitter: is for images of 1 or 3 channels, this model takes {channels}; leave it out")


@contextlib.contextmanager
def seeded(*identity: int) -> Iterator[None]:
    """Seed the generators with these numbers (see `seed_generators`), and restore their states afterwards."""
    with generators_kept():
        seed_generators(*identity)
        yield


@contextlib.contextmanager
def generators_kept(torch_only: bool = False) -> Iterator[None]:
    """Restore the states of torch's CPU generator, Python's and NumPy's afterwards. `torch_only` leaves out the latter
    two, which take 0.2 ms."""
    state = torch.get_rng_state()
    others = None if torch_only else (random.getstate(), np.random.get_state())
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])


def seed_generators(*identity: int, torch_only: bool = False):
    """Seed torch's CPU generator, Python's and NumPy's with these numbers: seed, epoch and row of a sample, say."""
    # As one array, the same words are taken up in half of the time; SeedSequence splits larger numbers.
    words = np.array(identity, np.uint32) if all(0 <= number < 2**32 for number in identity) else identity
    first, second = np.random.SeedSequence(words).generate_state(2).tolist()
    torch.default_generator.manual_seed(first << 32 | second)
    if not torch_only:
        random.seed(first)
        np.random.seed(second)
