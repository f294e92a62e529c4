"""Annotations of objects (boxes, classes, masks) as datasets store them, and average precision as COCO measures it.

Reading and measuring masks, and the measure itself, are pycocotools'.
"""

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ...arguments.detection import BOX_FORMATS
from ...data.decoding import BrokenImage, turned


BOX_FIELDS = ("bbox", "bboxes", "boxes", "box")
CLASS_FIELDS = ("category", "category_id", "categories", "label", "labels")
# Why objects are left out.
NO_NUMBERS, NO_CLASS, NO_AREA = "with a box that is not four finite numbers", "of no known class", "with an empty box"
NO_MASK, OUTSIDE = "without a usable mask", "outside the image"
ROUNDING = 1e-5  # share of an image's side that a box may be outside by without being counted as cut off
# What COCOeval.summarize counts, in its order: precision, then recall with 1, 10 and 100 detections.
FIGURES: tuple[str, ...] = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
FIGURES += ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")


@dataclass
class Objects:
    """What is in an image, crowds included.

    Args:
        boxes: (objects, 4), float64 x0, y0, x1, y1 in pixels, within the image.
        classes: (objects,), int64, from 0.
        crowd: (objects,), bool: regions of many objects, which neither count as found nor as missed.
        area: (objects,), float64, in pixels.
        masks: run-length encoded, one for each object; `None` if they are not read.
        reasons: how many objects were left out, by the reason; `dropped` in all.
        clipped: boxes of which only a part lies in the image; the rest is cut off.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    masks: list[dict] | None
    reasons: Counter = field(default_factory=Counter)
    clipped: int = 0

    @property
    def dropped(self) -> int:
        """How many objects were left out."""
        return self.reasons.total()

    def decoded_masks(self, height: int, width: int) -> torch.Tensor:
        """uint8 (objects, height, width), 1 = object."""
        if not self.masks:
            return torch.zeros(0, height, width, dtype=torch.uint8)
        return torch.from_numpy(np.ascontiguousarray(rle.decode(self.masks).transpose(2, 0, 1)))

    def turned(self, stored: tuple[bool, bool, bool], height: int, width: int) -> "Objects":
        """The same in the image brought the right way up (see `decoding.orientation`), from one of this size."""
        swapped, mirrored, upside_down = stored
        x0, y0, x1, y1 = self.boxes.T
        x0, x1 = (width - x1, width - x0) if mirrored else (x0, x1)
        y0, y1 = (height - y1, height - y0) if upside_down else (y0, y1)
        boxes = np.stack([y0, x0, y1, x1] if swapped else [x0, y0, x1, y1], axis=1)
        masks = self.masks and [rle.encode(np.asfortranarray(turned(rle.decode(m), stored))) for m in self.masks]
        return replace(self, boxes=boxes, masks=masks)


class Annotations:
    """Reads a column of objects.

    It holds, for each image, lists (`{"bbox": [...], "category": [...]}`) or a list of dicts; of each object a `bbox`
    (or `boxes`), a `category` (or `category_id`, `label`), and optionally `area`, `iscrowd` and `segmentation` (COCO
    polygons or run lengths).

    Args:
        feature: the type of the column in `datasets`; `None` if it is not known.
        column: its name, for messages.
        id2label: the names of the classes by what is stored for them; needed where `feature` does not tell them.
        box_format: `coco` (x, y, width, height in pixels), `pascal_voc` (x0, y0, x1, y1 in pixels) or `yolo` (centre
            x, centre y, width, height as shares of the image).
        masks: whether to read `segmentation`.

    Attributes:
        id2label: the names of the classes by what is stored for them.
        names: the same as a list; places in it are the classes of the model.

    Raises:
        ValueError: naming the argument, if a field is missing or there are no names.
    """

    def __init__(
        self,
        feature,
        column: str = "objects",
        id2label: dict[int | str, str] | None = None,
        box_format: str = "coco",
        masks: bool = False,
    ):
        if box_format not in BOX_FORMATS:
            raise ValueError(f"bbox_format: must be one of {', '.join(BOX_FORMATS)}, got {box_format!r}")
        self.column, self.box_format, self.masks = column, box_format, masks
        fields = object_fields(feature)
        self.box, self.category = (self._field(fields, names) for names in (BOX_FIELDS, CLASS_FIELDS))
        if masks and fields is not None and "segmentation" not in fields:
            raise ValueError(f"objects_column_name: {column!r} has no segmentation, which masks are made of")
        kind = None if fields is None else fields[self.category]
        if id2label is None and isinstance(kind, datasets.ClassLabel):
            id2label = dict(enumerate(kind.names))
        if not id2label:
            raise ValueError(f"id2label: {column}.{self.category} names no classes; give their names")
        self.id2label, self.names = id2label, list(id2label.values())
        self._shown = {str(key): name for key, name in id2label.items()}
        # Classes may be stored as any of these.
        self._index: dict[int | str, int] = {name: i for i, name in enumerate(self.names)}
        self._index |= {key: i for i, key in enumerate(id2label)}
        self._index |= {int(key): i for i, key in enumerate(id2label) if str(key).lstrip("-").isdigit()}

    def _field(self, fields: dict | None, names: tuple[str, ...]) -> str:
        found = names[0] if fields is None else next((name for name in names if name in fields), None)
        if found is None:
            raise ValueError(f"objects_column_name: {self.column!r} has {', '.join(fields)}, and no {names[0]}")
        return found

    def index(self, value) -> int:
        """The class that is stored as `value`. Raises ValueError, naming `id2label`, if there is none."""
        if value not in self._index:
            raise ValueError(f"id2label: there is no class {value!r} among {', '.join(self.names[:20])}")
        return self._index[value]

    def shown_class(self, value) -> str:
        """The name that is stored for a class, whether or not a model has it; else the value itself."""
        return self._shown.get(str(value), str(value))

    def renumber(self, names: list[str], places: list[int | None]):
        """Number the classes as a model does that has these names: each one here as its place there; objects of those
        without a place (`None`) are left out."""
        index = {key: places[i] for key, i in self._index.items()}
        self.names, self._index = names, {key: place for key, place in index.items() if place is not None}

    def problem(self, row: dict) -> str | None:
        """Why an object cannot be used, whatever the size of its image; `None` if it can."""
        box = row.get(self.box)
        try:
            x, y, right, bottom = (float(number) for number in box)
        except (TypeError, ValueError):
            return NO_NUMBERS
        if not all(map(math.isfinite, (x, y, right, bottom))):
            return NO_NUMBERS
        category = row.get(self.category)
        if not isinstance(category, int | float | str) or category not in self._index:
            return NO_CLASS
        if (right - x <= 0 or bottom - y <= 0) if self.box_format == "pascal_voc" else (right <= 0 or bottom <= 0):
            return NO_AREA
        return NO_MASK if self.masks and segmentation(row.get("segmentation")) is None else None

    def read(self, value, height: int, width: int) -> Objects:
        """The objects of an image of this size in pixels. What of a box lies outside is cut off; objects that cannot
        be used are left out. Both are counted.

        Raises:
            BrokenImage: if the annotation is none.
        """
        try:
            rows = as_rows(value)
        except ValueError as error:
            raise BrokenImage(str(error)) from error
        problems = [self.problem(row) for row in rows]
        reasons = Counter(filter(None, problems))
        rows = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
        boxes = np.array([row[self.box] for row in rows], dtype=np.float64).reshape(len(rows), 4)
        if self.box_format == "yolo":
            boxes *= (width, height, width, height)
            boxes[:, :2] -= boxes[:, 2:] / 2
        if self.box_format != "pascal_voc":
            boxes[:, 2:] += boxes[:, :2]
        whole = boxes
        boxes = np.stack([boxes[:, 0::2].clip(0, width), boxes[:, 1::2].clip(0, height)], axis=2).reshape(-1, 4)
        inside = np.all(boxes[:, 2:] - boxes[:, :2] > 0, axis=1)
        reasons[OUTSIDE] += int((~inside).sum())
        masks: list[dict | None] = [None] * len(rows)
        if self.masks:
            masks = [self._mask(row, height, width) if good else None for row, good in zip(rows, inside, strict=True)]
            without = inside & np.array([mask is None for mask in masks], dtype=bool)
            reasons[NO_MASK] += int(without.sum())
            inside &= ~without
        kept = np.flatnonzero(inside)
        size, masks = boxes[kept, 2:] - boxes[kept, :2], [masks[i] for i in kept] if self.masks else None
        # COCO's areas are those of the masks, and tell small objects from large ones.
        area = np.prod(size, axis=1) if masks is None else np.array([rle.area(mask) for mask in masks], float)
        given = [rows[i].get("area") for i in kept]
        given = [g if isinstance(g, int | float) and math.isfinite(g) else None for g in given]
        return Objects(
            boxes=boxes[kept],
            classes=np.array([self.index(rows[i][self.category]) for i in kept], dtype=np.int64),
            crowd=np.array([bool(rows[i].get("iscrowd")) for i in kept], dtype=bool),
            area=np.array([a if g is None else g for a, g in zip(area, given, strict=True)], dtype=np.float64),
            masks=masks,
            reasons=+reasons,
            clipped=int((np.abs(whole - boxes)[kept] > ROUNDING * max(height, width)).any(1).sum()),
        )

    def _mask(self, row: dict, height: int, width: int) -> dict | None:
        """Run lengths of the mask of an object; `None` if it is of another size, or empty."""
        stored = segmentation(row["segmentation"])
        if isinstance(stored, dict):  # run lengths, as numbers or compressed
            counts = stored["counts"]
            if list(stored["size"]) != [height, width] or (isinstance(counts, list) and sum(counts) != height * width):
                return None
            if isinstance(counts, list):
                mask = rle.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
            else:
                mask = {"counts": counts.encode() if isinstance(counts, str) else counts, "size": [height, width]}
        else:
            mask = rle.merge(rle.frPyObjects(stored, height, width))
        return mask if rle.area(mask) else None


def segmentation(stored) -> dict | list[list[float]] | None:
    """Run lengths (`size`, `counts`) or polygons of at least three points, from what is stored for an object, maybe as
    JSON; `None` if there is nothing of the kind."""
    if isinstance(stored, str):
        try:
            stored = json.loads(stored)
        except ValueError:
            return None
    if isinstance(stored, dict):
        good = isinstance(stored.get("counts"), str | bytes | list) and isinstance(stored.get("size"), list | tuple)
        return stored if good and stored["counts"] else None
    if not isinstance(stored, list) or not stored:
        return None
    if not isinstance(stored[0], Iterable):  # one polygon, without the list around it
        stored = [stored]
    polygons = []
    for polygon in stored:
        try:
            numbers = [float(number) for number in polygon]
        except (TypeError, ValueError):
            return None
        if len(numbers) >= 6 and len(numbers) % 2 == 0 and all(map(math.isfinite, numbers)):
            polygons.append(numbers)
    return polygons or None


def as_rows(value) -> list[dict]:
    """The objects of an image, stored as a list of dicts or as a dict of lists, as a list of dicts.

    Raises:
        ValueError: if it is neither.
    """
    if value is None:
        return []
    if isinstance(value, dict) and all(isinstance(v, list) or v is None for v in value.values()):
        given = {name: values for name, values in value.items() if values is not None}
        if len({len(values) for values in given.values()}) > 1:
            raise ValueError(f"has objects with {', '.join(f'{len(v)} {n}' for n, v in given.items())}")
        return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return value
    raise ValueError(f"holds no objects but {str(value)[:80]!r}; expected lists of bbox and category")


def object_fields(feature) -> dict | None:
    """The types of the fields of each object, or `None` if `feature` holds no objects."""
    if isinstance(feature, dict):
        fields = {name: getattr(kind, "feature", None) for name, kind in feature.items()}
        return fields if any(kind is not None for kind in fields.values()) else None
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    return inner if isinstance(inner, dict) else None


def find_objects_column(features, name: str | None = None) -> str:
    """The column of objects: the one called `name` if given, else the first one that has boxes.

    Raises:
        ValueError: naming `objects_column_name`, if there is none.
    """
    if name is not None:
        if name not in features:
            raise ValueError(f"objects_column_name: the dataset has no column {name!r}; it has {', '.join(features)}")
        return name
    found = (c for c, kind in features.items() if any(box in (object_fields(kind) or ()) for box in BOX_FIELDS))
    column = next(found, None) or ("objects" if "objects" in features else None)
    if column is None:
        raise ValueError(
            f"objects_column_name: the dataset has no column of objects with a bbox; it has {', '.join(features)}"
        )
    return column


class AveragePrecision:
    """Average precision of boxes, and of masks, as COCO defines it (pycocotools).

    torchmetrics' `MeanAveragePrecision` gives the same up to float32, if its recall thresholds are given in float64:
    its own are float32, which moves figures by up to 0.001. It takes twice the time.

    Args:
        names: of the classes.
        masks: whether to measure masks, too.
    """

    def __init__(self, names: list[str], masks: bool = False):
        self.names, self.masks = names, masks
        self.images: list[dict] = []

    def add(self, images: list[dict]):
        """Count images in, as `evaluated` gives them."""
        self.images += images

    @staticmethod
    def evaluated(objects: Objects, size: tuple[int, int], found: dict[str, torch.Tensor]) -> dict:
        """What is known and what was found of an image of `size` (height, width), without tensors.

        Args:
            found: `scores` (detections,), `labels` (detections,), `boxes` (detections, 4) as x0, y0, x1, y1 in pixels
                and, if masks are measured, `masks` (detections, height, width), bool.
        """
        found = {name: tensor.cpu() for name, tensor in found.items()}
        result = {"size": size, "objects": objects, "scores": found["scores"].tolist()}
        result |= {"labels": found["labels"].tolist(), "boxes": _xywh(found["boxes"].double().numpy())}
        if "masks" in found:
            masks = found["masks"].to(torch.uint8).permute(1, 2, 0).numpy()
            result["masks"] = rle.encode(np.asfortranarray(masks)) if masks.shape[2] else []
        return result

    def compute(self) -> dict[str, float]:
        """`map` (over IoUs from 0.5 to 0.95), `map_50`, `map_75`, `map_small` (objects below 32 x 32 px),
        `map_medium`, `map_large` (from 96 x 96 px on), recalls `mar_1` ... and `map_class_NAME`, all in [0, 1]; the
        same as `mask_map` ... of masks. What there are no objects for is left out."""
        figures = self._measure("bbox", "")
        return figures | self._measure("segm", "mask_") if self.masks else figures

    def _measure(self, kind: str, prefix: str) -> dict[str, float]:
        known, found = self._known(), self._found(kind)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            truth = _index(known)
            results = truth.loadRes(found) if found else _index({**known, "annotations": []})
            evaluation = COCOeval(truth, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures = dict(zip(FIGURES, evaluation.stats.tolist(), strict=True))
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoUs, recalls, classes), all sizes, 100 detections
        for number, name in enumerate(self.names):
            values = precision[:, :, number]
            figures[f"map_class_{name}"] = float(values[values > -1].mean()) if (values > -1).any() else -1.0
        return {prefix + name: value for name, value in figures.items() if value > -1 and math.isfinite(value)}

    def _known(self) -> dict:
        """The truth in COCO's own format. Its ids begin at 1, as pycocotools takes 0 for "none"."""
        entries: list[dict] = []
        for number, image in enumerate(self.images, 1):
            objects = image["objects"]
            boxes, masks = _xywh(objects.boxes), objects.masks
            for i, box in enumerate(boxes):
                entry: dict[str, Any] = {
                    "id": len(entries) + 1,
                    "image_id": number,
                    "category_id": int(objects.classes[i]),
                }
                entry |= {"bbox": box, "area": float(objects.area[i]), "iscrowd": int(objects.crowd[i])}
                entries.append(entry | ({} if masks is None else {"segmentation": masks[i]}))
        sizes = [image["size"] for image in self.images]
        images = [{"id": n, "height": height, "width": width} for n, (height, width) in enumerate(sizes, 1)]
        categories = [{"id": number, "name": name} for number, name in enumerate(self.names)]
        return {"images": images, "annotations": entries, "categories": categories}

    def _found(self, kind: str) -> list[dict]:
        field, places = ("bbox", "boxes") if kind == "bbox" else ("segmentation", "masks")
        return [
            {"image_id": number, "category_id": label, "score": score, field: place}
            for number, image in enumerate(self.images, 1)
            for label, score, place in zip(image["labels"], image["scores"], image[places], strict=True)
        ]


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _index(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
