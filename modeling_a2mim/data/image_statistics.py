"""What a sample of the images says of all of them: whether they are of 8 bits, the range of their values, and mean and
standard deviation of each channel."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers.utils.logging import tqdm

from ..utils.value_range import NO_WINDOW, WINDOW, ValueRange, short_limits
from .arrays import ArrayImage, BrokenImage
from .decoding import as_array, load_tensor, open_stored
from .held_out import spread_rows
from .pixel_spec import PixelSpec, channel_choice, known_values
from .sources import RowSource


logger = logging.getLogger("a2mim")

LOOKED_AT = 16  # images whose headers tell how all are stored
BYTES = "8 bits"  # of `stored_types`
FEW = 4  # images of which it is told how much of a range they fill
SAMPLE = 512  # images that are measured, all if there are no more
FAINT = 0.02  # of the range of all channels: one that fills less is hardly seen
NARROW = 0.25  # of a range: most values lie in less


@dataclass(frozen=True)
class Statistics:
    """Of pixels in [0, 1], of `images` images, each of which counts alike.

    Attributes:
        mean, std: of each channel; a channel that is the same everywhere has a standard deviation of 1.
        error: of each mean, its standard error beside the mean of all images; 0 if all were measured.
        images: how many were measured.
    """

    mean: list[float]
    std: list[float]
    error: list[float]
    images: int


def stored_types(source: RowSource, spec: PixelSpec) -> Counter[str]:
    """How the values of some images are stored, and how many of them: "8 bits" or a type of NumPy. Broken images are
    left out, unless all are, and so are those without a window where that is asked for.

    Args:
        source: rows whose column of images is selected.
        spec: what is taken of them.

    Raises:
        ValueError: naming the image, if it has not the channels of `spec`, or if none can be used.
    """
    reasons: list[str] = []
    found: Counter[str] = Counter()
    windows = spec.value_range is not None and spec.value_range.of == WINDOW
    for row, value in _images(source, _looked_at(source), spec, reasons):
        if isinstance(value, Image.Image) and spec.plain:
            found[BYTES] += 1
            continue
        try:
            image = as_array(value) if isinstance(value, Image.Image) else value
            channel_choice(image, spec)
        except BrokenImage as error:
            reasons.append(f"{source.describe(row)}: {error}")
            continue
        except ValueError as error:
            raise _of_row(source, row, error) from error
        if windows and image.window is None:
            reasons.append(f"{source.describe(row)}: {NO_WINDOW}")
            continue
        found[BYTES if image.dtype == np.uint8 else str(image.dtype)] += 1
    if reasons and not found:
        raise ValueError(f"none of {len(reasons)} images that were looked at can be used; {reasons[0]}")
    return found


def kinds_of_first(source: RowSource, spec: PixelSpec) -> Counter[str]:
    """How many of the images that `stored_types` looks at are of 8 bits, and how many "others"; without its checks, as
    a model that is there tells one by one which images it cannot take. Arguments as there."""
    found: Counter[str] = Counter()
    for _, value in _images(source, _looked_at(source), spec):
        of_bytes = isinstance(value, Image.Image) or value.dtype == np.uint8
        found["others" if not of_bytes else BYTES] += 1
    return found


def _looked_at(source: RowSource) -> list[int]:
    # Of rows that are read together, those of one chunk: others would have to be fetched for one image each.
    if source.row_bytes:
        return list(range(min(LOOKED_AT, int(source.chunks[0]))))
    return spread_rows(LOOKED_AT, source.chunks).tolist()


def refuse_bytes(types: Counter[str], kept: ValueRange | None, what_to_do: str):
    """Refuse images of 8 bits for a model whose range of values they do not fill: it would see next to nothing.

    Args:
        types: of `stored_types`.
        kept: that the model keeps.
        what_to_do: said at the end.

    Raises:
        ValueError: naming `value_range`.
    """
    if kept is not None and not kept.holds_bytes() and BYTES in types:
        raise ValueError(
            f"value_range: the model takes values {kept}, and {types[BYTES]} of {types.total()} images that were "
            f"looked at are of 8 bits (0 to 255); {what_to_do}"
        )


def find_range(source: RowSource, spec: PixelSpec) -> ValueRange:
    """The lowest and the highest finite value in a sample of the images; nothing outside is cut off.

    Args:
        source: rows whose column of images is selected.
        spec: what is taken of them.

    Raises:
        ValueError: naming `value_range`, if there are no such values, or if some of the images are of 8 bits.
    """
    lowest, highest, parts, channels = np.inf, -np.inf, [], []
    reasons: list[str] = []
    of_bytes: list[int] = []
    rows = spread_rows(SAMPLE, source.chunks).tolist()
    for row, image in _images(source, tqdm(rows, desc="range of values", unit=" images", delay=3), spec, reasons):
        if isinstance(image, Image.Image) or image.dtype == np.uint8:
            of_bytes.append(row)
            continue
        try:
            values = known_values(channel_choice(image, spec)(image.read()), image)
        except BrokenImage as error:
            reasons.append(f"{source.describe(row)}: {error}")
            continue
        except ValueError as error:
            raise _of_row(source, row, error) from error
        known, values = values, values[np.isfinite(values)]
        if values.size:
            lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
            parts.append(values[:: max(1, values.size // 4096)].astype(np.float64))
            channels.append([_middle(channel) for channel in known])
    if not parts:
        why = f"; {reasons[0]}" if reasons else ""
        raise ValueError(f"value_range: of {len(rows)} images none has values that can be read; give LOW HIGH{why}")
    if of_bytes:
        raise ValueError(
            f"value_range: {len(of_bytes)} of {len(rows)} images are of 8 bits, and others are not: "
            f"{source.describe(of_bytes[0])}; give LOW HIGH of them all"
        )
    low, high = np.percentile(np.concatenate(parts), [0.1, 99.9]).tolist()
    if high - low < NARROW * (highest - lowest):
        most = short_limits(low, high)
        logger.warning(
            "value_range: nearly all values lie between %s and %s, the lowest is %s and the highest %s; --value_range "
            "%s %s would give more contrast, and cut the others off",
            *(*most, *short_limits(lowest, highest), *most),
        )
    _tell_faint(np.array(channels), highest - lowest)
    return ValueRange((lowest,), (highest if highest > lowest else lowest + 1.0,), clip=False)


def _middle(channel: np.ndarray) -> tuple[float, float]:
    """Between which values 98% of the finite ones of (height, width) lie; NaN if there are none."""
    finite = channel[np.isfinite(channel)]
    if not finite.size:
        return np.nan, np.nan
    low, high = np.percentile(finite[:: max(1, finite.size // 4096)], [1, 99]).tolist()
    return low, high


def _tell_faint(channels: np.ndarray, width: float):
    """Warn of channels that are nearly the same everywhere in a range that is that of all.

    Args:
        channels: (images, channels, 2), of `_middle`.
        width: of the range.
    """
    some = ~np.isnan(channels[..., 0]).all(0)
    if len(some) < 2 or not width:
        return
    lows, highs = np.nanmin(channels[:, some, 0], 0), np.nanmax(channels[:, some, 1], 0)
    faint = [
        number
        for number, share in zip(np.flatnonzero(some) + 1, (highs - lows) / width, strict=True)
        if 0 < share < FAINT
    ]
    if faint:
        pairs = " ".join(" ".join(short_limits(a, b if b > a else a + 1)) for a, b in zip(lows, highs, strict=True))
        ranges = (
            f", or --value_range {pairs}, which gives each a range of its own and cuts off the rest"
            if some.all()
            else ""
        )
        logger.warning(
            "value_range: channel(s) %s fill less than %g%% of the range of all, and count little beside the others; "
            "--image_mean auto --image_std auto gives all the same weight%s",
            *(", ".join(map(str, faint)), 100 * FAINT, ranges),
        )


def filled_share(source: RowSource, spec: PixelSpec) -> float | None:
    """How much of the range from 0 to 1 all but 1% of the pixels of a few images fill, as the model takes them; `None`
    if none can be read. Arguments as `find_statistics`."""
    parts = []
    rows = _looked_at(source)
    for row in rows[:: max(1, len(rows) // FEW)]:
        value = source.read([row])[0][0]
        if isinstance(value, BrokenImage):
            continue
        try:
            pixels = load_tensor(value, spec).flatten()
        except BrokenImage:  # which is counted when it is trained on
            continue
        except ValueError as error:
            raise _of_row(source, row, error) from error
        parts.append(pixels[:: max(1, len(pixels) // 65_536)].numpy())
    if not parts:
        return None
    low, high = np.percentile(np.concatenate(parts), [0.5, 99.5]).tolist()
    return high - low


def find_statistics(source: RowSource, spec: PixelSpec) -> Statistics:
    """Mean and standard deviation of each channel of a sample of the images, as the model takes them.

    Args:
        source: rows whose column of images is selected.
        spec: what is taken of them.

    Raises:
        ValueError: naming `image_mean`, if no image can be read, or the image that has other channels.
    """
    rows = spread_rows(SAMPLE, source.chunks).tolist()
    means, squares, reasons = [], [], []
    for row in tqdm(rows, desc="mean of the images", unit=" images", delay=3):
        value = source.read([row])[0][0]
        try:
            if isinstance(value, BrokenImage):
                raise value
            pixels = load_tensor(value, spec)
        except BrokenImage as error:
            reasons.append(f"{source.describe(row)}: {error}")
            continue
        except ValueError as error:
            raise _of_row(source, row, error) from error
        numbers = pixels.flatten(1).double() / (255 if pixels.dtype == torch.uint8 else 1)
        means.append(numbers.mean(1))
        squares.append(numbers.square().mean(1))
    if not means:
        raise ValueError(f"image_mean: of {len(rows)} images none can be read; {reasons[0]}")
    of_images, count = torch.stack(means), len(means)
    mean = of_images.mean(0)
    std = (torch.stack(squares).mean(0) - mean.square()).clamp(min=0).sqrt()
    left_out = 1 - count / max(len(source), count)
    spread = of_images.std(0) if count > 1 else torch.zeros_like(mean)
    errors = spread * (left_out / count) ** 0.5
    return Statistics(mean.tolist(), torch.where(std > 1e-6, std, 1.0).tolist(), errors.tolist(), count)


def _of_row(source: RowSource, row: int, error: ValueError) -> ValueError:
    """An error that names its field first, and then the image."""
    field, _, message = str(error).partition(": ")
    hint = "; give --num_channels, or choose some by --channels (from 1)" if field == "num_channels" else ""
    return ValueError(f"{field}: {source.describe(row)}: {message}{hint}")


def _images(
    source: RowSource, rows: Iterable[int], spec: PixelSpec, reasons: list[str] | None = None
) -> Iterator[tuple[int, Image.Image | ArrayImage]]:
    """The images that are not broken; of the others, `reasons` get why."""
    for row in rows:
        value = source.read([row])[0][0]
        try:
            if isinstance(value, BrokenImage):
                raise value
            image = open_stored(value, spec)
        except BrokenImage as error:
            if reasons is not None:
                reasons.append(f"{source.describe(row)}: {error}")
            continue
        yield row, image
