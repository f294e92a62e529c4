"""`a2mim prepare`, from what the user names to a folder that trains fast."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from .duplicates import groups_of
from .opening import open_splits, shuffled
from .options import Options
from .parts import PartFolder, PartWriter, features_of, file_column, plan_parts, write_parts
from .report import count_all, make_report, name_of, summary_of, write_card
from .shards import CARD, REPORT, check_out, plan_shards, read_plan, statistics_of, write_plan, write_shards
from .statistics import Statistics


logger = logging.getLogger("a2mim")


def prepare(
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    options: Options | None = None,
    *,
    split: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    revision: str | None = None,
    shuffle: int | None = None,
    num_workers: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Decode images once and write them as shards. A run that was killed goes on with the parts that are written, and
    ends with the same files.

    Args:
        images, split, config_name, image_column, revision: which, as `opening.open_splits`.
        out: the folder to write.
        options: what is made of each.
        shuffle: seed of the order that they are written in; as they lie, if not given.
        num_workers: processes; as many as there are cores, if not given.
        overwrite: replace what an earlier run has written to `out`.

    Returns:
        What `prepare.json` in `out` holds.

    Raises:
        ValueError: naming what is wrong.
    """
    options, out = options or Options(), Path(out)
    names = [str(name) for name in images]
    check_out(out, names, overwrite)
    splits = open_splits(names, split=split, config_name=config_name, image_column=image_column, revision=revision)
    orders = {} if shuffle is None else {name: shuffled(own, shuffle) for name, own in splits.items()}
    parts = plan_parts(splits, orders)
    identity = {
        "options": options.as_dict(),
        "images": {name: own.fingerprint for name, own in splits.items()},
        "columns": {name: str(own.columns) for name, own in splits.items()},
        "shuffle": shuffle,
        "version": __version__,
    }
    folder = PartFolder(out, identity, overwrite)
    columns = next(iter(splits.values())).columns
    features = features_of(columns, file_column(columns))
    plan = read_plan(folder)
    if plan is None:
        for name, own in splits.items():
            logger.info("%s: %s images; columns kept: %s", name, f"{len(own.source):,}", ", ".join(columns) or "none")
        there = write_parts(PartWriter(splits, parts, folder, options), _workers(num_workers))
        if there:
            logger.info("%d of %d parts were there already", there, len(parts))
        plan = _plan([name_of(name) for name in names], options, parts, folder, identity)
        write_plan(folder, plan)
    write_shards(out, folder, plan, features, options.format)
    for line in summary_of(plan["report"]):
        logger.info("%s", line)
    logger.info("written: %s (%d shards, %s, %s)", out, len(plan["shards"]), CARD, REPORT)
    return plan["report"]


def _workers(asked: int | None) -> int:
    """Processes beside this one: none for one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = cores if asked is None else asked
    return 0 if count <= 1 else count


def _plan(names: list[str], options: Options, parts: list, folder: PartFolder, identity: dict) -> dict[str, Any]:
    """What is to be done with the parts, with report and card."""
    counts, pieces = count_all(parts, folder)
    if not pieces:
        skipped = counts["skipped"]
        told = f"; {skipped[0]['file']}: {skipped[0]['reason']}" if skipped else ", no tile has enough content"
        raise ValueError(f"images: nothing to write of {sum(len(part.rows) for part in parts):,}{told}")
    perceptual = None if options.near_duplicates is None else [piece["perceptual"] for piece in pieces]
    firsts = groups_of([piece["hash"] for piece in pieces], perceptual, options.near_duplicates or 0)
    dropped: dict[int, list[int]] = {}
    held = [0] * len(parts)
    for number, piece in enumerate(pieces):
        held[piece["part"]] += 1
        if options.drop_duplicates and firsts[number] != number:
            dropped.setdefault(piece["part"], []).append(piece["place"])
    told = json.dumps([identity, [[piece["piece"], piece["after"], piece["hash"].hex()] for piece in pieces]])
    key = hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:8]
    shards = plan_shards(parts, held, dropped, options.format, key)
    total = Statistics.total(statistics_of(folder, part.number, set(dropped.get(part.number, ()))) for part in parts)
    files = [*(shard["file"] for shard in shards), CARD]
    report = make_report(names, __version__, options, counts, pieces, firsts, shards, total.summary(), files)
    return {"shards": shards, "report": report, "card": write_card(report, shards, options.format, key)}
