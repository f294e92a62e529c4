"""What embeddings say of a collection: the nearest neighbors of some images, and duplicates, as tables and a page."""

import csv
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..utils.files import atomic_write
from .embedding import Embedder
from .images import InferenceImages, open_every_image
from .similarity import cosine, duplicate_groups, nearest, typical_similarity
from .similarity_page import Group, Shown, is_page, write_page
from .vectors import Embeddings


logger = logging.getLogger("a2mim")

NEIGHBORS = ("query", "rank", "file", "similarity")  # columns
DUPLICATES = ("group", "file", "similarity")
SHOWN_QUERIES, SHOWN_GROUPS, SHOWN_MEMBERS = 50, 20, 12  # on the page; the tables have all


class Query(NamedTuple):
    """An image whose neighbors are asked for, and the nearest ones.

    Attributes:
        file: what it is called.
        stored: the image.
        rows: (neighbors,) numbers among the embeddings.
        similarities: (neighbors,) float32.
    """

    file: str
    stored: Any
    rows: np.ndarray
    similarities: np.ndarray


class QueryFile(NamedTuple):
    """An image file whose neighbors are asked for: its path, the image as it is stored, and as a model takes it,
    (channels, height, width)."""

    path: str
    stored: Any
    pixel_values: torch.Tensor


def open_queries(files: Sequence[str], transform: Callable) -> list[QueryFile]:
    """Image files whose neighbors are asked for.

    Raises:
        ValueError: naming `query`, if one cannot be read.
    """
    result = []
    for file in files:
        try:
            images = InferenceImages(open_every_image([file]), transform)
        except ValueError as error:
            raise ValueError(f"query: {error}") from error
        if len(images) != 1:
            raise ValueError(f"query: {file} holds {len(images)} images; expected an image file")
        _, pixels = images[0]
        if not isinstance(pixels, torch.Tensor):
            raise ValueError(f"query: {file} cannot be read: {pixels}")
        result.append(QueryFile(file, images.stored(0), pixels))
    return result


class Collection:
    """Images and the embeddings of those that could be read.

    Args:
        images: all images.
        found: the embeddings.
        rows: (embeddings,) the number of each among all images.
        channels: which the page shows of images that are no photographs, as `display_image`.

    Raises:
        ValueError: if there is no embedding.
    """

    def __init__(
        self, images: InferenceImages, found: Embeddings, rows: np.ndarray, channels: Sequence[int] | None = None
    ):
        if not len(rows):
            raise ValueError("images: none could be read, so that there is nothing to compare")
        self.images, self.rows, self.channels = images, rows, channels
        self.files, self.vectors, self.metadata = found

    def stored(self, number: int) -> Any:
        """The image of an embedding, as it is stored."""
        return self.images.stored(int(self.rows[number]))

    def drawn_queries(self, count: int, seed: int) -> list[int]:
        """Some of the embeddings, all if there are no more, by their numbers."""
        drawn = np.random.default_rng(seed).choice(len(self.rows), min(count, len(self.rows)), replace=False)
        return np.sort(drawn).tolist()

    def neighbors(self, numbers: Sequence[int], count: int) -> list[Query]:
        """The nearest neighbors of some of the embeddings, which are not neighbors of themselves."""
        rows, similarities = nearest(self.vectors, np.asarray(self.vectors[numbers]), count + 1)
        result = []
        for number, near, values in zip(numbers, rows, similarities, strict=True):
            others = np.flatnonzero(near != number)[:count]  # of many equal images it may not be among the nearest
            result.append(Query(self.files[number], self.stored(number), near[others], values[others]))
        return result

    def neighbors_of_files(self, files: Sequence[QueryFile], count: int, embedder: Embedder) -> list[Query]:
        """The nearest neighbors of image files, which may be some of the collection, and are then not their own."""
        root = os.path.abspath(os.path.expanduser(self.images.source.name))
        known = {file: number for number, file in enumerate(self.files)}
        same = {identity: number for number, identity in self._identities(root)}
        result = []
        for file in files:
            own = known.get(Path(os.path.relpath(os.path.abspath(file.path), root)).as_posix())
            if own is None:  # or by another name: links to a file, or to folders above it
                own = same.get(_identity(file.path))
            if own is not None:
                result += self.neighbors([own], count)
                continue
            rows, similarities = nearest(self.vectors, embedder.embed(file.pixel_values[None]), count)
            result.append(Query(os.path.basename(file.path), file.stored, rows[0], similarities[0]))
        return result

    def _identities(self, root: str) -> Iterator[tuple[int, tuple[int, int]]]:
        """The images that are files in a folder, the last first, and what tells these apart."""
        for number in range(len(self.files) - 1, -1, -1):
            identity = _identity(os.path.join(root, self.files[number]))
            if identity is not None:
                yield number, identity


def _identity(path: str) -> tuple[int, int] | None:
    """The same for all names of a file; `None` if it is none."""
    try:
        found = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):  # the latter of names that no file can have
        return None
    return found.st_dev, found.st_ino


def write_results(
    collection: Collection, out: Path, queries: list[Query] | None, threshold: float | None
) -> list[Path]:
    """Write the tables and the page of neighbors and duplicates beside a file of embeddings.

    Args:
        collection: the images.
        out: the file of embeddings, whose name the others begin with.
        queries: with their neighbors, if they are wanted.
        threshold: the least similarity of duplicates, if they are wanted.

    Returns:
        What was written.
    """
    for path, is_wanted in results(out, queries is not None, threshold is not None).items():
        if is_wanted and path.exists():
            logger.info("%s: is replaced", path)
    written: list[Path] = []
    parts: list[tuple[str, Iterable[Group]]] = []
    shown = 0
    meta = collection.metadata
    count = len(collection.rows)
    median, high = typical_similarity(collection.vectors)
    typical = (
        f"Of two images drawn at random it is {median:.4f} in the median, and {high:.4f} or more for one pair of a "
        "hundred."
    )
    lines = [
        f"{meta['architecture']}, layer {meta['layer']}, {meta['dim']} features. The number below an image is its "
        f"cosine similarity. {typical if count > 1 else 'There is one image, and none to compare it with.'}"
    ]
    if queries is not None:
        written.append(_write_table(neighbors_file(out), NEIGHBORS, _neighbor_lines(collection, queries)))
        few = queries[:SHOWN_QUERIES]
        of = "" if len(few) == len(queries) else f", of the first {len(few)} of {len(queries):,} queries"
        parts.append(
            (f"Nearest neighbors{of}", (_neighbor_group(collection, *one) for one in enumerate(few, start=1)))
        )
        shown += sum(1 + len(query.rows) for query in few)
    if threshold is not None:
        groups = duplicate_groups(collection.vectors, threshold, progress=True)
        found = sum(map(len, groups))
        logger.info("duplicates: %d images in %d groups, by a similarity of %g or more", found, len(groups), threshold)
        if found > count / 2:
            logger.warning(
                "duplicates: more than half of the images, where two drawn at random have a similarity of %.4f in the "
                "median, and one pair of a hundred %.4f; if the page shows no duplicates, give a higher one than %g",
                *(median, high, threshold),
            )
        written.append(_write_table(duplicates_file(out), DUPLICATES, _duplicate_lines(collection, groups)))
        largest = groups[:SHOWN_GROUPS]
        what = f"Duplicates: {found:,} images in {len(groups):,} groups" if groups else "Duplicates: none"
        what += f", of which the largest {SHOWN_GROUPS}" if len(groups) > SHOWN_GROUPS else ""
        parts.append((what, (_duplicate_group(collection, *one) for one in enumerate(largest, start=1))))
        shown += sum(min(len(rows), SHOWN_MEMBERS) for rows in largest)
        lines.append(
            f"Duplicates: each image of a group has a similarity of {threshold:g} or more to another one of it; "
            "the number is that to its first image."
        )
    lines.append(f"This file contains {shown:,} thumbnails of the data: who gets the page gets to see them.")
    title = f"{meta['model']}: {count:,} embedded image{'s' if count > 1 else ''}"
    write_page(page_file(out), title, lines, parts, collection.channels)
    logger.info("%s contains %s thumbnails of the data", page_file(out), f"{shown:,}")
    return [*written, page_file(out)]


def page_file(out: Path) -> Path:
    """The page beside a file of embeddings."""
    return out.with_suffix(".html")


def neighbors_file(out: Path) -> Path:
    """The table of neighbors beside a file of embeddings."""
    return out.with_suffix(".neighbors.csv")


def duplicates_file(out: Path) -> Path:
    """The table of duplicates beside a file of embeddings."""
    return out.with_suffix(".duplicates.csv")


def check_results(out: Path, neighbors: bool, duplicates: bool, overwrite: bool, anew: bool):
    """Results that were written before are replaced, since they follow from the embeddings; other files are not.

    Args:
        out: the file of embeddings.
        neighbors, duplicates: what is to be written.
        overwrite: replace files of these names, whatever they are.
        anew: the embeddings are to be written as well, so that no result may stay as it is.

    Raises:
        ValueError: naming `out`, if a file of the same name is something else and not to be overwritten, or would stay
            beside other embeddings than those it was made of.
    """
    for path, is_wanted in results(out, neighbors, duplicates).items():
        if not path.exists():
            continue
        if is_wanted and (path.is_dir() or not (overwrite or _is_result(out, path))):
            raise ValueError(f"out: {path} would be replaced, and was not written by a2mim embed")
        if not is_wanted and anew and not overwrite and _is_result(out, path):
            raise ValueError(
                f"out: {path} is there, of vectors that were written before; give --overwrite, which removes it, or "
                "another --out"
            )


def results(out: Path, neighbors: bool, duplicates: bool) -> dict[Path, bool]:
    """The page and the tables beside a file of embeddings, and whether each is to be written."""
    return {
        page_file(out): neighbors or duplicates,
        neighbors_file(out): neighbors,
        duplicates_file(out): duplicates,
    }


def remove_results(out: Path) -> list[Path]:
    """Remove the results that follow from the embeddings in a file, before others take their place; files that
    `a2mim embed` did not write stay. Returns those that are gone."""
    found = [path for path in (page_file(out), neighbors_file(out), duplicates_file(out)) if _is_result(out, path)]
    for path in found:
        path.unlink()
    return found


def _is_result(out: Path, path: Path) -> bool:
    if not path.is_file():
        return False
    if path == page_file(out):
        return is_page(path)
    return _is_table(path, NEIGHBORS if path == neighbors_file(out) else DUPLICATES)


def _is_table(path: Path, columns: Sequence[str]) -> bool:
    with open(path, "rb") as file:
        return file.readline().strip() == ",".join(columns).encode()


def _write_table(path: Path, columns: Sequence[str], lines: Iterable[Sequence]) -> Path:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(lines)
    return path


def _neighbor_lines(collection: Collection, queries: Iterable[Query]) -> Iterator[tuple]:
    for query in queries:
        for rank, (row, similarity) in enumerate(zip(query.rows, query.similarities, strict=True), start=1):
            yield query.file, rank, collection.files[row], f"{similarity:.6f}"


def _neighbor_group(collection: Collection, number: int, query: Query) -> Group:
    found = zip(query.rows, query.similarities, strict=True)
    near = (Shown(collection.stored(row), collection.files[row], float(value)) for row, value in found)
    return Group(f"query {number}", itertools.chain([Shown(query.stored, query.file)], near))


def _duplicate_lines(collection: Collection, groups: list[np.ndarray]) -> Iterator[tuple]:
    for number, rows in enumerate(groups, start=1):
        for row, similarity in zip(rows, cosine(collection.vectors, rows, rows[0]), strict=True):
            yield number, collection.files[row], f"{similarity:.6f}"


def _duplicate_group(collection: Collection, number: int, rows: np.ndarray) -> Group:
    few = rows[:SHOWN_MEMBERS]
    similarities = cosine(collection.vectors, few, rows[0])
    images = (
        Shown(collection.stored(row), collection.files[row], float(value))
        for row, value in zip(few, similarities, strict=True)
    )
    more = f", the first {SHOWN_MEMBERS} of which" if len(rows) > SHOWN_MEMBERS else ""
    return Group(f"group {number}: {len(rows):,} images{more}", images)
