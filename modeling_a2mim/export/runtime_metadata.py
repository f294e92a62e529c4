"""What a file for another runtime says about itself: which images the model takes, and what its outputs mean.

All values are strings; what is not a plain word is JSON.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..utils.value_range import STORED


METADATA_FILE = "metadata.json"  # in a `.pt2`
DECISION = "decision"  # of config.json: the thresholds of a classifier
CROP_MODES = ("center", "squash")  # of timm, of those that `prepare` knows
RESAMPLING = {Image.Resampling.NEAREST: "nearest", Image.Resampling.BOX: "box", Image.Resampling.BILINEAR: "bilinear"}
RESAMPLING |= {Image.Resampling.HAMMING: "hamming", Image.Resampling.BICUBIC: "bicubic"}
RESAMPLING |= {Image.Resampling.LANCZOS: "lanczos"}


def runtime_metadata(
    preprocessing: Mapping[str, Any],
    architecture: str,
    version: str,
    classes: Sequence[str] | None = None,
    problem_type: str | None = None,
    decision: Any = None,
    stored_images: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The entries of a file.

    Args:
        preprocessing: what timm's `pretrained_cfg` says of images: `input_size` (channels, height, width), `mean`,
            `std`, `interpolation`, `crop_pct` and `crop_mode` ("center", if not given).
        architecture: name of timm, or the type of a model of transformers.
        version: of this package.
        classes: names, of a classifier.
        problem_type: of a classifier, as transformers has it; one class of each image, if not given.
        decision: what the model's config.json has of that name, if anything.
        stored_images: the same; what becomes of stored values before mean and standard deviation.
    """
    entries: dict[str, Any] = {
        "a2mim_version": version,
        "architecture": architecture,
        "input_size": list(preprocessing["input_size"]),
        "num_channels": preprocessing["input_size"][0],
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
        "interpolation": preprocessing["interpolation"],
        "crop_pct": preprocessing["crop_pct"],
        "crop_mode": preprocessing.get("crop_mode") or "center",
    }
    if classes is not None:
        entries["id2label"] = {str(index): name for index, name in enumerate(classes)}
        entries["problem_type"] = problem_type or "single_label_classification"
    if decision is not None:
        entries[DECISION] = decision
    if stored_images:
        entries[STORED] = dict(stored_images)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}


def processor_preprocessing(processor: Any, input_size: Sequence[int]) -> dict[str, Any]:
    """What an image processor of transformers does, in timm's words: `preprocessing` of `runtime_metadata`.

    Args:
        processor: of transformers.
        input_size: (channels, height, width) of what it gives.

    Raises:
        ValueError: if it does something else than resize, crop the middle and normalise.
    """
    get = processor.to_dict().get
    height, width = input_size[1:]
    size, crop = dict(get("size") or {}), dict(get("crop_size") or {})
    if not get("do_normalize", True) or not get("do_rescale", True) or get("do_pad"):
        raise ValueError("it pads images, or does not normalise them")
    crop_pct = 1.0
    if (shortest := size.get("shortest_edge")) and get("crop_pct") and shortest < 384:  # ConvNeXT's
        mode, crop_pct = "center", get("crop_pct")
    elif shortest and get("crop_pct"):
        mode = "squash"
    elif shortest and get("do_center_crop"):
        mode, crop_pct = "center", crop["height"] / shortest
    elif {"height", "width"} <= size.keys() and not get("do_center_crop"):
        mode = "squash"
    else:
        raise ValueError(f"its size is {size}, its crop {crop or None}")
    scale = get("rescale_factor", 1 / 255) * 255  # images in [0, 255 / scale]
    if abs(scale - 1) > 1e-6:
        raise ValueError(f"it multiplies pixels by {get('rescale_factor')}, not 1/255")
    return {
        "input_size": [input_size[0], height, width],
        "mean": get("image_mean"),
        "std": get("image_std"),
        "interpolation": RESAMPLING[Image.Resampling(get("resample", Image.Resampling.BILINEAR))],
        "crop_pct": crop_pct,
        "crop_mode": mode,
    }


def prepare(image: Image.Image, metadata: Mapping[str, str]) -> np.ndarray:
    """An image as the model takes it, by Pillow and NumPy alone, from what a file says, as in docs/export_and_hub.md.

    Args:
        image: upright.
        metadata: of `runtime_metadata`.

    Returns:
        float32 (1, channels, height, width).

    Raises:
        ValueError: of a `crop_mode` other than "center" and "squash".
    """
    channels, height, width = json.loads(metadata["input_size"])
    mode, scale = metadata["crop_mode"], float(metadata["crop_pct"])
    if mode not in CROP_MODES:
        raise ValueError(f"crop_mode: expected {' or '.join(CROP_MODES)}, got {mode}")
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    large = int(width / scale), int(height / scale)
    if mode == "center" and height == width:  # the shorter side to this size
        short = min(image.size)
        large = int(large[0] * image.width / short), int(large[0] * image.height / short)
    elif mode == "center":  # so that the image covers it
        ratio = min(image.width / large[0], image.height / large[1])
        large = round(image.width / ratio), round(image.height / ratio)
    image = image.resize(large, Image.Resampling[metadata["interpolation"].upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    mean, std = (np.array(json.loads(metadata[key]), dtype=np.float32) for key in ("image_mean", "image_std"))
    return ((pixels - mean) / std).transpose(2, 0, 1)[None]
