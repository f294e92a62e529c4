"""A detector over images: their objects in a JSON file of COCO's form.

`images` (`id`, `file_name`, `width`, `height`; the right way up), `categories` (`id`: the number of the class in the
model's configuration, `name`), `annotations` (`id`, `image_id`, `category_id`, `score` in [0, 1], `bbox`: x, y, width,
height in pixels of the image, `area`, `iscrowd`, and of instances `segmentation`: run lengths), which are what
`pycocotools` takes as results (`COCO.loadRes`); and `errors` (`file_name`, `error`), the images that could not be
read.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pycocotools import mask as rle

from ..data.fingerprints import fingerprint_of_images
from ..data.sources import RowSource
from ..evaluation.decisions import parse_threshold
from ..models.detection import A2MIMForObjectDetection
from .dense import DenseTransform, Sample, of_one_size
from .images import InferenceImages
from .models import TrainedModel, unique_names
from .options import RunOptions, ready
from .parts import PartedTable, check_out, rows_in_part
from .prediction import Prediction
from .running import ERROR, FILE, fingerprint_of_model, process_state, run_over


logger = logging.getLogger("a2mim")

FORMATS = (".json",)
LEAST = 0.05  # score of what is written, of models that say none themselves
ROWS_IN_PART = 256
OBJECTS = "objects"
COLUMNS = {"width": pa.int64(), "height": pa.int64(), OBJECTS: pa.string()}  # of the parts; objects as JSON


def find_threshold(config: Any, given: str | None) -> tuple[float, str]:
    """The score above which objects are written, and where it is from, in words.

    Raises:
        ValueError: naming `threshold`, if it is no number.
    """
    if given is not None:
        value = parse_threshold(given)
        if isinstance(value, str):
            raise ValueError(f"threshold: {given} is for classifiers; give a detector the least score, a number")
        return value, "as given"
    own = getattr(config, "score_threshold", None)
    return (LEAST, "the usual one") if own is None else (own, "the model's own")


def objects_of(found: dict[str, torch.Tensor]) -> list[dict]:
    """Objects as COCO's results have them, without their image.

    Args:
        found: `scores`, `labels`, `boxes` (x0, y0, x1, y1) and perhaps `masks` (objects, height, width), in pixels of
            the image.
    """
    boxes = found["boxes"].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    objects: list[dict] = [
        {"category_id": label, "bbox": [round(v, 3) for v in box], "score": round(score, 6), "iscrowd": 0}
        for label, box, score in zip(found["labels"].tolist(), boxes.tolist(), found["scores"].tolist(), strict=True)
    ]
    masks = found.get("masks")
    for index, one in enumerate(objects):
        one["area"] = round(one["bbox"][2] * one["bbox"][3], 3)
        if masks is not None:
            coded = rle.encode(np.asfortranarray(masks[index].cpu().numpy().astype(np.uint8)))
            one["area"] = float(rle.area(coded))
            one["segmentation"] = {"size": list(coded["size"]), "counts": coded["counts"].decode()}
    return objects


def predict_objects(
    model: TrainedModel,
    source: RowSource,
    out: Path,
    options: RunOptions,
    threshold: str | None = None,
    about: dict | None = None,
) -> Prediction | None:
    """Write the objects that a detector finds, as at the top of this module. What an earlier run that was killed has
    written is kept. Arguments as `predict_classes`; `out` is a `.json` file, and `threshold` the score above which
    objects are written. `counts` are the objects of each class.

    Raises:
        ValueError: naming the argument.
    """
    check_out(out, FORMATS, options.overwrite)
    least, origin = find_threshold(model.config, threshold)
    logger.info("decision: objects with a score above %g (%s)", least, origin)
    names = unique_names(model.config)
    loaded, processor = model.load_dense()
    ours = isinstance(loaded, A2MIMForObjectDetection)
    network: Any = ready(loaded, options)
    if ours:
        network.heads.roi_heads.score_thresh = least  # or it would drop those between
    transform = DenseTransform(processor, model.spec)
    images = InferenceImages(source, transform, whole=True)
    identity = {
        "model": fingerprint_of_model(network),
        "transform": transform.describe(),
        "images": fingerprint_of_images(source, times=True),
        "dtype": options.dtype,
        "threshold": least,
        "classes": names,
        **(about or {}),
    }
    with process_state(options.device).main_process_first():
        part_size = rows_in_part(len(images), ROWS_IN_PART)
        table = PartedTable(out, len(images), identity, part_size, options.overwrite, FORMATS)

    def predict(pixels: torch.Tensor, mask: torch.Tensor | None):
        masked = {} if mask is None else {"pixel_mask": mask.to(options.place)}
        with options.running():
            return network(pixel_values=pixels.to(options.place), **masked)

    def run(samples: list[Sample], rows: Sequence[int]) -> dict[str, Any]:
        columns: dict[str, list] = {name: [] for name in COLUMNS}
        post_process = (network if ours else processor).post_process_object_detection
        for sample, outputs in of_one_size(samples, predict):
            (found,) = post_process(outputs, threshold=0.0 if ours else least, target_sizes=[sample.size])
            columns["height"].append(sample.size[0])
            columns["width"].append(sample.size[1])
            columns[OBJECTS].append(json.dumps(objects_of(found)))
        return columns

    if not run_over(images, table, run, COLUMNS, options.batch_size, options.workers, join=list):
        return None
    info = {"description": f"predictions of {model.name}: objects with a score above {least:g}"}
    counts = _write(table, names, info)
    broken = counts.pop(ERROR)
    return Prediction(table.publish(), len(images), broken, {n: counts[i] for i, n in enumerate(names)})


def _write(table: PartedTable, names: Sequence[str], info: dict) -> Counter:
    """Write the parts as one JSON file; returns how many objects there are of each class, and how many `error`s."""
    counts: Counter = Counter({ERROR: 0})

    def rows() -> Iterator[tuple[int, dict]]:
        yield from enumerate((row for part in table for row in part.to_pylist()), 1)

    def images() -> Iterator[dict]:
        for number, row in rows():
            if row[ERROR] is None:
                size = {"width": row["width"], "height": row["height"]}
                yield {"id": number, "file_name": row[FILE], **size}

    def annotations() -> Iterator[dict]:
        number = 0
        for image, row in rows():
            for one in json.loads(row[OBJECTS] or "[]"):
                number += 1
                counts[one["category_id"]] += 1
                yield {"id": number, "image_id": image, **one}

    def errors() -> Iterator[dict]:
        for _, row in rows():
            if row[ERROR] is not None:
                counts[ERROR] += 1
                yield {"file_name": row[FILE], "error": row[ERROR]}

    categories = ({"id": index, "name": name} for index, name in enumerate(names))
    lists = {"images": images(), "categories": categories, "annotations": annotations(), "errors": errors()}
    with open(table.joined, "w", encoding="utf-8") as file:  # one object a line, and never all of them in memory
        file.write(f'{{"info": {json.dumps(info)}')
        for key, values in lists.items():
            file.write(f',\n"{key}": [')
            for index, value in enumerate(values):
                file.write((",\n" if index else "\n") + json.dumps(value))
            file.write("]")
        file.write("}\n")
    return counts
