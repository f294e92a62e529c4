"""Embeddings of images: what a model of any kind makes of them, one vector each."""

import json
import zlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..analysis.comparison import DTYPES, NamedModel, ProcessorTransform, check_device, load_model
from ..data.transforms import FineTuneTransform
from ..export.folder import timm_pretrained_cfg
from ..modeling_a2mim import A2MIMModel, A2MIMPreTrainedModel, find_core
from ..models.pooled_features import ALL as EVERY_STAGE
from ..models.pooled_features import Layer, layer_features, layer_index, layer_widths, stage_indices, unit_maps
from .running import fingerprint_of_model
from .similarity import nearest
from .vectors import read_embeddings


POOLED, CLS, LAST, ALL, STAGES = "pooled", "cls", "last", "all", "stages"
ALONE = (ALL, STAGES)  # of which no others can be concatenated
NO_INDEX = f"layer: expected {POOLED}, {CLS}, {LAST}, {ALL}, {STAGES}, or indices of feature maps, got "
# What tokens before those of the image are called in models of transformers.
PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


class Embedder:
    """A model that makes a vector of each image; made by `embedder`.

    Attributes:
        model: in evaluation mode, on its device.
        transform: a stored image (see `data.decoding.open_stored`) to a dict with `pixel_values` (channels, height,
            width), as the model was trained with them.
        description: what the vectors depend on, as JSON holds it: `model` (its name), `architecture`, `layer`,
            `normalize`, `dim` (features of a vector), `dtype`, `weights` and `transform` (fingerprints); for the
            layer `stages` also `maps`: for each map, in the order of the vector, `index` (in timm's `feature_info`),
            `module` and `channels`, of which there are the means and then the standard deviations.
    """

    def __init__(self, named: NamedModel, layer: str | int | Sequence[str | int], normalize: bool, dtype: str):
        self.model, self.normalize, self.dtype = named.model, normalize, DTYPES[dtype]
        self.transform: FineTuneTransform | ProcessorTransform
        self._read: TimmReader | TransformersReader
        if isinstance(named.model, A2MIMPreTrainedModel):
            core = find_core(named.model)
            cfg = timm_pretrained_cfg(core)
            # Also for a model whose images were to be masked
            self.transform = FineTuneTransform(cfg, False, cast(FineTuneTransform, named.transform).spec)
            self._read = TimmReader(core, layer_names(layer))
            if named.missing:
                check_has_weights(named, core, self._read.layers)
            blank = torch.zeros(core.config.num_channels, *core.config.input_size)
            architecture, transform = core.config.architecture, json.dumps(cfg, sort_keys=True)
            weights = fingerprint_of_model(core.encoder, core.plan.names)  # the same whatever head is on it
        else:
            self.transform = cast(ProcessorTransform, named.transform)
            self._read = TransformersReader(named, layer_names(layer))
            blank = self.transform(Image.new("RGB", (64, 64)))["pixel_values"]
            architecture, transform = type(named.model).__name__, self.transform.processor.to_json_string()
            weights = fingerprint_of_model(named.model)
        if not self.transform.spec.plain or self.transform.spec.pages:
            transform += f" {self.transform.spec}"
        self.description = {
            "model": named.name,
            "architecture": architecture,
            "layer": " ".join(map(str, self._read.layers)),
            "normalize": normalize,
            "dim": self.embed(blank[None]).shape[1],
            "dtype": dtype,
            "weights": weights,
            "transform": f"{zlib.crc32(transform.encode()):08x}",
        }
        if isinstance(self._read, TimmReader) and self._read.layers == [STAGES]:
            self.description["maps"] = self._read.maps()

    @property
    def dim(self) -> int:
        """How many features a vector has."""
        return self.description["dim"]

    @torch.inference_mode()
    def embed(self, pixel_values: torch.Tensor) -> np.ndarray:
        """(images, features) float32, of unit length with `normalize`, for `stages` with parts of equal length
        for each map (`pooled_features.unit_maps`).

        Args:
            pixel_values: (images, channels, height, width), normalised as by `transform`, on any device.

        Raises:
            ValueError: naming `pixel_values`, if they have another number of channels; naming `dtype`, if the result
                is not finite.
        """
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, self.dtype, enabled=self.dtype is not None):
            parts = self._read(pixel_values.to(device, non_blocking=True))
        vectors = torch.cat([part.float() for part in parts], dim=1)
        if self.normalize:
            widths = self._read.widths if isinstance(self._read, TimmReader) else None
            vectors = F.normalize(vectors, dim=1) if widths is None else unit_maps(vectors, widths)
        if not vectors.isfinite().all():
            raise ValueError(f"dtype: features are not finite, with autocast to {self.dtype or 'none'}")
        return vectors.cpu().numpy()


class TimmReader:
    """Features of a timm encoder, one tensor (images, features) for each layer.

    Raises:
        ValueError: naming `layer`, if it has none of that name or index, or one is named twice.
    """

    def __init__(self, core: A2MIMModel, layers: list[str | int]):
        self.core, encoder = core, core.encoder
        self.layers = layers
        self._each = list(range(len(encoder.feature_info))) if layers == [ALL] else layers
        self.widths = layer_widths(core, EVERY_STAGE) if layers == [STAGES] else None
        self._indices: list[Layer] = []
        for layer in self._each:
            if layer == CLS:
                layout = core.plan.map_layout
                first = layout.kind == "NLC" and layout.prefix and not layout.path and not core.plan.from_intermediates
                if not first or getattr(encoder, "cls_token", None) is None:
                    raise ValueError(
                        f"layer: {core.config.architecture} has no class token; {POOLED} are timm's own pooled "
                        f"features, {LAST} the mean of the last feature map"
                    )
            else:
                named: dict[str | int, Layer] = {POOLED: None, LAST: -1, STAGES: EVERY_STAGE}
                self._indices.append(layer_index(core, named[layer] if layer in named else int(layer)))
        check_once(self._indices, layers)

    def __call__(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        found = layer_features(self.core, pixel_values, self._indices) if self._indices else []
        self.core.mask_grid(pixel_values)  # which checks their channels
        maps = iter(found)
        return [
            self.core.encoder.forward_features(pixel_values)[:, 0] if layer == CLS else next(maps)
            for layer in self._each
        ]

    def maps(self) -> list[dict]:
        """What `stages` reads, as in `Embedder.description`."""
        indices, stages = stage_indices(self.core), self.core.encoder.feature_info
        return [
            {"index": index, "module": stages[index]["module"], "channels": width // 2}
            for index, width in zip(indices, self.widths, strict=True)
        ]


def check_has_weights(named: NamedModel, core: A2MIMModel, layers: list[str | int]):
    """Refuse layers that depend on weights that a model lacks; those are NaN, which spreads to all that does.

    Args:
        named: what `load_model` gave with `partial`.
        core: its encoder.
        layers: names or indices.

    Raises:
        ValueError: naming `layer`, and those that can be had.
    """
    blank = torch.zeros(1, core.config.num_channels, *core.config.input_size, device=next(core.parameters()).device)

    @torch.inference_mode()
    def known(wanted: list[str | int]) -> bool:
        return all(part.isfinite().all() for part in TimmReader(core, wanted)(blank))

    if known(layers):
        return
    others = [layer for layer in (LAST, *range(-1, -len(core.encoder.feature_info) - 1, -1)) if known([layer])]
    raise ValueError(
        f"layer: {' '.join(map(str, layers))} needs weights that {named.name} lacks, as its training had no use for "
        f"them ({', '.join(named.missing[:5])}); it has --layer {', '.join(map(str, others)) or 'of none'}"
    )


class TransformersReader:
    """Features of a vision model of transformers, one tensor (images, features) for each layer: `pooled` is its
    `pooler_output` (of models with a text encoder, `get_image_features`), else its class token, else the mean of
    `last_hidden_state` over the image; `cls` the first token, and `last` that mean, without class and register tokens.

    Raises:
        ValueError: naming `layer`, if the model has none of that name; beginning with the model's name, if it takes
            more than images, or lacks weights other than those of its pooler.
    """

    def __init__(self, named: NamedModel, layers: list[str | int]):
        model = cast(PreTrainedModel, named.model)
        kind = f"{named.name}, a model of transformers ({type(model).__name__})"
        if unknown := [layer for layer in layers if layer not in (POOLED, CLS, LAST)]:
            raise ValueError(f"layer: {kind}, has {POOLED}, {CLS} and {LAST}, got {unknown[0]}")
        if lacking := [name for name in named.missing if not name.startswith("pooler.")]:
            raise ValueError(f"{kind}: lacks weights: {', '.join(lacking[:5])}")
        self.layers, self._run = layers, getattr(model, "get_image_features", model)
        self._without_pooler = bool(named.missing)
        for name, parameter in model.named_parameters():
            if name in named.missing:
                parameter.data.zero_()  # never read: transformers draws new ones each time
        tokens = [p for name, p in model.named_parameters() if name.rpartition(".")[2] in PREFIX_TOKENS]
        self._prefix = sum(token.numel() // token.shape[-1] for token in tokens)
        self._has_class = any(name.endswith(PREFIX_TOKENS[:2]) for name, _ in model.named_parameters())
        if CLS in layers and not self._has_class:
            raise ValueError(f"layer: {kind}, has no class token; {POOLED} and {LAST} are left")
        try:
            with torch.inference_mode():
                self._run(
                    pixel_values=named.transform(Image.new("RGB", (64, 64)))["pixel_values"][None].to(model.device)
                )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{kind}: cannot embed images alone: {error}") from error

    def __call__(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        output = self._run(pixel_values=pixel_values)
        return [self._features(output, layer) for layer in self.layers]

    def _features(self, output: Any, layer: str | int) -> torch.Tensor:
        pooled, last = getattr(output, "pooler_output", None), output.last_hidden_state
        if layer == POOLED and pooled is not None and not self._without_pooler:
            return pooled.flatten(1)
        if last.ndim == 4:
            return last.mean((2, 3))
        return last[:, self._prefix :].mean(1) if layer == LAST or not self._has_class else last[:, 0]


def layer_names(layer: str | int | Sequence[str | int]) -> list[str | int]:
    """Layers as they are given, one or several (a string may name several, with spaces between), as names and numbers.

    Raises:
        ValueError: naming `layer`, if one is neither or named twice, or one of `ALONE` is not alone.
    """
    given = [layer] if isinstance(layer, int) else layer.split() if isinstance(layer, str) else list(layer)
    names: list[str | int] = []
    for name in given:
        if name in (POOLED, CLS, LAST, *ALONE):
            names.append(name)
            continue
        try:
            names.append(int(name))
        except ValueError:
            raise ValueError(f"{NO_INDEX}{name!r}") from None
    if not names or (len(names) > 1 and not set(ALONE).isdisjoint(names)):
        raise ValueError(f"{NO_INDEX}{' '.join(map(str, names)) or 'none'}")
    check_once([-1 if name == LAST else name for name in names], names)
    return names


def check_once(meant: Sequence[Layer], names: Sequence[str | int], field: str = "layer"):
    """Refuse a layer that is named twice, whose features would be written twice.

    Args:
        meant: the layers, each the same whatever it is called.
        names: as they were given.

    Raises:
        ValueError: beginning with `field`.
    """
    if len(set(meant)) < len(meant):
        raise ValueError(f"{field}: {' '.join(map(str, names))} names one of them twice")


def embedder(
    source: str | NamedModel,
    layer: str | int | Sequence[str | int] = POOLED,
    normalize: bool = False,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    **loading: Any,
) -> Embedder:
    """A model that makes a vector of each image.

    Args:
        source: folder or id on the Hub of an export or checkpoint of this package, a model of timm, or a vision model
            of transformers; or one that is loaded (`analysis.comparison.load_model`).
        layer: one or several, whose features are concatenated in this order. `pooled`: timm's own pooled features;
            `cls`: the class token; `last`: the mean of the last feature map; an index into timm's `feature_info`
            (negative from the end): the mean of that map; `all`: of all maps; `stages`: mean and standard deviation
            of the maps of every stage (`models.pooled_features`). Of transformers' models see `TransformersReader`.
        normalize: divide each vector by its length; for `stages` the part of each map, so that none counts more.
        dtype: of autocast, one of `analysis.comparison.DTYPES`; the vectors are float32 in any case.
        device: where the model is to run; where it is, if not given.
        loading: of a model that is not loaded yet: `value_range`, `pages`, `revision`, `token` (see `load_model`).

    Raises:
        ValueError: naming the model if it cannot be loaded, `layer` if it has no such layer or one is named twice,
            `dtype`, or `device`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected {', '.join(DTYPES)}, got {dtype}")
    layer_names(layer)
    check_device(device)
    named = source if isinstance(source, NamedModel) else load_model(source, partial=True, **loading)
    if device is not None:
        named.model.to(device)
    named.model.eval()
    return Embedder(named, layer, normalize, dtype)


__all__ = ["Embedder", "embedder", "layer_names", "nearest", "read_embeddings"]
