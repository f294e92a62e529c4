"""What segmenters and detectors share: whole images by an image processor of transformers, and their sizes."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers.utils import ModelOutput

from ..data.decoding import load_tensor
from ..data.pixel_spec import PixelSpec, given_as


class Sample(NamedTuple):
    """An image as a model takes it.

    Args:
        pixel_values: (channels, height, width), normalised, resized and maybe padded.
        pixel_mask: (height, width), 1 where the image is; `None` where nothing is padded.
        size: (height, width) of the image the right way up.
    """

    pixel_values: torch.Tensor
    pixel_mask: torch.Tensor | None
    size: tuple[int, int]


class DenseTransform:
    """A stored image to a `Sample`.

    Args:
        processor: of transformers.
        spec: what the model takes of an image.
    """

    def __init__(self, processor: Any, spec: PixelSpec):
        self.processor, self.spec = processor, spec

    def __call__(self, image: Any) -> Sample:
        """Raises BrokenImage, if there is no image that can be used."""
        pixels = load_tensor(image, self.spec)
        made = self.processor(images=pixels, return_tensors="pt", **given_as(pixels))
        mask = made["pixel_mask"][0] if "pixel_mask" in made else None
        return Sample(made["pixel_values"][0], mask, (pixels.shape[-2], pixels.shape[-1]))

    def describe(self) -> str:
        """What tells it from another."""
        return f"{self.spec} {json.dumps(self.processor.to_dict(), sort_keys=True, default=str)}"


def of_one_size(
    samples: Sequence[Sample], predict: Callable[[torch.Tensor, torch.Tensor | None], ModelOutput]
) -> list[tuple[Sample, ModelOutput]]:
    """Each sample with what a model gives for it. Images of one size go through it together, and others not: none is
    padded to the size of others, so that it does not matter beside which ones it is.

    Args:
        samples: of `DenseTransform`.
        predict: (images, channels, height, width), and (images, height, width) or `None`, to tensors of all of them.
    """
    groups = defaultdict(list)
    for place, sample in enumerate(samples):
        groups[sample.pixel_values.shape, sample.pixel_mask is None].append(place)
    found: dict[int, ModelOutput] = {}
    for places in groups.values():
        group = [samples[place] for place in places]
        masks = [sample.pixel_mask for sample in group if sample.pixel_mask is not None]
        outputs = predict(torch.stack([s.pixel_values for s in group]), torch.stack(masks) if masks else None)
        for index, place in enumerate(places):
            one = {k: v[index : index + 1] for k, v in outputs.items() if isinstance(v, torch.Tensor) and v.ndim}
            found[place] = type(outputs)(**one)
    return [(sample, found[place]) for place, sample in enumerate(samples)]
