"""Which of the files that a user names hold the images: one format for a source, and what is left out counted and
named."""

import collections
import logging
import os
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import datasets
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi

from ..columns import USUAL
from ..decoding import PLUGINS, image_suffixes, is_image_file
from ..reading import is_remote, open_file
from .hidden import reason_to_leave_out


logger = logging.getLogger("a2mim")

IMAGES, TABLES = "images", ("csv", "json")
FORMATS = {  # what the name of a file ends in, and the format; the order breaks ties between equally many images
    ".parquet": "parquet",
    ".geoparquet": "parquet",
    ".arrow": "arrow",
    ".tar": "tar",
    **dict.fromkeys((".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"), "tar"),
    ".zip": "zip",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
}
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
# Images of formats that nothing here reads: they are named more loudly than notes and labels.
FOREIGN = {".dcm", ".nii", ".eps", ".svg", ".exr", ".hdr", ".jxr", ".bpg", ".npy", ".dng", ".cr2", ".cr3", ".nef"}
FOREIGN |= {".arw", ".orf", ".rw2", ".raw", ".webm", ".mp4", ".rar", ".7z", ".gz", ".zst", ".h5", ".hdf5"}
NEEDS = {suffix: plugin for plugin, suffixes in PLUGINS.items() for suffix in suffixes}
IGNORED = {"readme.md", "license", "license.txt", "dataset_info.json", "dataset_infos.json", "config.json"}  # no data
SHOWN = 3  # names in a message


def suffix_of(name: str) -> str:
    """What the name of a file ends in, lower case: `.jpg`, `.tar.gz`; nothing where that is a number, as of DICOM
    files that are named by their UID."""
    stem, suffix = os.path.splitext(os.path.basename(name).lower())
    if suffix in (".gz", ".bz2", ".xz") and stem.endswith((".tar", ".nii")):
        return os.path.splitext(stem)[1] + suffix
    return "" if suffix[1:].isdigit() else suffix


def format_of(name: str) -> str | None:
    """The format of a file by its name: `images`, one of `FORMATS`, or None."""
    return IMAGES if is_image_file(name) else FORMATS.get(suffix_of(name))


def expected() -> str:
    """The suffixes of what can be read, for messages."""
    usual = (".jpg", ".png", ".webp", ".tif", ".gif", ".bmp", ".avif", ".heic", ".jxl")
    images = [suffix for suffix in usual if suffix in image_suffixes()]
    return f"images ({', '.join(images)}, ...) or files ending in {', '.join(FORMATS)}"


@dataclass
class Census:
    """What files there are: how many of each suffix, their first names, and all of the formats that hold many images
    in one file."""

    counts: collections.Counter = field(default_factory=collections.Counter)
    names: dict[str, list[str]] = field(default_factory=dict)
    shards: dict[str, list[str]] = field(default_factory=dict)
    images: int = 0

    @classmethod
    def of(cls, files: Iterable[str]) -> "Census":
        """Count files by their paths or URLs."""
        found = cls()
        for file in files:
            base = os.path.basename(file)
            kind = format_of(base)
            if base.lower() in IGNORED:
                continue
            if kind == IMAGES:
                found.images += 1
            elif kind and base not in METADATA:
                found.shards.setdefault(kind, []).append(file)
            suffix = base.lower() if base in METADATA else suffix_of(base)
            found.counts[suffix] += 1
            names = found.names.setdefault(suffix, [])
            if len(names) < SHOWN:
                names.append(file)
        return found

    def choose(self, name: str, storage_options: dict | None = None, log: bool = True) -> tuple[str, list[str]]:
        """The format that holds the data, and its files (none for `images`): the only one there is, else the one with
        the most images; tables of names only count where there is nothing else. The rest is logged.

        Raises:
            ValueError: naming what there is instead, if there is nothing to read.
        """
        # Tables that lie beside images, by whatever name, are about them.
        kinds = [kind for kind in dict.fromkeys(FORMATS.values()) if kind in self.shards and kind not in TABLES]
        kinds += [IMAGES] if self.images else []
        kinds = kinds or [kind for kind in TABLES if kind in self.shards]
        if not kinds and (tables := [file for names in self.names.values() for file in names if _is_metadata(file)]):
            kind = format_of(tables[0])  # a table of names all the same, as there are no images beside it
            self.shards[kind], kinds = [file for file in tables if format_of(file) == kind], [kind]
        if not kinds:
            raise ValueError(f"{name}: no images found; expected {expected()}{self.instead(name)}")
        counts = None
        if len(kinds) > 1:
            counts = {kind: count_images(kind, self.shards[kind], storage_options) for kind in kinds if kind != IMAGES}
            counts |= {IMAGES: self.images} if self.images else {}
        kind = kinds[0] if counts is None else max(kinds, key=lambda kind: counts[kind])
        files = sorted(self.shards.get(kind, []))
        if log:
            self.report(name, kind, files, counts)
        return kind, files

    def report(self, name: str, kind: str, files: list[str], counts: dict | None = None, metadata: bool = True):
        """One line: what is read, and what is not. `metadata`: whether the reader says itself which of it is taken."""
        own = {suffix for suffix in self.counts if format_of(suffix if suffix in METADATA else f"x{suffix}") == kind}
        own |= METADATA if kind == IMAGES and metadata else set()
        rest = [suffix for suffix in self.counts if suffix not in own]
        if not rest:
            return
        if kind == IMAGES:
            read = f"{self.images:,} image file{'s'[: self.images != 1]}"
        else:
            many = "" if counts is None else f"{counts[kind]:,} images in "
            read = f"{many}{len(files):,} {kind} file{'s'[: len(files) != 1]}"
        known = (*NEEDS, *FOREIGN, *METADATA)
        loud = any(format_of(f"x{s}") not in (None, *TABLES) or s in known or self._remedy(s) for s in rest)
        left = ", ".join(self._group(rest, name))
        (logger.warning if loud else logger.info)("%s: %s; left out: %s", name, read, left)

    def _group(self, suffixes: list[str], root: str) -> list[str]:
        """ "3 .heic files (a.heic, ...; pip install pillow-heif)" for each suffix; all images together."""
        images = [suffix for suffix in suffixes if suffix in image_suffixes()]
        groups = [images] if images else []
        groups += [[suffix] for suffix in sorted(suffixes, key=self._rank) if suffix not in images]
        said = []
        for group in groups:
            count = sum(self.counts[suffix] for suffix in group)
            first = [f[len(root) :].lstrip("/") if root and f.startswith(root) else f for f in self.names[group[0]]]
            more = ", ..." if count > len(first[:SHOWN]) else ""
            remedy = self._remedy(group[0])
            what = f"{'image' if group is images else group[0]} file{'s'[: count != 1]}"
            if not group[0]:
                what = f"file{'s'[: count != 1]} without an ending"
            if not group[0].startswith(".") and len(self.names[group[0]]) == 1 and not remedy:
                said.append(first[0])
            else:
                said.append(f"{count:,} {what} ({', '.join(first)}{more}{remedy})")
        return said

    def _remedy(self, suffix: str) -> str:
        """What would make images of files that are none by their names, to end a list of them; else nothing."""
        if suffix in NEEDS:
            return f"; pip install {NEEDS[suffix]} to read them"
        if not suffix and any(map(_is_dicom, self.names[suffix])):
            return "; DICOM, read if their names end in .dcm"
        return ""

    def _rank(self, suffix: str) -> tuple:
        return suffix not in NEEDS, format_of(f"x{suffix}") is None, -self.counts[suffix]

    def instead(self, name: str = "") -> str:
        """What there is, to end a message that says what there is not."""
        return f"; there are {', '.join(self._group(list(self.counts), name))}" if self.counts else ""


def hub_census(name: str, revision: str | None = None, token: str | None = None) -> tuple[str, Census] | None:
    """The root of a repository and what it holds; `None` if its card says which files are the data, or if the Hub
    cannot be asked (then `datasets` says what it has of it)."""
    try:
        info = HfApi(token=token).dataset_info(name, revision=revision)
    except (OSError, ValueError, httpx.HTTPError):
        return None
    card = info.card_data.to_dict() if info.card_data else {}
    if card.get("configs") or card.get("dataset_info"):
        return None
    root = f"hf://datasets/{name}@{info.sha}"
    names = [sibling.rfilename for sibling in info.siblings or ()]
    return root, Census.of(f"{root}/{name}" for name in names if not reason_to_leave_out(name))


def _is_dicom(file: str) -> bool:
    """Whether a file that lies here begins as DICOM does; scanners and archives often give it no ending."""
    if is_remote(file) or not os.path.isfile(file):
        return False
    with open(file, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _is_metadata(file: str) -> bool:
    return os.path.basename(file) in METADATA


def count_images(kind: str, files: Sequence[str], storage_options: dict | None = None) -> int:
    """How many images the files of one format hold.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    return sum(_count(kind, file, storage_options or {}) for file in files)


def _count(kind: str, path: str, storage_options: dict) -> int:
    try:
        if kind == "arrow" and not is_remote(path):
            rows = datasets.Dataset.from_file(path)
            return len(rows) * _may_hold_images(rows.features.arrow_schema)
        with open_file(path, storage_options) as file:
            if kind == "parquet":
                footer = pq.read_metadata(file)
                return footer.num_rows * _may_hold_images(footer.schema.to_arrow_schema())
            if kind == "arrow":
                return sum(len(batch) for batch in pa.ipc.open_stream(file))
            if kind == "zip":
                with zipfile.ZipFile(file) as archive:
                    names = archive.namelist()
            else:
                with tarfile.open(fileobj=file) as archive:
                    names = [member.name for member in archive]
            return sum(is_image_file(name) and not reason_to_leave_out(name) for name in names)
    except (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _may_hold_images(schema: pa.Schema) -> bool:
    """Whether a table has a column of bytes, or one of a usual name, which may be of paths."""
    return any(
        pa.types.is_struct(field.type)
        or pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
        or field.name in USUAL
        for field in schema
    )
