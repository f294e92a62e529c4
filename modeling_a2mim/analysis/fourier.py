"""Which spatial frequencies the feature maps of an encoder hold, and how much they vary, by depth.

Park & Kim, 2022 (https://arxiv.org/abs/2202.06709): attention damps high frequencies and evens features out,
convolutions do the opposite.
"""

import argparse
import logging
import os
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..encoders.layout import MOST_PREFIX_TOKENS, FeatureLayout
from ..encoders.sites import block_layouts
from ..export.record import versions
from ..utils.files import write_json
from ..utils.plotting import LONGEST_LABEL, new_figure, short_names
from .comparison import DTYPES, Images, load_models, model_names
from .results import ResultFiles


COLUMNS = 4  # panels in a row, where each model has its own


logger = logging.getLogger("a2mim")

RESULTS = ResultFiles("fourier.json", "fourier.png")
LEAST = 1e-6  # added to amplitudes before the logarithm, as in the authors' code


@dataclass
class FourierAnalysis:
    """The result of `fourier_analysis`, a value for each layer in order of depth.

    Attributes:
        layers: their names: modules of timm, or hidden states of transformers.
        grids: (rows, columns) of their feature maps.
        frequencies: of each layer (frequencies,), from 0 to 1, in units of pi radians per cell.
        log_amplitude: of each layer (frequencies,), the mean of log |FFT| along the diagonal, relative to frequency 0
            (natural logarithm): 0 at frequency 0, negative where a frequency is weaker.
        variance: (layers,), of a feature over the positions of the map, mean over images and channels.
        images: how many.
    """

    layers: list[str]
    grids: list[tuple[int, int]]
    frequencies: list[np.ndarray]
    log_amplitude: list[np.ndarray]
    variance: np.ndarray
    images: int

    @property
    def depth(self) -> np.ndarray:
        """(layers,), from 0 (first) to 1 (last)."""
        return np.linspace(0, 1, len(self.layers)) if len(self.layers) > 1 else np.zeros(1)

    def to_dict(self) -> dict:
        """For JSON: of each layer its name, grid, frequencies over pi, relative log amplitude and variance."""
        values = zip(
            self.layers, self.grids, self.frequencies, self.log_amplitude, self.variance.tolist(), strict=True
        )
        return {
            "images": self.images,
            "layers": [
                {
                    "name": name,
                    "grid": list(grid),
                    "frequency_over_pi": [round(f, 6) for f in frequencies.tolist()],
                    "relative_log_amplitude": [float(f"{a:.7g}") for a in amplitude.tolist()],
                    "variance": float(f"{variance:.7g}"),
                }
                for name, grid, frequencies, amplitude, variance in values
            ],
        }


def diagonal(grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Where the half diagonal of a spectrum of `torch.fft.rfft2` lies: rows, columns, and the frequencies there from 0
    to at most 1, in units of pi. Of grids that are not square the nearest columns (or rows) are taken."""
    side = min(grid)
    steps = np.arange(side // 2 + 1)
    rows, columns = (torch.from_numpy(np.floor(steps * length / side + 0.5).astype(int)) for length in grid)
    return rows.clamp(max=grid[0] // 2), columns.clamp(max=grid[1] // 2), 2 * steps / side


def log_amplitude(maps: torch.Tensor) -> torch.Tensor:
    """Mean over channels of log |FFT| along the half diagonal, (batch, channels, rows, columns) to
    (batch, frequencies)."""
    spectrum = torch.fft.rfft2(maps if maps.dtype == torch.float64 else maps.float())
    rows, columns, _ = diagonal((maps.shape[-2], maps.shape[-1]))
    return (spectrum[..., rows.to(maps.device), columns.to(maps.device)].abs() + LEAST).log().mean(1)


def feature_variance(maps: torch.Tensor) -> torch.Tensor:
    """Variance over positions, mean over channels: (batch, channels, rows, columns) to (batch,)."""
    return (maps if maps.dtype == torch.float64 else maps.float()).flatten(2).var(2).mean(1)


def fourier_analysis(
    model: nn.Module,
    images: Iterable[torch.Tensor],
    *,
    batch_size: int = 64,
    dtype: torch.dtype | None = None,
    description: str = "images",
    total: int | None = None,
) -> FourierAnalysis:
    """Relative log amplitude by frequency, and variance, of the feature maps of each layer.

    Args:
        model: an encoder or classifier of ours or of timm: its layers as timm counts them (blocks); or one of
            transformers: its hidden states. It is run in evaluation mode and put back. Layers whose map has a side of
            one cell are left out.
        images: (channels, height, width) each, normalised; a tensor, or anything to be read one by one.
        batch_size: images in a forward pass.
        dtype: run under autocast with this type; spectra are computed in float32 in any case (float64 for float64).
        description, total: of the progress bar; how many images there are, where they cannot be counted.

    Raises:
        ValueError: naming `images`, if there are none or features are not finite; `model`, if it has no feature maps.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
    parameter = next(model.parameters())
    total = len(images) if isinstance(images, Sized) else total
    stream, training, count = iter(images), model.training, 0
    sums: dict[str, list] = {}
    layers = None
    model.eval()
    try:
        with torch.no_grad(), tqdm(total=total, desc=description, unit=" images") as bar:
            while batch := list(islice(stream, batch_size)):
                pixels = torch.stack(batch).to(parameter.device, parameter.dtype)
                layers = layers or _Layers(model, pixels)
                with torch.autocast(pixels.device.type, dtype, enabled=dtype is not None):
                    maps = dict(layers.maps(pixels))
                for name, found in maps.items():
                    new = [log_amplitude(found).double().sum(0), feature_variance(found).double().sum()]
                    old = sums.setdefault(name, [tuple(found.shape[-2:]), 0, 0])
                    sums[name] = [old[0], old[1] + new[0], old[2] + new[1]]
                count += len(batch)
                bar.update(len(batch))
    finally:
        model.train(training)
    if not count:
        raise ValueError("images: there are none")
    if not sums:
        raise ValueError(f"model: no layer of {type(model).__name__} gives a feature map of more than one cell")
    amplitudes = [(amplitude / count).cpu().numpy() for _, amplitude, _ in sums.values()]
    variance = np.array([float(variance) / count for *_, variance in sums.values()])
    if not (np.isfinite(variance).all() and all(np.isfinite(a).all() for a in amplitudes)):
        raise ValueError("images: the model gives features that are not finite")
    grids = [grid for grid, *_ in sums.values()]
    relative = [amplitude - amplitude[0] for amplitude in amplitudes]
    return FourierAnalysis(list(sums), grids, [diagonal(grid)[2] for grid in grids], relative, variance, count)


class _Layers:
    """Feature maps of all layers of a model, by name, (batch, channels, rows, columns)."""

    def __init__(self, model: nn.Module, pixels: torch.Tensor):
        core = getattr(model, "a2mim", model)
        encoder = getattr(core, "encoder", None) if hasattr(core, "plan") else getattr(core, "timm_model", core)
        self.timm = hasattr(encoder, "feature_info") and hasattr(encoder, "forward_features")
        self.encoder: Any = encoder if self.timm else getattr(model, "base_model", model)
        if not self.timm and not isinstance(self.encoder, PreTrainedModel):
            raise ValueError(f"model: {type(model).__name__} is neither of timm nor of transformers")
        self.size = pixels.shape[-2], pixels.shape[-1]
        self.layouts: dict[str, FeatureLayout] = {}
        if self.timm:
            self.layouts = block_layouts(encoder, self.size, pixels.shape[1])

    def maps(self, pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        found = self._timm_maps(pixels) if self.timm else self._hidden_states(pixels)
        return ((name, maps) for name, maps in found if min(maps.shape[-2:]) > 1)

    def _timm_maps(self, pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        outputs, modules = {}, dict(self.encoder.named_modules())
        handles = [
            modules[name].register_forward_hook(lambda *call, name=name: outputs.update({name: call[-1]}))
            for name in self.layouts
        ]
        try:
            self.encoder.forward_features(pixels)
        finally:
            for handle in handles:
                handle.remove()
        return ((name, layout.to_map(outputs[name], layout.grid)) for name, layout in self.layouts.items())

    def _hidden_states(self, pixels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        output = self.encoder(pixels, output_hidden_states=True)
        states = getattr(output, "reshaped_hidden_states", None) or getattr(output, "hidden_states", None) or ()
        for number, state in enumerate(states):
            maps = state if state.ndim == 4 else self._unflattened(state)
            if maps is not None:
                yield f"hidden_states.{number}", maps

    def _unflattened(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """Tokens (batch, tokens, channels) as a map, those before the image's left out."""
        height, width = self.size
        for prefix in range(MOST_PREFIX_TOKENS + 1):
            count = tokens.shape[1] - prefix
            rows = round((count * height / width) ** 0.5)
            if rows and count % rows == 0 and abs(rows * width - count // rows * height) < max(height, width):
                return tokens[:, prefix:].transpose(1, 2).unflatten(2, (rows, count // rows))
        return None


def compare(args: argparse.Namespace):
    """What the command does with its arguments. Raises ValueError naming the argument that cannot be."""
    names = model_names(args)
    RESULTS.check(args.out, names, args.overwrite)
    models = load_models(args)
    images = Images.open(args, models=models)
    results = {}
    for named in models:
        results[named.name] = fourier_analysis(
            named.model,
            (sample["pixel_values"] for sample in images.samples(named)),
            batch_size=args.batch_size,
            dtype=DTYPES[args.dtype],
            description=named.name,
            total=len(images),
        )
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"models": {name: result.to_dict() for name, result in results.items()}, "versions": versions()}
    RESULTS.remove(args.out, names)
    write_json(args.out / RESULTS.record, record)
    fourier_figure(results, args.out / RESULTS.figure)
    logger.info("written to %s", args.out)


def fourier_figure(results: Mapping[str, FourierAnalysis], path: str | os.PathLike):
    """Draw to a PNG file, of all models by depth, how weak the highest frequency is and the variance of features; and
    for each model a panel with the amplitudes of all frequencies, a curve for each layer."""
    labels = short_names(list(results), LONGEST_LABEL)
    rows = -(-len(results) // COLUMNS)
    figure = new_figure(11, 4 + 3.2 * rows)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[4, 3.2 * rows])[:, 0]
    highest, variance = above.subplots(1, 2)
    for label, result in zip(labels, results.values(), strict=True):
        last = [amplitude[-1] for amplitude in result.log_amplitude]
        highest.plot(result.depth, last, marker="o", markersize=3, label=label)
        variance.plot(result.depth, result.variance, marker="o", markersize=3, label=label)
    highest.set_ylabel("log amplitude at the highest frequency,\nrelative to frequency 0")
    variance.set_ylabel("variance of features over positions")
    variance.set_yscale("log")
    for axes in (highest, variance):
        axes.set_xlabel("depth (0: first layer, 1: last)")
        axes.grid(alpha=0.3)
    highest.legend()
    colors = matplotlib.colormaps["viridis"]
    panels = below.subplots(rows, min(len(results), COLUMNS), sharey=True, squeeze=False)
    for axes, label, result in zip(panels.flat, labels, results.values(), strict=False):
        for depth, frequency, amplitude in zip(result.depth, result.frequencies, result.log_amplitude, strict=True):
            axes.plot(frequency, amplitude, color=colors(depth))
        axes.set_title(label, fontsize="medium")
        axes.set_xlabel("diagonal frequency, π per cell")
        axes.grid(alpha=0.3)
    for axes in panels.flat[len(results) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_ylabel("relative log amplitude")
    below.colorbar(ScalarMappable(cmap=colors), ax=panels, label="depth")
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    runpy.run_module("modeling_a2mim.commands.fourier", run_name="__main__")
