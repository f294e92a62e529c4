"""Folders of annotated images as annotation tools write them, COCO's JSON files and YOLO's text files, as datasets
with a column `objects`."""

import codecs
import contextlib
import json
import logging
import math
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from transformers.utils.logging import tqdm

from ...arguments.data import MAX_PIXELS
from ...data.decoding import BrokenImage, is_image_file, open_stored, upright_size
from ...data.formats.census import IMAGES, METADATA, TABLES, format_of
from ...data.formats.image_folders import LeftOut, walk
from ...data.formats.named_splits import SPLIT_WORDS
from ...data.pixel_spec import PixelSpec
from ...data.reading import relative_name
from ...data.sources import LISTED
from .yolo import NAME_FILES, in_pixels, is_yolo, lines_of, yolo_keypoints, yolo_labels, yolo_names, yolo_object


logger = logging.getLogger("a2mim")

OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")  # of COCO, beside instances
COCO_KEYS = {"images", "annotations", "categories"}
SMALL_JSON = 2**22  # bytes of a file that is read to see what it is
NAMED = 5  # files that a message names


def annotated_splits(
    folder: Path, max_pixels: int = MAX_PIXELS, most_broken: float = 1.0
) -> Mapping[str, Callable[[], Dataset]] | None:
    """The splits of a folder in COCO's or YOLO's form, each with what reads it: `train`, `validation`, `test`, or `""`
    for all of a folder that has none. `None` for a folder of another form.

    Args:
        folder: to read.
        max_pixels, most_broken: the largest images, and the largest share of images that may be broken, where they
            are opened (YOLO).

    The columns are `image`, `width`, `height` (pixels that boxes are in; `None` if not known) and `objects`: lists of
    `bbox` (x, y, width, height in pixels), `category`, `area`, `iscrowd`, `segmentation` (JSON).

    Raises:
        ValueError: naming `dataset_name` and the files, if several would be the same split.
    """
    files = [Path(path) for path in _walk(folder)]
    if any(format_of(path.name) not in (None, IMAGES, *TABLES) for path in files) or METADATA & {
        path.name for path in files
    }:
        return None  # what `datasets` reads
    if coco := [path for path in files if path.suffix == ".json" and _is_coco(path)]:
        instances = [path for path in coco if path.name.startswith("instances")]
        return _by_split(folder, instances or coco, partial(read_coco, folder, files))
    images = [path for path in files if is_image_file(path.name)]
    beside = yolo_labels(folder / "x.jpg").parent  # of a folder `images`
    files += map(Path, _walk(beside) if beside != folder else ())
    texts = {path for path in files if path.suffix == ".txt"}
    if not any(label in texts and is_yolo(label) for label in map(yolo_labels, images)):
        return None
    parts = defaultdict(list)
    for path in images:
        parts[_split_of(path.relative_to(folder).parent)].append(path)
    if len(parts) > 1 and "" in parts:
        outside = parts.pop("")
        logger.warning("%s: %s images lie in no split, and are left out: %s", folder, len(outside), _some(outside))
    return {split: partial(read_yolo, folder, part, texts, max_pixels, most_broken) for split, part in parts.items()}


def choose_split(splits: Mapping[str, Callable], given: str | None, train: bool, folder: Path) -> str | None:
    """Which of the splits of a folder is meant: the one that is given, else the one for training, or for evaluation
    (`None` if there is none).

    Raises:
        ValueError: if there is none of that name, or none to train on.
    """
    if given is not None and not (train and given == "train"):
        name = SPLIT_WORDS.get(given, given)
        if name not in splits:
            raise ValueError(f"{folder}: no split {given!r}; there are {', '.join(filter(None, splits)) or 'none'}")
        return name
    wanted = ("train", "") if train else ("validation", "test")
    found = next((name for name in wanted if name in splits), None)
    if train and found is None:
        raise ValueError(f"{folder}: no split 'train'; there are {', '.join(splits)}")
    return found


def _walk(folder: Path) -> Iterable[str]:
    return walk(str(folder), LeftOut(str(folder)))


def _split_of(path: Path) -> str:
    """The split that names of files and folders tell, the last one if several do."""
    words = [word for part in path.parts for word in re.split("[^a-z]+", part.lower())]
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), "")


def _by_split(folder: Path, files: list[Path], read: Callable) -> dict[str, partial[Dataset]]:
    splits: dict[str, partial[Dataset]] = {}
    for path in files:
        split = _split_of(path.relative_to(folder).with_suffix(""))
        if split in splits:
            both = " and ".join(str(p.relative_to(folder)) for p in (splits[split].args[-1], path))
            raise ValueError(f"dataset_name: {both} in {folder} are annotations of the same images; leave one there")
        splits[split] = partial(read, path)
    return splits


def _some(paths: Iterable, limit: int = NAMED) -> str:
    names = [Path(path).name for path in paths]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


# COCO


def _is_coco(path: Path) -> bool:
    if path.name.startswith(OTHER_TASKS):
        return False
    if path.stat().st_size > SMALL_JSON:
        with path.open("rb") as file:
            head = file.read(2**16)
        return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{") and any(
            f'"{key}"'.encode() in head for key in (*COCO_KEYS, "info")
        )
    with contextlib.suppress(ValueError, OSError):
        data = json.loads(path.read_bytes())
        return isinstance(data, dict) and set(data) >= COCO_KEYS
    return False


def read_coco(folder: Path, files: list[Path], path: Path) -> Dataset:
    """The images that a JSON file of COCO's form lists. What cannot be used is counted in the log.

    Args:
        folder: the folder that the user named; no image outside of it is read.
        files: all files in it.
        path: the JSON file.

    Raises:
        ValueError: naming the file, if it is not of that form, or none of its images is there.
    """
    try:
        data = json.loads(path.read_bytes())
        entries, annotations, categories = (data[key] for key in ("images", "annotations", "categories"))
        names = {category["id"]: str(category["name"]) for category in categories}
        known = {entry["id"]: (str(entry["file_name"]), entry.get("width"), entry.get("height")) for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"dataset_name: {path} is no JSON file of COCO's form: {error!r}") from error
    if len(set(names.values())) < len(names):
        twice = [name for name, count in Counter(names.values()).items() if count > 1]
        raise ValueError(f"dataset_name: {path} has two categories called {twice[0]!r}")
    places = _Places(folder, path, files)
    found = {key: place for key, (name, _, _) in known.items() if (place := places.find(name)) is not None}
    if not found:
        raise ValueError(f"dataset_name: of the {len(known):,} images in {path} none is in {folder}")
    order = {key: index for index, key in enumerate(names)}  # of the class, by the id of its category
    objects, lost = defaultdict(list), 0
    unknown: Counter[str] = Counter()
    for one in annotations:
        image, category = (one.get(key) if isinstance(one, dict) else None for key in ("image_id", "category_id"))
        if not _in(image, known):
            lost += 1
        elif not _in(category, order):
            unknown[str(category)] += 1
        elif image in found:
            objects[image].append({**one, "category": order[category]})
    missing = [known[key][0] for key in known if key not in found]
    _say(path, len(missing), f"images of its list are not there, and are left out: {_some(missing)}")
    _say(path, len(entries) - len(known), "images of its list have the id of another one, and are left out")
    _say(path, lost, "annotations are of no image of its list, and are left out")
    _say(
        path,
        unknown.total(),
        f"annotations are of categories that it does not list, and are left out: {_ids(unknown)}",
    )
    used = set(found.values())
    others = [str(p) for p in places.beside(used) if str(p) not in used]
    _say(path, len(others), f"images beside them are not in its list, and are left out: {_some(others)}")
    rows = [(found[key], known[key][1], known[key][2], objects[key]) for key in found]
    return to_dataset(rows, list(names.values()), folder)


class _Places:
    """Where the images of a JSON file lie: beside it, in the folder of the user, or elsewhere in it, if just one file
    has that name (in a folder of the same split, if several have)."""

    def __init__(self, folder: Path, path: Path, files: list[Path]):
        self.folders, self.split = (path.parent, folder), _split_of(path.relative_to(folder).with_suffix(""))
        self.images = {str(file) for file in files if is_image_file(file.name)}
        self.by_name = defaultdict(list)
        for file in sorted(self.images):
            self.by_name[Path(file).name].append((file, _split_of(Path(file).relative_to(folder).parent)))

    def find(self, name: str) -> str | None:
        name = name.replace("\\", "/")
        for folder in self.folders:
            place = os.path.normpath(os.path.join(folder, name))
            if place in self.images:
                return place
        same = [file for file, _ in self.by_name[Path(name).name]]
        ends = [file for file in same if file.endswith("/" + name.lstrip("/"))] or same
        split = [file for file, split in self.by_name[Path(name).name] if split == self.split and file in ends]
        return ends[0] if len(ends) == 1 else split[0] if len(split) == 1 else None

    def beside(self, used: set[str]) -> list[str]:
        folders = {os.path.dirname(place) for place in used}
        return [file for file in sorted(self.images) if os.path.dirname(file) in folders]


def _in(key, known) -> bool:
    return isinstance(key, int | str | float) and key in known


def _ids(counts: Counter) -> str:
    return ", ".join(f"{key} ({count:,})" for key, count in counts.most_common(NAMED))


def _say(path: Path, count: int, what: str):
    if count:
        logger.warning("%s: %s %s", path, f"{count:,}", what)


# YOLO


def read_yolo(
    folder: Path, images: list[Path], texts: set[Path], max_pixels: int = MAX_PIXELS, most_broken: float = 1.0
) -> Dataset:
    """Images with labels of YOLO's form: a line for each object, its class and, as shares of the image, centre x,
    centre y, width, height, or the points of a polygon. An image without a file of labels has no objects; one with
    objects that cannot be opened is left out.

    Args:
        folder: the folder that the user named; it, or one of the two above it, holds `data.yaml` or `classes.txt`, or
            the folders of labels hold the latter.
        images: to read.
        texts: all text files in the folder.
        max_pixels, most_broken: the largest images, and the largest share of images that may be broken.

    Raises:
        ValueError: naming the file of names that is none, or `max_skipped_ratio`.
    """
    labels = {yolo_labels(image) for image in images}
    parts = {label.parent for label in labels}
    beside = sorted({place for part in parts for place in (part, part.parent) if place.name == "labels"} | parts)
    names, keypoints, wrong, without = yolo_names(folder, beside), yolo_keypoints(folder), [], []
    rows: list[tuple] = []
    broken: list[str] = []
    unknown: Counter[str] = Counter()
    for image in tqdm(images, desc="reading labels", unit=" images", delay=3):
        label, found = yolo_labels(image), []
        if label not in texts:
            without.append(image)
        for number, line in enumerate(lines_of(label) if label in texts else (), 1):
            one = yolo_object(line, keypoints)
            if one is None:
                wrong.append(f"{label.name} line {number}")
            elif one[0] < 0 or (names is not None and one[0] >= len(names)):
                unknown[str(one[0])] += 1
            else:
                found.append(one)
        try:
            height, width = _size(image, max_pixels)
        except (BrokenImage, OSError) as error:
            if found:
                broken.append(f"{image.name} ({error})")
            else:  # which is counted when it is read
                rows.append((str(image), None, None, []))
            continue
        objects = [{"category": one, **in_pixels(numbers, height, width)} for one, numbers in found]
        rows.append((str(image), width, height, objects))
    if len(broken) > most_broken * len(images):
        raise ValueError(
            f"max_skipped_ratio: {len(broken):,} of {len(images):,} images in {folder} have objects and cannot be "
            f"opened, more than {most_broken:.3g} of them; {broken[0]}"
        )
    if keypoints is not None:
        logger.info("%s: keypoints (kpt_shape) are left out, boxes are used", folder)
    others = {path for path in texts - labels if path.parent in parts - {folder}}
    lonely = [path for path in others if path.name not in NAME_FILES]
    _say(folder, len(without), f"images have no file of labels, and count as images without objects: {_some(without)}")
    _say(folder, len(broken), f"images with objects cannot be opened, and are left out: {'; '.join(broken[:NAMED])}")
    _say(folder, len(lonely), f"files of labels have no image: {_some(sorted(lonely))}")
    hint = "" if keypoints is not None else "; lines with keypoints need kpt_shape in data.yaml"
    _say(folder, len(wrong), f"lines are no box and no polygon, and are left out: {_some(wrong)}{hint}")
    _say(folder, unknown.total(), f"objects are of classes without a name, and are left out: {_ids(unknown)}")
    return to_dataset(rows, names, folder)


def _size(path: Path, max_pixels: int) -> tuple[int, int]:
    """(height, width) of an image the right way up, of any kind. Raises BrokenImage or OSError if it has none."""
    spec = PixelSpec(1, (1,), max_pixels=max_pixels)  # opens whatever there is
    try:
        return upright_size(open_stored(path, spec))
    except BrokenImage:  # of several pages, which are of one size
        return upright_size(open_stored(path, replace(spec, pages="first")))


def to_dataset(rows: list[tuple], names: list[str] | None, folder: Path) -> Dataset:
    """A dataset of (path, width, height, objects) with the columns of `annotated_splits`.

    Args:
        rows: the objects as dicts of `category`, and COCO's `bbox`, `area`, `iscrowd`, `segmentation` as they are.
        names: of the classes, or `None` if they have none.
        folder: that the paths are in.
    """
    kinds = {"bbox": List(Value("float64")), "category": Value("int64") if names is None else ClassLabel(names=names)}
    kinds |= {"area": Value("float64"), "iscrowd": Value("int64"), "segmentation": Value("string")}
    features = {"image": Image(), "width": Value("int64"), "height": Value("int64")}
    features = Features({**features, "objects": {name: List(kind) for name, kind in kinds.items()}})
    objects = [{name: [_stored(name, one.get(name)) for one in row[3]] for name in kinds} for row in rows]
    columns = {
        "image": [{"bytes": None, "path": path} for path, *_ in rows],
        "width": [_stored("width", row[1]) for row in rows],
        "height": [_stored("height", row[2]) for row in rows],
        "objects": objects,
    }
    checksum = zlib.crc32("\n".join(relative_name(path, [str(folder)]) for path, *_ in rows).encode())
    table = pa.table(columns, schema=features.arrow_schema)
    return Dataset(datasets.table.InMemoryTable(table), fingerprint=f"{LISTED}{checksum:08x}")


def _stored(name: str, value):
    """What a file says, as far as the column can hold it; the rest is left to `coco.Annotations`, which counts it."""
    if name == "segmentation":
        return None if value is None else json.dumps(value)
    if name == "bbox":
        numbers = value if isinstance(value, list) else []
        return [_number(number) for number in numbers]
    number = _number(value)
    if name == "area":
        return number
    return None if number is None or not math.isfinite(number) else int(number)


def _number(value) -> float | None:
    return float(value) if isinstance(value, int | float) else None
