"""CSV and JSON files that name images: paths relative to the table, or URLs."""

import logging
import os
import posixpath
from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, Image, Value

from ..reading import is_remote
from ..sources import fingerprint_of
from .cache import as_data_files
from .csv_texts import keep_texts, names_images


logger = logging.getLogger("a2mim")

PATHS = (
    *("image", "img", "file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img_path"),
    *("image_file", "image_url", "url", "jpg", "jpeg", "png", "webp"),
)
LOOKED_AT = 100  # values of a column


def load_table(
    name: str, kind: str, files: Sequence[str], split: str, image_column: str | None = None, token: str | None = None
) -> Dataset:
    """The rows of tables, one after the other; the column that names the images holds them.

    Args:
        kind: `csv` or `json`.
        image_column: the column that names the images; found if not given.

    Raises:
        ValueError: naming the file that has no such column, or names files outside of the dataset.
    """
    read, parts = [], []
    for file in files:
        # pandas leaves out the mark at the begin of a file that Notepad writes; older `datasets` do not for JSON.
        options = {"sep": _separator(file)} if kind == "csv" else {"encoding": "utf-8-sig"}
        try:
            data_files = as_data_files({split: [file]})
            rows = datasets.load_dataset(kind, data_files=data_files, split=split, token=token, **options)
        except (datasets.exceptions.DatasetGenerationError, ValueError, StopIteration) as error:
            raise ValueError(f"{file}: cannot be read as {kind}: {error.__cause__ or error}") from error
        read.append(rows)
    if kind == "csv":
        read = keep_texts(read, files, [_separator(file) for file in files], token)
    for rows, file in zip(read, files, strict=True):
        column = image_column or find_paths(rows, file)
        if column not in rows.column_names:
            raise ValueError(
                f"image_column_name: {file} has no column {column!r}; it has {', '.join(rows.column_names)}"
            )
        parts.append(_with_images(rows, column, file))
        if parts[-1].features != parts[0].features:
            raise ValueError(f"{name}: {file} has other columns than {files[0]}; name one of them, or make them alike")
        _tell_repeated(parts[-1], column, file)
    return datasets.concatenate_datasets(parts)


def _tell_repeated(rows: Dataset, column: str, file: str):
    """Warn of rows that name an image again, and of those that say other things of it."""
    found = [image["path"] for image in rows.data[column].to_pylist()]
    paths = [path if path is None or is_remote(path) else os.path.normpath(path) for path in found]
    first: dict[str, int] = {}
    again = [(first[path], row) for row, path in enumerate(paths) if path and first.setdefault(path, row) != row]
    if not again:
        return
    others = {name: rows.data[name].to_pylist() for name in rows.column_names if name != column}
    differing = {
        row: (name, cells[before], cells[row])
        for name, cells in reversed(others.items())
        for before, row in again
        if cells[before] != cells[row]
    }
    more = ""
    if differing:
        row = min(differing)
        name, one, other = differing[row]
        more = f"; {len(differing):,} of them differ in the rest, such as {paths[row]}: {name} {one!r} and {other!r}"
    logger.warning("%s: %s rows name an image again, such as %s%s", file, f"{len(again):,}", paths[again[0][1]], more)


def _separator(file: str) -> str:
    return "\t" if file.lower().endswith(".tsv") else ","


def find_paths(rows: Dataset, file: str) -> str:
    """The column whose values are paths or URLs of images."""
    texts = [c for c, kind in rows.features.items() if isinstance(kind, Value) and "string" in kind.dtype]
    named = [column for column in texts if names_images(rows[:LOOKED_AT][column])]
    usual = [column for column in PATHS if column in named]
    found = usual[:1] or named
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(
            f"{file}: none of its columns ({', '.join(rows.column_names)}) names files of images; name one with "
            "--image_column_name, or give a folder of images"
        )
    raise ValueError(f"image_column_name: {file} names images in {', '.join(found)}; choose one with it")


def _with_images(rows: Dataset, column: str, file: str) -> Dataset:
    if not isinstance(rows.features[column], Value):
        raise ValueError(f"image_column_name: column {column!r} of {file} holds {rows.features[column]}, no paths")
    folder = posixpath.dirname(file) if is_remote(file) else os.path.dirname(os.path.abspath(file))
    places = [_place(value, folder, file) for value in rows.data[column].to_pylist()]
    empty = pa.nulls(len(rows), pa.binary())
    images = pa.StructArray.from_arrays([empty, pa.array(places, pa.string())], ["bytes", "path"])
    at = rows.column_names.index(column)
    table = rows.data.table.set_column(at, column, images)
    features = datasets.Features({c: Image() if c == column else kind for c, kind in rows.features.items()})
    return Dataset(table.cast(features.arrow_schema), fingerprint=fingerprint_of(rows))


def _place(value: Any, folder: str, file: str) -> str | None:
    """Where an image lies that a table in `folder` names."""
    if value is None:
        return None
    value, here = str(value), not is_remote(folder)
    place = os.path.join(folder, os.path.expanduser(value))
    if is_remote(value) and not (here and os.path.lexists(place)):
        return value
    if here:
        return place
    inside = posixpath.normpath(value.replace("\\", "/"))
    if posixpath.isabs(inside) or inside.split("/")[0] == "..":
        raise ValueError(f"{file}: names {value}, a file outside of its folder, which is not read for remote data")
    return posixpath.join(folder, inside)
