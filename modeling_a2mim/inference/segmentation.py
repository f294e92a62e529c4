"""A segmenter over images: a PNG file with the class of each pixel for each image, and a table of them.

The folder gets `predictions.csv` (`file`, `mask`: the PNG file, relative to the folder, `share_NAME`: of each class
the share of pixels in [0, 1], `error`) and the masks, in the folders of the images.
"""

import csv
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.nn import functional

from ..data.decoding import is_image_file
from ..data.fingerprints import fingerprint_of_images
from ..data.sources import RowSource
from ..tasks.segmentation.maps import colours
from ..utils.files import is_there
from .dense import DenseTransform, Sample, of_one_size
from .images import InferenceImages
from .models import TrainedModel, unique_names
from .options import RunOptions, ready
from .parts import PartedTable, check_out, parts_of, rows_in_part
from .prediction import Prediction, check_finite
from .running import ERROR, fingerprint_of_model, process_state, run_over


logger = logging.getLogger("a2mim")

TABLE = "predictions.csv"
MASK, SHARE = "mask", "share"
IN_PALETTE = 256  # classes that a PNG file with a palette, of 8 bits, can tell apart
AT_ONCE = 2**26  # values of logits at full size: those of many classes and a large image do not fit in memory
ROWS_IN_PART = 256


def best_class(logits: torch.Tensor, size: tuple[int, int], at_once: int = AT_ONCE) -> torch.Tensor:
    """The map of classes (height, width) = `size` from logits (classes, rows, columns), as
    `tasks.segmentation.maps.resized_prediction` gives it, with little memory.

    Args:
        at_once: how many values of interpolated logits are in memory.
    """
    step = max(1, at_once // (size[0] * size[1]))
    best = classes = None
    for first in range(0, len(logits), step):
        part = functional.interpolate(logits[None, first : first + step].float(), size, mode="bilinear")[0]
        values, indices = part.max(0)
        indices = indices + first
        if best is None or classes is None:
            best, classes = values, indices
        else:
            higher = values > best  # of equal ones the first
            best, classes = torch.where(higher, values, best), torch.where(higher, indices, classes)
    assert classes is not None
    return classes


def mask_image(classes: np.ndarray, palette: Sequence[int] | None) -> Image.Image:
    """A map of classes (height, width) as an image whose pixels are the numbers of the classes: 8 bits with a palette,
    or 16 bits without."""
    if palette is None:
        return Image.fromarray(classes.astype(np.uint16))
    image = Image.fromarray(classes.astype(np.uint8)).convert("P")
    image.putpalette(list(palette))
    return image


def mask_names(names: Sequence[str]) -> list[str]:
    """The masks of images by their names: the same folders, and `.png` instead of the suffix of the image, or behind
    it where two would be alike. Nothing leads out of the folder."""
    parts = [[part for part in PurePosixPath(name).parts if part not in ("/", "..")] for name in names]
    inside = ["/".join(part) or "image" for part in parts]
    short = [f"{os.path.splitext(name)[0] if is_image_file(name) else name}.png" for name in inside]
    counts = Counter(short)
    found = [one if counts[one] == 1 else f"{name}.png" for name, one in zip(inside, short, strict=True)]
    counts = Counter(found)
    return [one if counts[one] == 1 else f"{one[:-4]}_{row}.png" for row, one in enumerate(found)]


def check_folder(out: Path, images: Sequence[str], overwrite: bool):
    """Refuse a folder in which masks would be taken for images, or replace what is there.

    Args:
        out: to write to.
        images: what the images are read from, as the user names it.
        overwrite: whether other files may be there.

    Raises:
        ValueError: naming `out`.
    """
    if out.suffix in (".csv", ".parquet", ".json") or out.is_file():
        raise ValueError(f"out: {out} is a file; a segmenter writes a folder of masks")
    place = out.resolve()
    for name in images:
        source = Path(name).expanduser()
        if not source.exists():
            continue
        folder = (source if source.is_dir() else source.parent).resolve()
        if place == folder or (source.is_dir() and place.is_relative_to(folder)) or folder.is_relative_to(place):
            raise ValueError(f"out: {out} and {name} are one folder or in one another; give the masks another")
    if (out / TABLE).is_dir():
        raise ValueError(f"out: {out / TABLE} is a folder, where the table of the masks goes")
    check_out(out / TABLE, (".csv",), overwrite)
    if out.is_dir() and any(out.iterdir()) and not overwrite and not parts_of(out / TABLE).exists():
        raise is_there(out)


def remove_masks(out: Path):
    """Remove the masks that the table of an earlier run names, and the table, so that none is left beside others."""
    table = out / TABLE
    if not table.is_file():
        return
    with table.open(newline="", encoding="utf-8") as file:
        names = [row[MASK] for row in csv.DictReader(file) if row.get(MASK)]
    own = [out / name for name in names if (out / name).resolve().is_relative_to(out.resolve())]
    for path in own:
        path.unlink(missing_ok=True)
    table.unlink()
    logger.info("%s: %d masks of an earlier run are removed", out, len(own))


def predict_maps(
    model: TrainedModel,
    source: RowSource,
    out: Path,
    options: RunOptions,
    about: dict | None = None,
) -> Prediction | None:
    """Write the masks of a segmenter and their table, as at the top of this module. What an earlier run that was
    killed has written is kept. Arguments as `predict_classes`; `out` is a folder (see `check_folder`). `counts` are
    the images in which a class has the most pixels.

    Raises:
        ValueError: naming the argument.
    """
    names = unique_names(model.config)
    loaded, processor = model.load_dense()
    network = ready(loaded, options)
    transform = DenseTransform(processor, model.spec)
    images = InferenceImages(source, transform, whole=True)
    targets = mask_names([images.name(row) for row in range(len(images))])
    palette = None
    if len(names) <= IN_PALETTE:
        palette = [round(255 * value) for colour in colours(len(names)) for value in colour]
    identity = {
        "model": fingerprint_of_model(network),
        "transform": transform.describe(),
        "images": fingerprint_of_images(source, times=True),
        "dtype": options.dtype,
        "classes": names,
        **(about or {}),
    }
    with process_state(options.device).main_process_first():
        out.mkdir(parents=True, exist_ok=True)
        if options.overwrite:
            remove_masks(out)
        part_size = rows_in_part(len(images), ROWS_IN_PART)
        table = PartedTable(out / TABLE, len(images), identity, part_size, options.overwrite, (".csv",))

    def predict(pixels: torch.Tensor, mask: torch.Tensor | None):
        with options.running():
            return network(pixel_values=pixels.to(options.place))

    def run(samples: list[Sample], rows: Sequence[int]) -> dict[str, Any]:
        columns: dict[str, list] = {name: [] for name in schema}
        for (sample, outputs), row in zip(of_one_size(samples, predict), rows, strict=True):
            check_finite(outputs["logits"], options, [images.name(row)])
            classes = best_class(outputs["logits"][0], sample.size).cpu().numpy()
            path = out / targets[row]
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = table.folder / f"{os.getpid()}.png"
            mask_image(classes, palette).save(temporary, "PNG")
            os.replace(temporary, path)
            counts = np.bincount(classes.reshape(-1), minlength=len(names))
            columns[MASK].append(targets[row])
            for name, count in zip(names, counts.tolist(), strict=True):
                columns[f"{SHARE}_{name}"].append(count / classes.size)
        return columns

    schema = {MASK: pa.string(), **{f"{SHARE}_{name}": pa.float32() for name in names}}
    if not run_over(images, table, run, schema, options.batch_size, options.workers, join=list):
        return None
    most, broken = Counter(dict.fromkeys(names, 0)), 0
    for part in table:
        broken += len(part) - part[ERROR].null_count
        shares = np.array([part[f"{SHARE}_{name}"].to_pylist() for name in names], dtype=np.float64)
        most.update(names[i] for i in shares[:, np.isfinite(shares[0])].argmax(0))
    table.finish()
    return Prediction(out, len(images), broken, dict(most))
