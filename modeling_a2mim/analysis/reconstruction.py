"""What a model reconstructs: original, masked, reconstruction, and the reconstruction pasted; how good that is, and at
which frequencies it is wrong."""

import argparse
import logging
import math
import os
import runpy
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from ..configuration_a2mim import A2MIMConfig
from ..data.transforms import PreTrainTransform
from ..evaluation.baselines import mean_guess
from ..export.record import versions
from ..masking import fill_masked, pixel_mask
from ..modeling_a2mim import A2MIMForPreTraining
from ..utils.files import atomic_write, write_json
from ..utils.plotting import LONGEST_LABEL, caption_font, drawable, new_figure, short_names, to_pil_image
from ..utils.value_range import ValueRange
from .comparison import DTYPES, Images, load_models, model_names
from .results import ResultFiles


logger = logging.getLogger("a2mim")

COLUMNS = ("original", "masked", "reconstruction", "pasted")
MEAN_GUESS = {"pixels": "mean fill", "normalised": "cells' means"}  # what it is called beneath a figure, by target
CELL = 112  # pixels of the shorter side of an image in a panel, at least
MOST_SHOWN = 16
SSIM_WINDOW = 11  # pixels
RESULTS = ResultFiles("reconstruction.json", "spectrum.png", ".png")


@torch.no_grad()
def reconstruct(
    model: A2MIMForPreTraining, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The four images of each sample and its `mean_guess`, (batch, channels, height, width) with values in [0, 1];
    beyond it, where the range of the model cuts nothing off.

    Args:
        model: in whatever mode; it is run in evaluation mode and put back.
        pixel_values: (batch, channels, height, width), normalised.
        bool_masked_pos: (batch, rows, columns), 1 = masked.
    """
    config, training = model.config, model.training
    pixel_values = pixel_values.to(model.device, torch.float32)
    model.eval()
    try:
        output = model(pixel_values, bool_masked_pos.to(model.device))
    finally:
        model.train(training)
    mask, prediction = output.bool_masked_pos, output.reconstruction.float()
    # Where the encoder sees the masked pixels (SimMIM), grey shows which ones they are.
    fill = "zero" if config.mask_fill == "none" else config.mask_fill
    images = {
        "original": pixel_values,
        "masked": fill_masked(pixel_values, mask, fill),
        "reconstruction": prediction,
        "mean_guess": mean_guess(pixel_values, mask, config),
        "pasted": torch.where(
            pixel_mask(mask, (pixel_values.shape[-2], pixel_values.shape[-1])), prediction, pixel_values
        ),
    }
    mean = pixel_values.new_tensor(config.image_mean).view(-1, 1, 1)
    std = pixel_values.new_tensor(config.image_std).view(-1, 1, 1)
    known = ValueRange.from_config(config.value_range)
    values = {name: (image * std + mean).cpu() for name, image in images.items()}
    return values if known and not known.clip else {name: value.clamp(0, 1) for name, value in values.items()}


def reconstruction_quality(images: dict[str, torch.Tensor], bool_masked_pos: torch.Tensor) -> list[dict[str, float]]:
    """How close each reconstruction is to its original; of `reconstruct` and (batch, rows, columns), 1 = masked.

    Returns:
        For each image `psnr` (dB) and `ssim` (at most 1) of the pasted image, by scikit-image, with the Gaussian
        window of Wang et al., 2004; `masked_psnr` (dB) of its masked pixels alone, which does not rise because fewer
        are masked; and `mean_fill_psnr`, the same of `mean_guess`. A perfect image has a PSNR of
        infinity; images of sides below 11 px have an SSIM of NaN.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    originals, pasted = (images[name].double().numpy() for name in ("original", "pasted"))
    masks = pixel_mask(bool_masked_pos.cpu(), originals.shape[-2:]).expand(images["original"].shape).numpy()
    fills = images["mean_guess"].double().numpy()
    found = []
    for original, guess, fill, mask in zip(originals, pasted, fills, masks, strict=True):
        with np.errstate(divide="ignore"):  # of no error
            quality = {
                "psnr": peak_signal_noise_ratio(original, guess, data_range=1),
                "masked_psnr": peak_signal_noise_ratio(original[mask], guess[mask], data_range=1),
                "mean_fill_psnr": peak_signal_noise_ratio(original[mask], fill[mask], data_range=1),
            }
        quality["ssim"] = float("nan")
        if min(original.shape[1:]) >= SSIM_WINDOW:
            quality["ssim"] = structural_similarity(
                original,
                guess,
                data_range=1,
                channel_axis=0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        found.append({name: float(value) for name, value in quality.items()})
    return found


def power_spectrum(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Power by frequency, mean over images, channels and directions.

    Args:
        images: (batch, channels, height, width).

    Returns:
        Frequencies in cycles per pixel, up to 0.5, and the power |FFT|^2 / pixels at each: white noise of variance v
        has v everywhere.
    """
    height, width = images.shape[-2:]
    power = torch.fft.fft2(images.double()).abs().square().mean((0, 1)) / (height * width)
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    side = min(height, width)
    ring = (radius * side).round().long()
    kept = ring <= side // 2
    counts = torch.bincount(ring[kept])
    total = torch.bincount(ring[kept], weights=power[kept])
    return np.arange(len(counts)) / side, (total / counts).numpy()


def error_spectrum(images: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The same of what is wrong in the pasted images of `reconstruct`."""
    return power_spectrum(images["pasted"].double() - images["original"].double())


def panel(
    images: dict[str, torch.Tensor],
    quality: Sequence[dict[str, float]] | None = None,
    title: str | None = None,
    names: Sequence[str] | None = None,
    channels: Sequence[int] | None = None,
    stretch: bool = False,
    guess: str = "mean fill",
) -> Image.Image:
    """One row for each image, one labelled column for each of `COLUMNS`. Images smaller than 112 px are enlarged.

    Args:
        images: of `reconstruct`.
        quality: of `reconstruction_quality`: the PSNR of the masked pixels, of `mean_guess` and reconstructed, is
            written beneath the images.
        title: written above all.
        names: of the images, written beneath the originals; the end of those that are too long.
        channels: which are shown (see `utils.plotting.to_pil_image`).
        stretch: whether the values of each original are stretched from black to white, and those beside it likewise.
        guess: what `mean_guess` is called.
    """
    count, _, height, width = images["original"].shape
    scale, gap, line = max(1, math.ceil(CELL / min(height, width))), 4, 14
    cell = (width * scale, height * scale)
    top, step = line * (1 + (title is not None)) + 2, cell[1] + gap + (line if quality or names else 0)
    sheet = Image.new("RGB", (len(COLUMNS) * (cell[0] + gap) + gap, top + gap + count * step), "white")
    draw, font = ImageDraw.Draw(sheet), caption_font()[0]
    if title is not None:
        draw.text((gap, 2), drawable(title), fill="black", font=font)
    for column, name in enumerate(COLUMNS):
        left = gap + column * (cell[0] + gap)
        draw.text((left, top - line), name, fill="black", font=font)
        for row in range(count):
            like = images["original"][row] if stretch else None
            tile = to_pil_image(images[name][row], channels=channels, like=like)
            tile = tile.resize(cell, Image.Resampling.NEAREST)
            sheet.paste(tile, (left, top + gap + row * step))
    captions = [(row, 0, _fitting(draw, name, cell[0])) for row, name in enumerate(names or ())]
    for row, values in enumerate(quality or ()):
        captions.append((row, 1, f"{guess} {values['mean_fill_psnr']:.1f} dB"))
        captions.append((row, 3, f"{values['masked_psnr']:.1f} dB, SSIM {values['ssim']:.2f}"))
    for row, column, text in captions:
        place = gap + column * (cell[0] + gap), top + gap + row * step + cell[1]
        draw.text(place, text, fill="black", font=font)
    return sheet


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The end of a text that fits into a width in pixels."""
    text, shown, font = drawable(text), 0, caption_font()[0]
    while shown < len(text) and draw.textlength(text[-shown - 1 :], font=font) <= width:
        shown += 1
    return text if shown == len(text) else f"..{text[len(text) - max(0, shown - 2) :]}"


def plot_reconstructions(
    model: A2MIMForPreTraining,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    max_images: int = 8,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """The panel of at most `max_images` images, with names and quality; arguments as for `reconstruct` and `panel`."""
    images = reconstruct(model, pixel_values[:max_images], bool_masked_pos[:max_images])
    quality = reconstruction_quality(images, bool_masked_pos[:max_images])
    names = None if names is None else names[:max_images]
    config = model.config
    return panel(
        images,
        quality,
        None,
        names,
        config.display_channels,
        config.value_range is not None,
        MEAN_GUESS[config.target],
    )


def compare(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming the argument that cannot be."""
    RESULTS.check(args.out, model_names(args), args.overwrite)
    models = load_models(args, "pretraining")
    images = Images.open(args, models=models)
    for named in models:
        if args.mask_ratio is not None:
            config = cast(A2MIMForPreTraining, named.model).config
            named.transform = PreTrainTransform(with_mask_ratio(config, args.mask_ratio), train=False)
        if args.display_channels is not None:  # which may be none of this model's
            with_settings_of(cast(A2MIMForPreTraining, named.model).config, display_channels=args.display_channels)
    record, spectra, pictures, dtype = {}, {}, {}, DTYPES[args.dtype]
    for named in models:
        model, mask_ratio = (
            cast(A2MIMForPreTraining, named.model),
            cast(PreTrainTransform, named.transform).config.mask_ratio,
        )
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in COLUMNS}
        quality, samples = [], images.samples(named)
        with tqdm(total=len(images), desc=named.name, unit=" images") as bar:
            while batch := list(islice(samples, args.batch_size)):
                pixels, masks = (torch.stack([s[key] for s in batch]) for key in ("pixel_values", "bool_masked_pos"))
                with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
                    part = reconstruct(model, pixels, masks)
                quality += reconstruction_quality(part, masks)
                for name, values in parts.items():
                    values.append(part[name])
                bar.update(len(batch))
        found = {name: torch.cat(values) for name, values in parts.items()}
        title = f"{named.name}, mask ratio {mask_ratio:g}, seed {args.seed}"
        shown = {name: value[:MOST_SHOWN] for name, value in found.items()}
        displayed, stretch = args.display_channels or model.config.display_channels, model.config.value_range
        guess = MEAN_GUESS[model.config.target]
        pictures[named.name] = panel(shown, quality[:MOST_SHOWN], title, None, displayed, stretch is not None, guess)
        spectra[named.name] = error_spectrum(found)
        originals = power_spectrum(found["original"])
        record[named.name] = {
            "mask_ratio": mask_ratio,
            "seed": args.seed,
            "rows": images.rows,
            "mean": {key: _mean([one[key] for one in quality]) for key in quality[0]},
            "images": [{key: _number(value) for key, value in one.items()} for one in quality],
            "error_spectrum": dict(
                zip(("cycles_per_pixel", "power"), (v.tolist() for v in spectra[named.name]), strict=True)
            ),
        }
        logger.info("%s: %s", named.name, ", ".join(f"{k} {v}" for k, v in record[named.name]["mean"].items()))
    args.out.mkdir(parents=True, exist_ok=True)
    RESULTS.remove(args.out, pictures)
    for name, picture in pictures.items():
        with atomic_write(args.out / RESULTS.of_model(name)) as temporary:
            picture.save(temporary, "PNG")
    write_json(args.out / RESULTS.record, {"models": record, "versions": versions()})
    spectrum_figure(spectra, originals, args.out / RESULTS.figure)
    logger.info("written to %s", args.out)


def with_mask_ratio(config: A2MIMConfig, mask_ratio: float) -> A2MIMConfig:
    """A configuration with another share of masked cells. Raises ValueError naming `mask_ratio`, if it cannot be."""
    return with_settings_of(config, mask_ratio=mask_ratio)


def with_settings_of(config: A2MIMConfig, **settings: Any) -> A2MIMConfig:
    """A configuration with other settings. Raises ValueError naming the one that cannot be."""
    return type(config).from_dict({**config.to_dict(), **settings})


def _mean(values: Sequence[float]) -> float | None:
    return _number(float(np.mean(values)))


def _number(value: float) -> float | None:
    """For JSON, which knows no infinity."""
    return round(value, 4) if math.isfinite(value) else None


def spectrum_figure(
    spectra: Mapping[str, tuple[np.ndarray, np.ndarray]],
    images: tuple[np.ndarray, np.ndarray],
    path: str | os.PathLike,
):
    """Draw to a PNG file the power of the errors of several models by frequency, each (frequencies, power), and beside
    them that of the images themselves."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    axes.plot(*images, color="black", linestyle=":", label="the images")
    for label, (frequencies, power) in zip(short_names(list(spectra), LONGEST_LABEL), spectra.values(), strict=True):
        axes.plot(frequencies, power, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("frequency, cycles per pixel")
    axes.set_ylabel("power of the error, of pixels in [0, 1]")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    runpy.run_module("modeling_a2mim.commands.reconstruct", run_name="__main__")
