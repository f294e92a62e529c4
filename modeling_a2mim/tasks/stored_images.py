"""What is not given of how images are stored is found in them before the model is built."""

import dataclasses
import logging
from typing import Any, TypeVar

import datasets
from datasets import Image

from ..arguments.data import DataArguments
from ..arguments.model import EncoderArguments, is_auto
from ..arguments.settings import given_settings
from ..configuration_a2mim import A2MIMConfig
from ..data.columns import find_column
from ..data.dataset import ImageSamples
from ..data.image_statistics import (
    BYTES,
    filled_share,
    find_range,
    find_statistics,
    kinds_of_first,
    refuse_bytes,
    stored_types,
)
from ..data.pages import with_pages
from ..data.pixel_spec import PixelSpec
from ..data.sources import RowSource
from ..data.splits import as_source
from ..data.transforms import refuse_cutting
from ..utils.value_range import SAMPLES, ValueRange, short_limits


logger = logging.getLogger("a2mim")

Args = TypeVar("Args", bound=EncoderArguments)
LEAST_FILLED = 0.01  # of a range that is given; below that it is of other values
STATISTICS = ("image_mean", "image_std")


def with_found_values(
    args: Args,
    data_args: DataArguments,
    train: datasets.Dataset | RowSource,
    image_column: str | None = None,
    config: A2MIMConfig | None = None,
) -> Args:
    """The arguments with a range of values, mean and standard deviation where these are `auto`, or where images are
    not of 8 bits and no range is known. What was found is in the log.

    Args:
        args: of the model.
        data_args: how to read the images.
        train: the images that it is trained on.
        image_column: of the images, if another one than `data_args` says.
        config: of the model that it starts from, if there is one.

    Raises:
        ValueError: naming the argument, if it does not fit the images.
    """
    given = given_settings(args)
    known = {} if config is None else {"num_channels": config.num_channels, **config.stored_images}
    if is_auto(args.value_range):
        known.pop("value_range", None)
    kept = ValueRange.from_config(known.get("value_range")) if args.value_range is None else None
    if kept is not None:
        logger.info("value_range: %s, as the model has it", kept)
    known |= given
    channels = known.get("num_channels", A2MIMConfig.num_channels)
    spec = PixelSpec.from_fields(channels, known, data_args.max_image_pixels)
    _check_cutting(data_args, spec.value_range)
    source = as_source(data_args, train)
    if source.columns is None:
        name = image_column or data_args.image_column_name
        source = source.select(find_column(source, Image, name, "image_column_name"))
    if spec.pages == SAMPLES:
        source = with_pages(source, spec.stored_channels)
    found: dict[str, Any] = {}
    types = stored_types(source, spec)
    if kept is not None:
        same = " ".join(kept.to_words())
        ways = f"--value_range auto takes the range of the images, --value_range {same} is what the model has"
        refuse_bytes(types, kept, ways)
    if spec.value_range is None:
        others = {kind: count for kind, count in types.items() if kind != BYTES}
        if others and BYTES in types:
            counted = ", ".join(f"{count} of {kind}" for kind, count in types.items())
            raise ValueError(f"value_range: images are stored in several ways ({counted}); give LOW HIGH of them all")
        if others:
            limits = find_range(source, spec)
            _check_cutting(data_args, limits)
            spec = dataclasses.replace(spec, value_range=limits)
            found["value_range"] = limits.to_words()
            logger.info(
                "value_range auto: %s to %s become 0 to 1, lowest and highest value (%s) of a sample of the images",
                *(*short_limits(limits.low[0], limits.high[0]), " and ".join(others)),
            )
        elif is_auto(args.value_range):
            if config is not None and config.value_range is not None:  # which the model would keep
                found["value_range"] = ["0", "255"]
            logger.info("value_range auto: images are of 8 bits; 0 to 255 become 0 to 1")
    elif spec.value_range.of is None and min(spec.value_range.high) > 2 * 255 and types.keys() == {BYTES}:
        logger.warning(
            "value_range: images are of 8 bits, at most 255, and %s become 0 to 1: nearly nothing will be seen in "
            "them; give --value_range 0 255",
            spec.value_range,
        )
    elif args.value_range is not None and spec.value_range.of is None:
        filled = filled_share(source, spec)
        if filled is not None and filled < LEAST_FILLED:
            logger.warning(
                "value_range: where %s become 0 to 1, nearly all pixels of a few images that were read lie within "
                "%.2g of each other, nearly nothing will be seen in them; is the range that of the values as they are "
                "stored? --value_range auto measures it",
                spec.value_range,
                filled,
            )
    if is_auto(args.image_mean) or is_auto(args.image_std):
        statistics = find_statistics(source, spec)
        error = f"; standard error of the means at most {max(statistics.error):.2g}" if any(statistics.error) else ""
        for name, values in (("image_mean", statistics.mean), ("image_std", statistics.std)):
            if is_auto(getattr(args, name)):
                found[name] = [round(value, 6) for value in values]
                shown = " ".join(f"{value:.4g}" for value in values)
                if spec.value_range is not None and not spec.value_range.clip:  # within which they may be any
                    found.setdefault("value_range", spec.value_range.to_words())
                logger.info("%s auto: %s, of %d of %d images%s", name, shown, statistics.images, len(source), error)
    if config is not None and (kept_statistics := [n for n in STATISTICS if getattr(args, n) is None]):
        before = PixelSpec.from_config(config, data_args.max_image_pixels)
        if (spec.value_range, spec.channels) != (before.value_range, before.channels):
            names, autos = " and ".join(kept_statistics), " ".join(f"--{name} auto" for name in kept_statistics)
            logger.info("%s: as the model has it, of other values or channels; %s measures these", names, autos)
    return dataclasses.replace(args, **found) if found else args


def _check_cutting(data_args: DataArguments, known: ValueRange | None):
    for field in ("color_jitter", "corruptions"):  # of the tasks that have them
        refuse_cutting(field, getattr(data_args, field, None), known)


def check_evaluated(samples: ImageSamples) -> ImageSamples:
    """The samples that a model is evaluated on as it is; not those of 8 bits, if it keeps a range that they do not
    fill.

    Raises:
        ValueError: naming `value_range`.
    """
    spec = samples.transform.spec  # type: ignore[attr-defined]  # of every transform of a task
    if spec.value_range is not None:
        refuse_bytes(kinds_of_first(samples.source, spec), spec.value_range, "--eval_only evaluates it as it is")
    return samples
