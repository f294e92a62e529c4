"""Annotations of objects (boxes, classes, masks) as datasets store them, and average precision as COCO measures it.

Reading and measuring masks, and the measure itself, are pycocotools'.
"""

import contextlib
import io
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


logger = logging.getLogger("a2mim")

BOX_FIELDS = ("bbox", "bboxes", "boxes", "box")
CLASS_FIELDS = ("category", "category_id", "categories", "label", "labels")
BOX_FORMATS = ("coco", "pascal_voc", "yolo")
# What COCOeval.summarize counts, in its order: precision, then recall with 1, 10 and 100 detections.
FIGURES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")
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
        dropped: boxes that were left out, as nothing of them lies in the image.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    masks: list[dict] | None
    dropped: int = 0

    def decoded_masks(self, height: int, width: int) -> torch.Tensor:
        """uint8 (objects, height, width), 1 = object."""
        if not self.masks:
            return torch.zeros(0, height, width, dtype=torch.uint8)
        return torch.from_numpy(np.ascontiguousarray(rle.decode(self.masks).transpose(2, 0, 1)))


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
        # Classes may be stored as any of these.
        self._index = {name: i for i, name in enumerate(self.names)}
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

    def renumber(self, names: list[str], places: list[int]):
        """Number the classes as a model does that has these names: each one here as its place there."""
        self.names, self._index = names, {key: places[i] for key, i in self._index.items()}

    def check(self, dataset: datasets.Dataset):
        """Look at all boxes and classes of a prepared dataset, without its images, before training on it.

        Raises:
            ValueError: naming the argument, if there are no boxes, if most of them have no area, if one is no four
                finite numbers, or if a class has no name.
        """
        count = empty = 0
        for boxes, classes in _leaves(dataset, self.column, self.box, self.category):
            if boxes.shape[1:] != (4,) or len(boxes) != len(classes) or not np.isfinite(boxes).all():
                raise ValueError(f"objects_column_name: {self.column!r} has boxes that are not four finite numbers")
            for value in set(classes):
                self.index(value)
            size = boxes[:, 2:] - boxes[:, :2] if self.box_format == "pascal_voc" else boxes[:, 2:]
            count, empty = count + len(boxes), empty + int((size <= 0).any(1).sum())
        if not count:
            raise ValueError(f"objects_column_name: {self.column!r} holds no boxes at all")
        if 2 * empty > count:
            raise ValueError(
                f"bbox_format: {empty:,} of {count:,} boxes have no area when read as {self.box_format}; "
                f"there are {', '.join(BOX_FORMATS)}"
            )
        if empty:
            logger.warning("%s of %s boxes have no area and are left out", f"{empty:,}", f"{count:,}")

    def read(self, value, height: int, width: int) -> Objects:
        """The objects of an image of this size in pixels. What of a box lies outside is cut off.

        Raises:
            ValueError: if an annotation cannot be read.
        """
        rows = as_rows(value)
        try:
            boxes = np.array([row[self.box] for row in rows], dtype=np.float64).reshape(len(rows), 4)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"has boxes that are not four numbers each: {error}") from error
        if not np.isfinite(boxes).all():
            raise ValueError("has boxes that are not four finite numbers")
        if self.box_format == "yolo":
            boxes *= (width, height, width, height)
            boxes[:, :2] -= boxes[:, 2:] / 2
        if self.box_format != "pascal_voc":
            boxes[:, 2:] += boxes[:, :2]
        boxes = np.stack([boxes[:, 0::2].clip(0, width), boxes[:, 1::2].clip(0, height)], axis=2).reshape(-1, 4)
        size = boxes[:, 2:] - boxes[:, :2]
        kept = np.flatnonzero((size > 0).all(1))
        masks = [self._mask(rows[i], height, width) for i in kept] if self.masks else None
        # COCO's areas are those of the masks, and tell small objects from large ones.
        area = np.prod(size[kept], axis=1) if masks is None else np.array([rle.area(mask) for mask in masks], float)
        given = [rows[i].get("area") for i in kept]
        return Objects(
            boxes=boxes[kept],
            classes=np.array([self.index(rows[i][self.category]) for i in kept], dtype=np.int64),
            crowd=np.array([bool(rows[i].get("iscrowd")) for i in kept], dtype=bool),
            area=np.array([a if g is None else g for a, g in zip(area, given, strict=True)], dtype=np.float64),
            masks=masks,
            dropped=len(rows) - len(kept),
        )

    def _mask(self, row: dict, height: int, width: int) -> dict:
        stored = row.get("segmentation")
        if isinstance(stored, dict):  # run lengths, as numbers or compressed
            counts = stored["counts"]
            if list(stored["size"]) != [height, width]:
                raise ValueError(f"has a mask of {stored['size']} px on an image of {[height, width]} px")
            if isinstance(counts, list):
                return rle.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
            return {"counts": counts.encode() if isinstance(counts, str) else counts, "size": [height, width]}
        if stored and not isinstance(stored[0], Iterable):  # one polygon, without the list around it
            stored = [stored]
        polygons = [[float(number) for number in polygon] for polygon in stored or [] if len(polygon) >= 6]
        if not polygons:
            raise ValueError("has an object without segmentation, which masks are made of")
        return rle.merge(rle.frPyObjects(polygons, height, width))


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


def stored_classes(dataset: datasets.Dataset, column: str) -> dict[int | str, str]:
    """The classes that occur in a prepared dataset that does not name them, as `id2label`."""
    fields = object_fields(dataset.features[column]) or {}
    box, category = (next((n for n in names if n in fields), names[0]) for names in (BOX_FIELDS, CLASS_FIELDS))
    found = set()
    for _, classes in _leaves(dataset, column, box, category):
        found.update(classes)
    return {value: str(value) for value in sorted(found)}


def _leaves(dataset: datasets.Dataset, column: str, box: str, category: str):
    """(boxes (objects, 4), list of classes) of a thousand images at a time, without turning the rest into Python."""
    for table in dataset.select_columns([column]).with_format("arrow").iter(1000):
        values = table[column].combine_chunks()
        if isinstance(values, pa.ChunkedArray):  # of no images at all
            return
        lists = pa.types.is_struct(values.type)
        names = [values.type.field(i).name for i in range(values.type.num_fields)] if lists else None
        if lists and not {box, category} <= set(names):
            raise ValueError(f"objects_column_name: {column!r} has {', '.join(names)}; expected {box} and {category}")
        flat = None if lists else pc.list_flatten(values)
        boxes, classes = (
            pc.list_flatten(pc.struct_field(values, name)) if lists else pc.struct_field(flat, name)
            for name in (box, category)
        )
        numbers = pc.list_flatten(boxes).to_numpy(zero_copy_only=False).astype(np.float64)
        even = len(numbers) == 4 * len(boxes) and set(pc.list_value_length(boxes).to_pylist()) <= {4}
        yield (numbers.reshape(-1, 4) if even else numbers[:, None]), classes.to_pylist()


class AveragePrecision:
    """Average precision of boxes, and of masks, as COCO defines it (pycocotools).

    Args:
        names: of the classes.
        masks: whether to measure masks, too.
    """

    def __init__(self, names: list[str], masks: bool = False):
        self.names, self.masks = names, masks
        self.images: list[dict] = []

    def add(self, images: list[dict]):
        """Count images in, as `judged` gives them."""
        self.images += images

    @staticmethod
    def judged(objects: Objects, size: tuple[int, int], found: dict[str, torch.Tensor]) -> dict:
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
            judge = COCOeval(truth, results, kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        figures = dict(zip(FIGURES, judge.stats.tolist(), strict=True))
        precision = judge.eval["precision"][:, :, :, 0, -1]  # (IoUs, recalls, classes), all sizes, 100 detections
        for number, name in enumerate(self.names):
            values = precision[:, :, number]
            figures[f"map_class_{name}"] = float(values[values > -1].mean()) if (values > -1).any() else -1.0
        return {prefix + name: value for name, value in figures.items() if value > -1 and math.isfinite(value)}

    def _known(self) -> dict:
        """The truth in COCO's own format. Its ids begin at 1, as pycocotools takes 0 for "none"."""
        entries = []
        for number, image in enumerate(self.images, 1):
            objects = image["objects"]
            boxes, masks = _xywh(objects.boxes), objects.masks
            for i, box in enumerate(boxes):
                entry = {"id": len(entries) + 1, "image_id": number, "category_id": int(objects.classes[i])}
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
