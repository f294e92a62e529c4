"""Random access to the images of WebDataset tars, which are listed once."""

import copy
import logging
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, Image, Value

from ..columns import choose_images, image_candidates, same_view
from ..decoding import is_image_file
from ..reading import open_file, relative_name, with_retries
from ..shards import ShardedSource, map_shards
from .hidden import reason_to_leave_out
from .image_folders import LeftOut


logger = logging.getLogger("a2mim")

TAR_RUN = (64, 2**24)  # samples, and bytes, of a tar that are read at once
GAP = 2**20  # bytes that are rather read than jumped over
LABEL_BYTES = 256  # a longer `cls` file names no class
ABSENT = (-1, 0)


class Listing:
    """What a tar holds.

    Attributes:
        members: by column, (samples, 2): offset and size of the sample's file, offset -1 where it has none.
        labels: by sample, what its `cls` file says; None where it has none.
        left_out: counts the files in hidden and system folders.
        sorted: whether the files of each sample lie together.
        uniform: whether all samples have the same columns.
    """

    def __init__(self, path: str, storage_options: dict):
        self.path, self.sorted, self.left_out = path, True, LeftOut(path, inside=True)
        self.labels: list[str | None] = []
        found: dict[str, dict[int, tuple[int, int]]] = {}
        samples: dict[tuple[str, str], int] = {}
        with open_file(path, storage_options) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            last = -1
            while (member := archive.next()) is not None:
                # Which would hold the whole listing.
                archive.members.clear()  # type: ignore[attr-defined]  # typeshed lacks it
                folder, _, base = member.name.rpartition("/")
                stem, dot, column = base.partition(".")
                if not member.isreg() or member.issparse() or not dot or not stem:
                    continue
                if (reason := reason_to_leave_out(member.name)) is not None:
                    self.left_out.add(reason, member.name)
                    continue
                sample = samples.setdefault((folder, stem), len(samples))
                self.sorted &= sample in (last, len(samples) - 1)
                last = sample
                entries = found.setdefault(column.lower(), {})
                if sample in entries:
                    raise ValueError(f"two files of one sample are called {member.name}")
                entries[sample] = (member.offset_data, member.size)
                if len(self.labels) < len(samples):
                    self.labels.append(None)
                if column.lower() == "cls":
                    self.labels[sample] = archive.extractfile(member).read(LABEL_BYTES).decode().strip()
            # tarfile takes a damaged header, or none, for the end; the true one is a block of zeros.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"truncated or damaged at byte {archive.offset}")
        self.uniform = all(len(entries) == len(samples) for entries in found.values())
        self.members = {}
        for column, entries in found.items():
            places = np.full((len(samples), 2), ABSENT, dtype=np.int64)
            places[list(entries)] = list(entries.values())
            self.members[column] = places

    def of(self, columns: Sequence[str]) -> np.ndarray:
        """(samples, 2), the file of the first of these columns that a sample has."""
        places = np.full((len(self.labels), 2), ABSENT, dtype=np.int64)
        for column in columns:
            if column in self.members:
                places = np.where(places[:, :1] < 0, self.members[column], places)
        return places

    def overlap(self, one: Sequence[str], other: Sequence[str]) -> bool:
        """Whether a sample has files of both."""
        return bool(((self.of(one)[:, 0] >= 0) & (self.of(other)[:, 0] >= 0)).any())


class TarSource(ShardedSource):
    """WebDataset tars: the files whose names are equal up to the first dot of the last part make up a sample, wherever
    in the tar they lie. The tars are listed once, which for local ones reads only headers and labels. A chunk is a run
    of consecutive samples.

    The images of a sample are one column whatever their files end in (`jpg` of one sample, `png` of the next), named
    after the first; files that a sample has both of (`jpg` and `seg.png`) are columns of their own. Where these are
    numbered (`1.jpg`, `2.jpg`), each is a row.

    Args:
        files: paths or URLs of uncompressed tars.
        image_column: the column that the images are, if several may be; rows are the samples that have it.

    Raises:
        ReadError: naming a shard that cannot be listed.
        ValueError: if there is no image in any of them, or no such column.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[str],
        storage_options: dict | None = None,
        retries: int = 5,
        image_column: str | None = None,
    ):
        self.files, self.storage_options = list(files), storage_options or {}
        listings = map_shards(lambda file: Listing(file, self.storage_options), self.files, retries)
        for listing in listings:
            listing.left_out.say()
        columns = list(dict.fromkeys(column for listing in listings for column in listing.members))
        images = [column for column in columns if _is_image(column)]
        if not images:
            raise ValueError(f"{name}: no images in its {len(files)} tar files; the samples have {', '.join(columns)}")
        groups = _groups(images, listings)
        rows = self._rows_of(name, groups, image_column)
        own = len(rows) == 1 and (image_column or rows[0]) in images and len(groups) == len(images)
        self.as_webdataset = own and all(x.sorted and x.members.keys() == set(columns) for x in listings)
        self.as_webdataset &= all(x.uniform and not x.left_out.found for x in listings)
        classes = sorted({label for listing in listings for label in listing.labels if label not in (None, "-1")})
        self.as_webdataset &= all(map(str.isdecimal, classes))
        # The images that are rows come first, under the name that was asked for.
        main = image_column or (rows[0] if len(rows) == 1 else rows[0].rsplit(".", 1)[-1])
        kinds: dict = {main: Image(), **{column: Image() for column in groups if column not in rows}}
        kinds |= {column: Value("binary") for column in columns if not _is_image(column)}
        if "cls" in kinds:
            kinds["cls"] = ClassLabel(names=classes)
        numbers = {label: number for number, label in enumerate(classes)} | {"-1": -1}
        self.shards = [self._shard(listing, groups, rows, kinds, numbers) for listing in listings]
        self.runs = [(i, *run) for i, shard in enumerate(self.shards) for run in runs(shard[main])]
        sizes = [last - first for _, first, last in self.runs]
        super().__init__(name, Features(kinds), sizes, self.storage_options, retries)
        self.row_bytes = sum(int(shard[main][:, 1].sum()) for shard in self.shards) / max(1, len(self))

    def _rows_of(self, name: str, groups: dict[str, list[str]], wanted: str | None) -> list[str]:
        """The columns whose images are rows, under the name of the first."""
        if wanted is not None:
            found = [column for column, members in groups.items() if wanted in (column, *members)]
            numbered = [c for c in image_candidates(list(groups)) if c.rsplit(".", 1)[-1] == wanted]
            if not found and same_view(numbered):
                return numbered
            if not found:
                raise ValueError(
                    f"image_column_name: samples of {name} have no images {wanted!r}; they have {', '.join(groups)}"
                )
            return found
        chosen = choose_images(list(groups))
        if chosen is not None:
            return [chosen]
        candidates = image_candidates(list(groups))
        if same_view(candidates):
            logger.info("%s: its samples have several images (%s); each of them is a row", name, ", ".join(candidates))
            return candidates
        raise ValueError(
            f"image_column_name: the samples of {name} have images in {', '.join(candidates)}; choose with "
            "--image_column_name"
        )

    def _shard(self, listing: Listing, groups: dict, rows: list[str], kinds: dict, numbers: dict) -> dict:
        """(rows, 2) places by column, in the order of the images in the tar; `cls` has the numbers of the classes."""
        images = [listing.of(groups[column]) for column in rows]
        places = np.concatenate(images)
        samples = np.tile(np.arange(len(listing.labels)), len(rows))
        good = np.flatnonzero(places[:, 0] >= 0)
        good = good[np.argsort(places[good, 0], kind="stable")]
        if lacking := len(listing.labels) - len(np.unique(samples[good])):
            logger.warning("%s: %d of its samples hold no image", listing.path, lacking)
        main, *others = kinds
        shard: dict[str, np.ndarray | list[int]] = {
            c: listing.of(groups.get(c, [c]))[samples[good]] for c in others if c != "cls"
        }
        shard[main] = places[good]
        if "cls" in kinds:
            shard["cls"] = [numbers.get(listing.labels[sample]) for sample in samples[good]]
        return shard

    def _read_chunk(self, chunk: int) -> Any:
        index, first, last = self.runs[chunk]
        shard = self.shards[index]
        columns = [(c, shard[c][first:last]) for c in self.columns if c]
        places = [tuple(p) for c, found in columns if c != "cls" for p in found.tolist() if p[0] >= 0]
        data: dict[tuple[int, int], bytes] = {}
        with open_file(self.files[index], self.storage_options) as file:
            for start, stop, members in _byte_ranges(sorted(set(places))):
                file.seek(start)
                read = file.read(stop - start)
                if len(read) != stop - start:
                    raise EOFError(f"{len(read)} bytes instead of {stop - start}")
                data |= {(o, size): read[o - start : o - start + size] for o, size in members}
        return data, columns

    def _row(self, opened: Any, place: int) -> tuple:
        data, columns = opened
        cells = [_cell(c, found[place], data) for c, found in columns]
        label = cells[1] if len(cells) == 2 else None
        if isinstance(label, bytes) and not isinstance(self.features[self.columns[1]], Image):
            label = label.decode()
        return self._image(cells[0]), label

    def _cells(self, opened: Any, place: int) -> dict[str, Any]:
        data, columns = opened
        return {c: _cell(c, found[place], data) for c, found in columns}

    def rows(self) -> Iterator[dict]:
        """All rows with all their columns."""
        whole = copy.copy(self)
        whole.columns = tuple(self.features)
        for chunk, (_, first, last) in enumerate(self.runs):
            what = self._describe_chunk(chunk)
            data, columns = with_retries(lambda chunk=chunk: whole._read_chunk(chunk), what, self.retries)
            for place in range(last - first):
                yield self._cells((data, columns), place)

    def _describe_chunk(self, chunk: int) -> str:
        index, first, last = self.runs[chunk]
        return f"{self.files[index]}, samples {first} to {last - 1}"

    def describe(self, row: int) -> str:
        [(chunk, place)] = self._find([row])
        index, first, _ = self.runs[chunk]
        return f"sample {first + place} of {self.files[index]}"

    def file_name(self, row: int) -> str | None:
        [(chunk, place)] = self._find([row])
        index, first, _ = self.runs[chunk]
        return f"sample {first + place} of {relative_name(self.files[index], [self.name])}"


def _is_image(column: str) -> bool:
    return is_image_file(f"x.{column}")


def _cell(column: str, found: Any, data: dict[tuple[int, int], bytes]) -> Any:
    """What a row has in a column: the number of its class, the bytes of a file, or None."""
    return found if column == "cls" else data.get(tuple(found.tolist()))


def _groups(columns: list[str], listings: list[Listing]) -> dict[str, list[str]]:
    """The columns of images, those together of which no sample has two: all of them, or else those of one role (`jpg`
    and `png`, or `seg.jpg` and `seg.png`). Each is called after the first."""
    groups = _disjoint(columns, listings)
    if len(groups) > 1:
        roles: dict[str, list[str]] = {}
        for column in columns:
            roles.setdefault(column.rpartition(".")[0], []).append(column)
        groups = [group for role in roles.values() for group in _disjoint(role, listings)]
    return {group[0]: group for group in sorted(groups, key=lambda group: columns.index(group[0]))}


def _disjoint(columns: list[str], listings: list[Listing]) -> list[list[str]]:
    """One group of all columns, if no sample has two of them, else one group each."""
    for place, column in enumerate(columns):
        if any(listing.overlap(columns[:place], [column]) for listing in listings):
            return [[column] for column in columns]
    return [columns]


def _byte_ranges(places: list[tuple[int, int]]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Files, (offset, size) in order, that are read at once: where to begin, where to stop, and which they are."""
    found: list = []
    for offset, size in places:
        if found and offset - found[-1][1] <= GAP:
            start, stop, members = found[-1]
            found[-1] = (start, max(stop, offset + size), [*members, (offset, size)])
        else:
            found.append((offset, offset + size, [(offset, size)]))
    return found


def runs(places: np.ndarray) -> list[tuple[int, int]]:
    """First and last (exclusive) of runs of consecutive samples; `places` are (offset, size) of each."""
    found, first = [], 0
    for index in range(1, len(places) + 1):
        span = places[index - 1].sum() - places[first, 0]
        if index == len(places) or index - first == TAR_RUN[0] or span > TAR_RUN[1]:
            found.append((first, index))
            first = index
    return found
