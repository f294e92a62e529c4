"""YOLO's text files: which is that of an image, what their lines say, and the names of their classes."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml


NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
SHAPE = "kpt_shape"  # of keypoints, in the file that names the classes
ROUNDING = 0.01  # share of an image's side that points of a polygon may be outside by, as in ultralytics


def yolo_labels(image: Path) -> Path:
    """Where the labels of an image are: beside it, or in `labels` for `images`."""
    whole = image.name.lower().endswith(".nii.gz")
    parts = list((image.with_suffix("") if whole else image).with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts)


def is_yolo(path: Path) -> bool:
    """Whether the first line of a text file is that of an object."""
    with contextlib.suppress(UnicodeDecodeError), path.open(encoding="utf-8-sig") as file:
        return _numbers(file.readline()) is not None
    return False


def _numbers(line: str) -> tuple[int, list[float]] | None:
    """Class and numbers of a line: four or more."""
    try:
        first, *numbers = (float(word) for word in line.split())
    except ValueError:
        return None
    right = len(numbers) >= 4 and first.is_integer() and all(map(math.isfinite, numbers))
    return (int(first), numbers) if right else None


def yolo_object(line: str, keypoints: int | None) -> tuple[int, list[float]] | None:
    """Class and numbers of an object: four of a box, or at least six of a polygon, which lies in the image.

    Args:
        line: of the file of labels.
        keypoints: how many numbers of keypoints follow the box; `None` if there are polygons instead.
    """
    found = _numbers(line)
    if found is None or len(found[1]) == 4:
        return found
    first, numbers = found
    if keypoints is not None:
        return (first, numbers[:4]) if len(numbers) == 4 + keypoints else None
    inside = min(numbers) >= -ROUNDING and max(numbers) <= 1 + ROUNDING
    return found if inside and len(numbers) >= 6 and len(numbers) % 2 == 0 else None


def yolo_names(folder: Path, beside: Iterable[Path] = ()) -> list[str] | None:
    """The names of the classes, `None` if no file gives them.

    Args:
        folder: it, or one of the two above it, has the file.
        beside: folders of labels, where LabelImg writes the names; looked at if no other file gives them.

    Raises:
        ValueError: naming the file, if it holds no names, or others than another one in `beside`.
    """
    for place in _places(folder):
        for path, data in _settings(place):
            names = data.get("names")
            if names is None:
                continue
            names = dict(enumerate(names)) if isinstance(names, list) else names
            if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
                raise ValueError(f"dataset_name: {path} must have the names of the classes 0, 1, ... as `names`")
            names = [str(name) for _, name in sorted((int(number), name) for number, name in names.items())]
            return _different(path, names)
        if (path := _name_file(place)) is not None:
            return _lines_of_names(path)
    files = [path for path in map(_name_file, beside) if path is not None]
    for path in files[1:]:
        if _lines_of_names(path) != _lines_of_names(files[0]):
            raise ValueError(f"dataset_name: {path} has other names of classes than {files[0]}; make them alike")
    return _lines_of_names(files[0]) if files else None


def _name_file(place: Path) -> Path | None:
    files = [*(place / name for name in NAME_FILES), *sorted(place.glob("*.names"))]
    return next((path for path in files if path.is_file()), None)


def _lines_of_names(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset_name: {path} cannot be read, store it as UTF-8: {error}") from error
    if "" in names:
        number = names.index("")
        raise ValueError(
            f"dataset_name: {path} has nothing in line {number + 1}, which names class {number}; write a name "
            "there, or take the line out if it names none"
        )
    return _different(path, names)


def _different(path: Path, names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError(f"dataset_name: {path} names two classes alike")
    return names


def yolo_keypoints(folder: Path) -> int | None:
    """How many numbers of keypoints follow each box, by `kpt_shape` in the file that names the classes; `None` if it
    has none.

    Raises:
        ValueError: naming the file, if that is no shape.
    """
    found = (pair for place in _places(folder) for pair in _settings(place) if pair[1].keys() & {"names", SHAPE})
    path, data = next(found, (folder, {}))
    shape = data.get(SHAPE)
    if shape is None:
        return None
    whole = isinstance(shape, list) and len(shape) == 2 and all(isinstance(number, int) for number in shape)
    if not whole or shape[0] < 1 or shape[1] not in (2, 3):
        raise ValueError(f"dataset_name: {path} must have the number of keypoints and 2 or 3 as `{SHAPE}`")
    return shape[0] * shape[1]


def _places(folder: Path) -> tuple[Path, ...]:
    return folder, folder.parent, folder.parent.parent


def _settings(place: Path) -> Iterator[tuple[Path, dict]]:
    """The YAML files in a folder, and what they hold. Raises ValueError naming the one that is none."""
    for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"dataset_name: {path} is no YAML: {error}") from error
        if isinstance(data, dict):
            yield path, data


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]


def in_pixels(numbers: list[float], height: int, width: int) -> dict:
    """Numbers of `yolo_object` as COCO's `bbox`, and `segmentation` of a polygon, in an image of this size."""
    if len(numbers) == 4:
        x, y, w, h = (share * side for share, side in zip(numbers, (width, height) * 2, strict=True))
        return {"bbox": [x - w / 2, y - h / 2, w, h]}
    xs, ys = [x * width for x in numbers[::2]], [y * height for y in numbers[1::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    return {"bbox": [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)], "segmentation": [polygon]}
