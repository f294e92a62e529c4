"""Which column of a dataset holds the images or the labels, and which files of a sample are the images."""

import os
import re
from collections.abc import Sequence

from datasets import Dataset, Image

from .sources import RowSource, array_type


# Words in the names of columns of images that belong to another image: what is learned from it, or a small copy of it.
NOT_IMAGES = {
    *("mask", "masks", "seg", "segs", "segm", "segmentation", "segmap", "segmentations"),
    *("semantic", "instance", "instances", "panoptic", "label", "labels", "annotation", "annotations"),
    *("anno", "gt", "truth", "groundtruth", "depth", "disparity", "normal", "normals"),
    *("edge", "edges", "canny", "saliency", "alpha", "matte", "trimap", "heatmap"),
    *("flow", "conditioning", "thumbnail", "thumb", "thumbs", "preview", "parsing", "target"),
}
SURE = ("image", "img", "images", "jpg", "jpeg")  # of several columns; a JPEG is no mask
USUAL = ("image", "img", "jpg", "jpeg", "png", "webp", "jxl", "heic", "tif", "tiff")


def find_column(dataset: Dataset | RowSource, kind: type, name: str | None, field: str) -> str:
    """The column that holds images (`kind=datasets.Image`; without one, arrays) or labels (`ClassLabel`): the one
    called `name` if given, else the first of that kind. `field` is what the user sets it with, for the message.

    Raises:
        ValueError: if there is no such column.
    """
    features = dataset.features
    columns = list(features)
    if name is not None:
        if name not in columns:
            raise ValueError(f"{field}: the dataset has no column {name!r}; it has {', '.join(columns)}")
        return name
    if kind is Image:
        of_kind = [column for column in columns if isinstance(features[column], Image)]
        of_kind = of_kind or [column for column in columns if array_type(features[column])]
        found = choose_images(of_kind) if of_kind else next((c for c in USUAL if c in columns), None)
        if found is None and of_kind:
            raise ValueError(
                f"{field}: the dataset has several columns of images ({', '.join(image_candidates(of_kind))}); choose "
                f"one with --{field}"
            )
    else:
        found = next((column for column in columns if isinstance(features[column], kind)), None)
        found = found or next((column for column in ("label", "labels", "cls") if column in columns), None)
    if found is None:
        wanted = "images" if kind is Image else "class labels"
        raise ValueError(f"{field}: the dataset has no column of {wanted}; its columns are {', '.join(columns)}")
    return found


def is_of_another(column: str) -> bool:
    """Whether the name of a column says that it is a mask, a depth map or the like."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower())
    return not NOT_IMAGES.isdisjoint(words)


def image_candidates(columns: Sequence[str]) -> list[str]:
    """The columns of images without those that are masks, depth maps or the like by their names, if any are left."""
    return [column for column in columns if not is_of_another(column)] or list(columns)


def choose_images(columns: Sequence[str]) -> str | None:
    """The one of several columns of images that the images are; `None` if their names do not tell."""
    candidates = image_candidates(columns)
    if len(candidates) == 1:
        return candidates[0]
    return next((column for column in SURE if column in candidates), None)


def same_view(columns: Sequence[str]) -> bool:
    """Whether several columns are numbered images of one thing: `1.jpg`, `2.jpg` or `view0.png`, `view1.png`."""
    stems = [re.fullmatch(r"(.*?)[-_ ]?(\d+)", os.path.splitext(column)[0]) for column in columns]
    return len(columns) > 1 and all(stems) and len({stem[1] for stem in stems}) == 1
