"""Parts to the shards of a finished folder; what is killed here goes on from a plan that was written before."""

import io
import json
import logging
import os
import posixpath
import re
import shutil
import tarfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from ..utils.files import atomic_write, write_json
from .encoding import decode
from .options import PARQUET
from .parts import WORK, Part, PartFolder
from .statistics import Statistics


logger = logging.getLogger("a2mim")

REPORT, CARD, DATA, PLAN = "prepare.json", "README.md", "data", "plan.json"
SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}


def statistics_of(folder: PartFolder, part: int, dropped: Collection[int]) -> Statistics:
    """What is counted of the pixels of a part, but for some of its images, by their place in it. Where there are such,
    what was written is decoded once more."""
    if not dropped:
        return Statistics.load(folder.statistics(part))
    found, place = Statistics(), 0
    pieces = [row for row in folder.known(part) if row["piece"] is not None]
    for batch in pq.ParquetFile(folder.images(part)).iter_batches(batch_size=100, columns=["image"]):
        for image in batch["image"].to_pylist():
            if place not in dropped:
                values = decode(image["bytes"], posixpath.splitext(image["path"])[1])
                found.add(values, pieces[place]["alpha"], pieces[place]["unknown"])
            place += 1
    return found


def plan_shards(
    parts: Sequence[Part], counts: Sequence[int], dropped: dict[int, list[int]], kind: str, key: str
) -> list[dict]:
    """Which shard each part becomes, as JSON.

    Args:
        parts: all of them.
        counts: how many images each holds.
        dropped: by part, the places in it of images that are left out.
        kind: `PARQUET` or `WEBDATASET`.
        key: part of the names of all shards, that of no other data: the cache of `datasets` tells folders that have a
            card apart by their last name and the patterns in the card alone.

    Returns:
        `file` of each shard, `part`, `dropped` and `images`; parts of which nothing is left are not among them.
    """
    found: list[dict[str, Any]] = []
    for split in dict.fromkeys(part.split for part in parts):
        own = [part for part in parts if part.split == split]
        own = [part for part in own if counts[part.number] > len(dropped.get(part.number, ()))]
        for place, part in enumerate(own):
            gone = dropped.get(part.number, [])
            file = f"{DATA}/{split}-{place:05d}-of-{len(own):05d}-{key}{SUFFIXES[kind]}"
            images = counts[part.number] - len(gone)
            found.append({"file": file, "split": split, "part": part.number, "dropped": gone, "images": images})
    return found


def write_plan(folder: PartFolder, plan: dict[str, Any]):
    """Keep what is to be done with the parts; from here on they are only moved."""
    write_json(folder.path / PLAN, plan)


def read_plan(folder: PartFolder) -> dict[str, Any] | None:
    """What `write_plan` has kept, `None` if there is nothing."""
    path = folder.path / PLAN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_shards(out: Path, folder: PartFolder, plan: dict[str, Any], features: Features, kind: str):
    """Make OUT of the parts: shards, card and report, which is the last to be there. What an earlier run of this
    command left in it goes first.

    Args:
        out: the folder.
        folder: of the parts.
        plan: `shards` (see `plan_shards`), `card` (text) and `report` (JSON).
        features: the columns.
        kind: `PARQUET` or `WEBDATASET`.
    """
    if (out / REPORT).exists():
        before = json.loads((out / REPORT).read_text(encoding="utf-8"))
        for name in before["files"]:
            (out / name).unlink(missing_ok=True)
        (out / REPORT).unlink()
    (out / DATA).mkdir(exist_ok=True)
    for shard in plan["shards"]:
        images, target = folder.images(shard["part"]), out / shard["file"]
        if not images.exists():  # moved by a run that was killed
            assert target.exists(), target
            continue
        if kind == PARQUET and not shard["dropped"]:
            os.replace(images, target)
            continue
        with atomic_write(target) as temporary:
            (_filter if kind == PARQUET else _to_tar)(images, temporary, set(shard["dropped"]), features, shard)
        images.unlink()
    with atomic_write(out / CARD) as temporary:
        temporary.write_text(plan["card"], encoding="utf-8")
    write_json(out / REPORT, plan["report"])
    shutil.rmtree(folder.path)


def _filter(images: Path, target: Path, dropped: set[int], features: Features, shard: dict):
    file = pq.ParquetFile(images)
    first = 0
    with pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            kept = [place for place in range(len(table)) if first + place not in dropped]
            first += len(table)
            if kept:
                writer.write_table(table.take(kept), row_group_size=len(kept))


def _to_tar(images: Path, target: Path, dropped: set[int], features: Features, shard: dict):
    """Samples of a WebDataset: the image, `cls` (the number of its class) and `json` (all other columns)."""
    labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    place = 0
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for batch in pq.ParquetFile(images).iter_batches(batch_size=100):
            for row in batch.to_pylist():
                if place not in dropped:
                    image = row.pop("image")
                    stem, suffix = posixpath.splitext(image["path"])
                    name = re.sub(r"[^\w-]+", "_", stem)[-100:]
                    key = f"{shard['part']:06d}{place:06d}_{name}"
                    _add(archive, key + suffix, image["bytes"])
                    if labels and row[labels[0]] is not None:
                        _add(archive, f"{key}.cls", str(row[labels[0]]).encode())
                    for name in labels:
                        value = row[name]
                        row[f"{name}_name"] = None if value is None or value < 0 else features[name].names[value]
                    _add(archive, f"{key}.json", json.dumps({**row, "path": image["path"]}, default=str).encode())
                place += 1


def _add(archive: tarfile.TarFile, name: str, data: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def check_out(out: Path, images: Sequence[str], overwrite: bool):
    """Refuse a folder that cannot be written.

    Raises:
        ValueError: naming `out`, if it is a file, finished and not to be overwritten, has files of something else, or
            holds the images or lies among them.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {out} is a file; expected a folder")
    for name in images:
        source, target = os.path.realpath(name), os.path.realpath(out)
        if os.path.exists(source):
            inside = os.path.isdir(source) and os.path.commonpath([source, target]) == source
            if inside or os.path.commonpath([source, target]) == target:
                raise ValueError(f"out: {out} and the images {name} lie in each other; name a folder elsewhere")
    if not out.is_dir() or (out / WORK / "manifest.json").exists():
        return
    if (out / REPORT).exists():
        if not overwrite:
            raise ValueError(f"out: {out} is finished; give --overwrite to prepare it anew")
    elif others := sorted(entry.name for entry in out.iterdir() if entry.name != WORK):
        raise ValueError(f"out: {out} holds other files, such as {others[0]}; name a new or empty folder")
