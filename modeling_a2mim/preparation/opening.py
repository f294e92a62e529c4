"""What the user names as rows of each split, with their other columns."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.features.features import require_decoding

from ..data.columns import find_column
from ..data.decoding import is_image_file
from ..data.fingerprints import fingerprint_of_images
from ..data.formats.cache import is_compressed
from ..data.formats.census import IMAGES, Census
from ..data.formats.hidden import is_system
from ..data.formats.image_folders import LeftOut, walk
from ..data.formats.listing import list_images
from ..data.formats.named_splits import paired_splits, split_files
from ..data.formats.opening import open_files
from ..data.loading import files_of_split, has_card, load_images, local_path, one_format, split_names
from ..data.reading import is_remote, relative_name
from ..data.shards import ParquetSource
from ..data.sources import DatasetSource, RowSource


logger = logging.getLogger("a2mim")

FIRST_SPLITS = ("train", "validation", "test")  # the order in which images are the first of their duplicates
TEXTS = ("json", "txt", "text", "caption")  # members of tars that are text


class Split(NamedTuple):
    """The rows of a split.

    Attributes:
        source: its rows, of which the images are selected.
        columns: the others that are kept, and their types.
        root: the folder that the names of files are relative to, `None` if there is none.
    """

    source: RowSource
    columns: Features
    root: str | None

    def names(self, rows: Sequence[int], images: Sequence[Any]) -> list[str]:
        """What the image of each row is called: its file, relative to what the user named, or its number."""
        found = []
        for row, image in zip(rows, images, strict=True):
            path = image.get("path") if isinstance(image, dict) else None
            if path and isinstance(self.source, ParquetSource):  # which otherwise says where in the file it is
                found.append(relative_name(path, []))
            else:
                found.append(self.source.file_name(row) or f"row {row}")
        return found

    def values(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The other columns of rows."""
        found = self.source.values(rows, list(self.columns))
        return [{name: _as_text(value) if name in TEXTS else value for name, value in row.items()} for row in found]

    @property
    def fingerprint(self) -> str:
        """Changes when the images do; of files, with their sizes and when they were changed."""
        return fingerprint_of_images(self.source, times=True)


def open_splits(
    names: Sequence[str | os.PathLike],
    *,
    split: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    revision: str | None = None,
) -> dict[str, Split]:
    """All splits of what is named (see `loading.load_images`), or the one that is asked for. Of a folder, `train/`
    beside `validation/` or `test/` are splits; else all images are `train`. Columns that cannot be kept are logged.

    Args:
        names: a folder, a file, the id of a dataset on the Hub, or any number of image files.
        split: the only one to take.
        config_name, revision: of a dataset on the Hub.
        image_column: the column of the images; found if not given.

    Raises:
        ValueError: naming what is missing or holds no images, or the splits whose columns differ.
    """
    texts = [str(name) for name in names]
    root: str | None
    if all(os.path.isfile(name) and is_image_file(name) for name in texts):
        if split is not None:
            raise ValueError("split: has no effect on image files, all of which are taken; leave it out")
        found: dict[str, Any] = {"train": list_images(texts, "images")}
        root = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in texts])
    elif len(texts) > 1:
        other = next(name for name in texts if not (os.path.isfile(name) and is_image_file(name)))
        raise ValueError(f"images: {other} is no image file; several can be given of these alone")
    else:
        found = _open(texts[0], split, config_name, image_column, revision)
        root = texts[0]
    opened = {}
    for name in sorted(found, key=lambda name: (name not in FIRST_SPLITS, *_place(name))):
        source = found[name]
        source = DatasetSource(source, root) if isinstance(source, Dataset) else source
        if not len(source):
            raise ValueError(f"{texts[0]}: no images found in the split {name}")
        source = source.select(find_column(source, Image, image_column, "image_column_name"))
        opened[name] = Split(source, _kept(source, name), root if os.path.exists(root) else None)
    first, *others = opened
    for name in others:
        if opened[name].columns != opened[first].columns:
            raise ValueError(
                f"images: the split {name} has other columns or classes than {first}: {opened[name].columns} beside "
                f"{opened[first].columns}; prepare each with --split"
            )
    return opened


def _place(name: str) -> tuple[int, str]:
    return (FIRST_SPLITS.index(name) if name in FIRST_SPLITS else len(FIRST_SPLITS)), name


def _kept(source: RowSource, split: str) -> Features:
    """The columns that are kept beside the images, and what they become."""
    kept, left_out = {}, []
    for name, kind in source.features.items():
        if name == source.columns[0]:
            continue
        if require_decoding(kind) and not isinstance(kind, ClassLabel):
            left_out.append(name)  # a mask, which would lie elsewhere than the image
        else:
            kept[name] = Value("string") if name in TEXTS and kind == Value("binary") else kind
    if left_out:
        logger.warning(
            "%s: columns of images, sounds and the like are left out beside the images: %s", split, ", ".join(left_out)
        )
    if "image" in kept:
        raise ValueError(
            f"image_column_name: the images are in {source.columns[0]!r}, and there is another column 'image', which "
            "they are to become; rename one"
        )
    return Features(kept)


def _as_text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _open(
    name: str, split: str | None, config_name: str | None, image_column: str | None, revision: str | None
) -> dict[str, Dataset | RowSource]:
    path = local_path(name)
    for field, value in (("dataset_revision", revision), ("dataset_config_name", config_name)):
        if value is not None and path.exists() and not has_card(path):
            raise ValueError(f"{field}: is of a dataset on the Hub, and {name} is here; leave it out")
    options: dict[str, Any] = {"config_name": config_name, "image_column": image_column}
    if path.is_file():
        if split is not None:
            raise ValueError(f"split: {name} is one file, which has none; leave it out")
        return {"train": _files(one_format([str(path)]), name, [str(path)], "train", image_column)}
    if path.is_dir() and not _is_saved(path) and not has_card(path):
        return _open_folder(str(path), split, image_column)
    if path.is_dir():
        splits = _saved_splits(path) if _is_saved(path) else split_names(str(path), config_name)
    elif any(sign in name for sign in "*?[") or is_remote(name):
        splits = ["train"]
    else:
        if revision is not None:
            options["revision"] = revision
            if split is None:  # the Hub is asked for the splits of today
                raise ValueError("split: give it beside --dataset_revision, whose splits may be others than today's")
        splits = [split] if split is not None else split_names(name, config_name)
    chosen = splits if split is None else [split]
    return {key: load_images(name, key, streaming=True, **options) for key in chosen}


def _open_folder(root: str, split: str | None, image_column: str | None) -> dict[str, Dataset | RowSource]:
    census = Census.of(walk(root, LeftOut(root)))
    kind, files = census.choose(root, log=False)  # of images it is said below
    if kind != IMAGES:
        census.report(root, kind, files)
        names = list(split_files(root, files))
        chosen = names if split is None else [split]
        return {key: _files(kind, root, files_of_split(root, key, files), key, image_column) for key in chosen}
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir() and not is_system(entry.name)]
    if not paired_splits(folders):
        if split not in (None, "train"):
            raise ValueError(f"split: {root} has no folders of splits, all of its images are train; got {split}")
        return {"train": load_images(root, streaming=True, every_file=True)}
    images = [file for file in walk(root, LeftOut(root)) if is_image_file(file)]
    chosen = list(split_files(root, images)) if split is None else [split]
    return {key: load_images(root, key, streaming=True) for key in chosen}


def _files(kind: str, name: str, files: list[str], split: str, image_column: str | None) -> Dataset | RowSource:
    streaming = not any(map(is_compressed, files))  # of which no part can be read alone
    return open_files(
        kind, name, files, split, streaming=streaming, retries=5, image_column=image_column, first_folder=True
    )


def _is_saved(path: Path) -> bool:
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _saved_splits(path: Path) -> list[str]:
    if (path / "state.json").exists():
        return ["train"]  # the only one there is, whatever it is called
    return list(datasets.load_from_disk(str(path)))


def shuffled(split: Split, seed: int) -> np.ndarray:
    """(rows,) an order of the rows of a split.

    Raises:
        ValueError: naming `shuffle`, if rows cannot be read singly.
    """
    if split.source.row_bytes:
        raise ValueError(
            f"shuffle: rows of {split.source.name} lie in shards, of which none is read alone; prepare it without, "
            "and what that wrote can be shuffled while it is read"
        )
    return np.random.default_rng(seed).permutation(len(split.source))
