"""Folders of image files as datasets: listed, with the labels that their folders or metadata files give."""

import logging
import os
import zlib
from collections.abc import Callable, Iterable, Sequence

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image
from transformers.utils.logging import tqdm

from ..decoding import is_image_file
from ..sources import LISTED, fingerprint_of
from .census import METADATA, expected
from .image_folders import FIRST_FOLDER, LAST_FOLDER, ImageFolder, LeftOut, walk
from .metadata_files import MetadataError, rows_of
from .named_splits import SPLIT_WORDS, split_files, split_kinds


logger = logging.getLogger("a2mim")


def load_folder(root: str, train: bool, needs: str) -> Dataset:
    """All images of a folder, with the columns of its metadata files, or labels by the first folder below `root`.

    Args:
        train, needs: as `load_images`.

    Raises:
        ValueError: naming what is wrong with the folder or its metadata.
    """
    folder = ImageFolder(root, train)
    dataset = list_images(folder.files(), root, folder.label, description=FIRST_FOLDER)
    if folder.metadata:
        listed = [image["path"] for image in dataset.data["image"].to_pylist()]
        rows = with_metadata(folder.metadata, listed, folder.left_out, needs, folder.excluded)
        dataset = dataset if rows is None else rows
    elif needs == "labels" and "label" in dataset.features:
        labelled = np.flatnonzero(dataset.data["label"].is_valid())
        if len(labelled) < len(dataset):
            first = dataset.data["image"][int(np.argmin(dataset.data["label"].is_valid()))].as_py()["path"]
            reason = "images are left out, as they lie in no class folder"
            folder.left_out.add(reason, first, len(dataset) - len(labelled))
            dataset = dataset.select(labelled, new_fingerprint=fingerprint_of(dataset))
        if folder.empty:
            logger.warning("%s: folders without images, which are no classes: %s", root, ", ".join(folder.empty))
    folder.left_out.say()
    return dataset


def load_split(root: str, split: str, needs: str) -> Dataset:
    """A split of a folder of images, by the names of files and folders as `datasets` reads them.

    Raises:
        ValueError: naming what is wrong with the folder, its splits or its metadata.
    """
    left_out = LeftOut(root)
    files = [file for file in walk(root, left_out) if is_image_file(file) or os.path.basename(file) in METADATA]
    images = [file for file in files if is_image_file(file)]
    splits = split_files(root, images)
    check_splits(root, split, splits, images, left_out)
    rows, all_metadata = None, set(files).difference(images)
    metadata = sorted(all_metadata.intersection(split_files(root, files)[split]))
    if metadata:
        rows = with_metadata(metadata, splits[split], left_out, needs)
    elif all_metadata:
        left_out.add(
            "metadata files lie in no folder of the split and are left out", min(all_metadata), len(all_metadata)
        )
    left_out.say()
    return list_split(splits, split, root) if rows is None else rows


def check_splits(root: str, split: str, found: dict[str, list[str]], images: Sequence[str], left_out: LeftOut):
    """Say which splits there are, and refuse those that only chance can have made: `datasets` takes `train` or `test`
    in the name of any file or folder for one, and then nothing else.

    Args:
        root: the folder.
        split: the one that is asked for.
        found: the images of each split, as `datasets` finds them.
        images: all that there are.
        left_out: counts those that are in none.

    Raises:
        ValueError: naming the folder, the images and what to do.
    """

    def name(file: str) -> str:
        return os.path.relpath(file, root)

    words = "; ".join(f"{key} ({len(own):,} images, such as {name(own[0])})" for key, own in found.items() if own)
    if split not in found:
        raise ValueError(
            f"{root}: no split {split!r}; there are {words or 'none'}, as `datasets` reads their names; --train_dir "
            "and --validation_dir take all images of a folder"
        )
    tops = {file: name(file).split(os.sep)[:-1] for file in images}
    kinds = split_kinds({folders[0] for folders in tops.values() if folders})
    inside = {kinds[tops[f][0]] for f in found[split] if tops[f] and tops[f][0] in kinds}
    own = SPLIT_WORDS.get(split)
    if own and any((kind == "train") != (own == "train") for kind in inside):
        raise ValueError(
            f"{root}: `datasets` takes {', '.join(sorted(kinds))} for folders of the split {split}, as it knows "
            "splits by names in lower case only; name each folder with --train_dir and --validation_dir"
        )
    covered = {file for own in found.values() for file in own}
    rest = [file for file in images if file not in covered]
    by_folder = len(set(kinds.values())) > 1 and all(tops[f] and tops[f][0] in kinds for f in covered)
    if rest and not by_folder:
        raise ValueError(
            f"{root}: `datasets` reads the names of files and folders as splits: {words}; {len(rest):,} are in none, "
            f"such as {name(rest[0])}; use --train_dir (and --validation_dir), which take all images of a folder, or "
            "rename them"
        )
    if rest:
        left_out.add("images are in none of its splits and left out", rest[0], len(rest))
    if len(found) > 1 or split != "train":
        level = logging.INFO if by_folder else logging.WARNING
        logger.log(level, "%s: splits, as `datasets` reads the names of files and folders: %s", root, words)


def with_metadata(
    files: Sequence[str],
    images: Sequence[str],
    left_out: LeftOut,
    needs: str,
    excluded: Iterable[str] = (),
    token: str | None = None,
) -> Dataset | None:
    """The rows of metadata files; `None` where they are not imagefolder's and only images are needed, which is said.

    Raises:
        ValueError: naming the file and what to do.
    """
    try:
        return rows_of(files, images, left_out, excluded, token)
    except MetadataError as error:
        if needs == "images":
            logger.warning("%s; it is not needed here, and ignored: all images are used", error)
            return None
        raise ValueError(
            f"{error}; correct it, or move it out of the folder, without which the names of folders are the labels"
        ) from error


def list_split(images: dict[str, list[str]], split: str, name: str) -> Dataset:
    """The images of a split as `imagefolder` lists them: each folder that holds some names a class, where those of
    all splits lie equally deep."""
    folders = {os.path.dirname(file) for files in images.values() for file in files}
    classes = sorted({os.path.basename(folder) for folder in folders})
    if len(classes) < 2 or len({folder.count("/") for folder in folders}) > 1:
        return list_images(images[split], name)
    return list_images(
        images[split], name, lambda file: os.path.basename(os.path.dirname(file)), classes, description=LAST_FOLDER
    )


def list_images(
    files: Iterable[str],
    name: str,
    label: Callable[[str], str | None] | None = None,
    classes: Sequence[str] | None = None,
    description: str = "",
) -> Dataset:
    """A dataset of image files, made without a second copy of the list, for millions of files.

    Args:
        files: paths or URLs; those that are no images by their names are left out.
        name: what the user called them.
        label: gives the class of a file by its path; `None` for none.
        classes: all of them; those that occur if not given.
        description: of the dataset: what gave the labels.

    Returns:
        Rows with `image`, which is not decoded before it is needed, and with `label`, if any file has one.

    Raises:
        ValueError: if there are no images, or a name is no text.
    """
    arrays: list[pa.Array] = []
    codes: list[np.ndarray] = []
    labels: dict[str, int] = {}
    part: list[str] = []
    root, checksum = len(name) if os.path.isdir(name) else 0, 0

    def keep():
        nonlocal checksum
        checksum = zlib.crc32("\n".join(file[root:] for file in part).encode(), checksum)
        arrays.append(pa.array(part, pa.string()))
        names = [label(file) if label else None for file in part]
        codes.append(np.array([-1 if n is None else labels.setdefault(n, len(labels)) for n in names], dtype=np.int64))
        part.clear()

    for file in tqdm(files, desc="listing images", unit=" files", delay=3):
        if not is_image_file(file):
            continue
        try:
            file.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{os.fsencode(file)!r}: the name of this file is not UTF-8; rename it") from None
        part.append(file)
        if len(part) == 2**16:
            keep()
    keep()
    paths = pa.chunked_array(arrays, pa.string())
    if not len(paths):
        raise ValueError(f"{name}: no images found; expected {expected()}")
    empty = pa.nulls(len(paths), pa.binary())
    columns, types = {"image": pa.StructArray.from_arrays([empty, paths.combine_chunks()], ["bytes", "path"])}, {}
    types["image"] = Image()
    if labels:
        classes = sorted(labels) if classes is None else classes
        places = {n: place for place, n in enumerate(classes)}
        ranks = np.array([*(places[n] for n in labels), -1])  # of the names in the order of their codes, and of none
        ranks = ranks[np.concatenate(codes)]
        columns["label"] = pa.array(ranks, mask=ranks < 0)
        types["label"] = ClassLabel(names=list(classes))
    table = pa.table(columns, schema=Features(types).arrow_schema)
    info = datasets.DatasetInfo(features=Features(types), description=description)
    return Dataset(datasets.table.InMemoryTable(table), info, fingerprint=f"{LISTED}{checksum:08x}")
