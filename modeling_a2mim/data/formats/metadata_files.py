"""`metadata.csv`, `.jsonl` and `.parquet` beside images, as `datasets`' imagefolder documents them."""

import glob
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import datasets
from datasets import Dataset, Image

from ..reading import describe, is_remote
from .csv_texts import keep_texts
from .image_folders import LeftOut


logger = logging.getLogger("a2mim")


class MetadataError(ValueError):
    """A metadata file that imagefolder cannot read, in words that follow its name."""


def read_metadata(files: Collection[str], token: str | None = None) -> Dataset:
    """The rows of metadata files, those of each file in its order; images are paths, or URLs.

    Raises:
        MetadataError: naming the file that is not as imagefolder documents it.
    """
    files = sorted(files)
    endings = {os.path.splitext(file)[1] for file in files}
    if len(endings) > 1:
        raise MetadataError(f"{files[0]} and {files[-1]} are of different formats, of which `datasets` reads one")
    parts = [_read_one(file, token) for file in files]
    if endings == {".csv"}:
        parts = keep_texts(parts, files, [","] * len(files), token)
    for file, part in zip(files, parts, strict=True):
        if part.features != parts[0].features:
            raise MetadataError(f"{file} has other columns or types of them than {files[0]}")
    # The description says what gave the labels, as for `list_images`.
    return datasets.concatenate_datasets(parts, datasets.DatasetInfo(description=files[0].rsplit("/", 1)[-1]))


def _read_one(file: str, token: str | None) -> Dataset:
    pattern = file if is_remote(file) else glob.escape(os.path.abspath(file))
    try:
        builder = datasets.load_dataset_builder("imagefolder", data_files={"train": [pattern]}, token=token)
        stream = builder.as_streaming_dataset(split="train")
        features = stream.features
        for name, feature in features.items():
            if isinstance(feature, Image):
                stream = stream.cast_column(name, Image(decode=False))
        return Dataset.from_list(list(stream), features=features)
    except IndexError:  # `datasets` looks at the first row
        raise MetadataError(f"{file} has no rows") from None
    # Of pandas, pyarrow (NotImplementedError: of a type that it does not convert) and `datasets`: all are about what
    # the file holds. What a server answers is no matter of the file.
    except (ValueError, TypeError, LookupError, NotImplementedError) as error:
        if "must be present as dictionary key" in str(error):
            raise MetadataError(f"{file} has no column file_name that holds names of images") from None
        lines = describe(error).strip().splitlines()
        raise MetadataError(f"{file} cannot be read as metadata of images: {lines[0]}") from error


def image_paths(value: Any) -> Iterator[str]:
    """The paths of the images in a row, however deep."""
    if isinstance(value, dict):
        if set(value) == {"bytes", "path"} and isinstance(value["path"], str):
            yield value["path"]
        else:
            for inner in value.values():
                yield from image_paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from image_paths(inner)


def rows_of(
    files: Collection[str],
    listed: Collection[str],
    left_out: LeftOut,
    excluded: Iterable[str] = (),
    token: str | None = None,
) -> Dataset:
    """The rows of metadata files whose images are there. What the files do not name is counted.

    Args:
        listed: the images that are there.
        left_out: counts what is not used.
        excluded: folders whose images are not to be used.

    Raises:
        MetadataError: as `read_metadata`, or if none of the images is there.
    """
    rows = read_metadata(files, token)
    undecoded = rows
    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            undecoded = undecoded.cast_column(name, Image(decode=False))
    place = min(files)
    remote = is_remote(place)
    there = set(listed) if remote else set(map(os.path.abspath, listed))  # as `read_metadata` gives them
    starts = tuple((folder if remote else os.path.abspath(folder)) + os.sep for folder in excluded)
    named: set[str] = set()
    kept = []
    for index, row in enumerate(undecoded):
        paths = list(image_paths(row))
        if not paths:
            left_out.add(f"rows of {os.path.basename(place)} name no image", place)
            continue
        away = [path for path in paths if path not in there]
        if away and not remote:
            if away[0].startswith(starts):
                continue  # counted where the folder is
            if not os.path.exists(away[0]):
                left_out.add(f"images that {os.path.basename(place)} names are not there", away[0])
                continue
        for path in named.intersection(paths):
            left_out.add(f"rows of {os.path.basename(place)} name an image again", path)
        named.update(paths)
        kept.append(index)
    if not kept:
        raise MetadataError(f"{place} names none of the images")
    outside = sorted(there - named)
    if outside:
        name = os.path.basename(place)
        left_out.add(f"images are left out, as {name} does not name them", outside[0], len(outside))
    return rows if len(kept) == len(rows) else rows.select(kept)
