"""What a prepared folder says of itself: `prepare.json`, its card, and a summary in the log."""

import collections
import os
from typing import Any

import yaml

from .options import PARQUET, Options
from .parts import Part, PartFolder
from .pixels import TRANSPARENCY, WINDOW


LOST = {
    TRANSPARENCY: "transparency is not written, as arrays do not say which channel it is (training drops it, too)",
    WINDOW: "windows of DICOM are not written, so that --value_range window does not know them",
}
SHOWN = 5  # names in the summary
GROUPS = 1000  # of duplicates that are listed


def count_all(parts: list[Part], folder: PartFolder) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is known of all parts: the counts of the report, and the pieces with their `split`, `part` and `place`."""
    skipped, pieces = [], []
    splits: dict[str, dict[str, int]] = {}
    before = left_out = without_pieces = 0
    for part in parts:
        own = splits.setdefault(part.split, {"images": 0, "skipped": 0, "written": 0})
        own["images"] += len(part.rows)
        place = 0
        for row in folder.known(part.number):
            before += row["before"]
            left_out += row["left_out"]
            if row["error"] is not None:
                own["skipped"] += 1
                skipped.append({"file": row["file"], "split": part.split, "reason": row["error"]})
            elif row["piece"] is not None:
                own["written"] += 1
                pieces.append({**row, "split": part.split, "part": part.number, "place": place})
                place += 1
            else:
                without_pieces += 1
    found = {"splits": splits, "skipped": skipped, "tiles_without_content": left_out, "bytes_before": before}
    return found, pieces


def make_report(
    names: list[str],
    version: str,
    options: Options,
    counts: dict[str, Any],
    pieces: list[dict[str, Any]],
    firsts: Any,
    shards: list[dict[str, Any]],
    statistics: list[dict[str, Any]],
    files: list[str],
) -> dict[str, Any]:
    """`prepare.json`.

    Args:
        names: what the user called the images, without folders of this machine.
        version: of this package.
        options: what was made of them.
        counts, pieces: of `count_all`.
        firsts: which piece each is a duplicate of, by number.
        shards: see `shards.plan_shards`.
        statistics: see `Statistics.summary`.
        files: all that are written.
    """
    groups = collections.defaultdict(list)
    for number, first in enumerate(firsts):
        groups[int(first)].append(number)
    repeated = [group for group in groups.values() if len(group) > 1]
    dropped = options.drop_duplicates
    kept = [n for n, first in enumerate(firsts) if not dropped or first == n]
    splits = {name: dict(own) for name, own in counts["splits"].items()}
    for name, own in splits.items():
        own["written"] = sum(shard["images"] for shard in shards if shard["split"] == name)
    after = sum(pieces[n]["after"] for n in kept)
    return {
        "version": version,
        "images": names,
        "options": options.as_dict(),
        "splits": splits,
        "written": len(kept),
        "skipped": counts["skipped"],
        "tiles_without_content": counts["tiles_without_content"],
        "jpegs_as_they_were": sum(bool(pieces[n]["kept"]) for n in kept),
        "not_written": dict(collections.Counter(what for piece in pieces for what in piece["lost"] or ())),
        "bytes_before": counts["bytes_before"],
        "bytes_after": after,
        "mean_bytes": after / len(kept),
        "duplicates": {
            "of": "equal pixels"
            if options.near_duplicates is None
            else f"equal pixels, or perceptual hashes of 64 bits that differ in at most {options.near_duplicates}",
            "images": sum(len(group) - 1 for group in repeated),
            "groups": len(repeated),
            "across_splits": sum(len({pieces[n]["split"] for n in group}) > 1 for group in repeated),
            "dropped": len(pieces) - len(kept),
            "files": [[f"{pieces[n]['split']}: {pieces[n]['piece']}" for n in group] for group in repeated[:GROUPS]],
        },
        "statistics": statistics,
        "files": files,
    }


def write_card(report: dict[str, Any], shards: list[dict[str, Any]], kind: str, key: str) -> str:
    """The text of README.md, whose head says the splits; `key` as `shards.plan_shards`."""
    suffix = "parquet" if kind == PARQUET else "tar"
    written = dict.fromkeys(shard["split"] for shard in shards)
    files = [{"split": split, "path": f"data/{split}-*-{key}.{suffix}"} for split in written]
    head = yaml.safe_dump(
        {"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False, allow_unicode=True
    )
    options = {name: value for name, value in report["options"].items() if value not in (None, False, 0)}
    lines = [
        f"---\n{head}---\n",
        f"# Images of {', '.join(report['images'])}\n",
        f"Written by `a2mim prepare` {report['version']}: {', '.join(f'{n} {v}' for n, v in options.items())}.\n",
        "| split | images | skipped | written |\n|---|---|---|---|",
        *(
            f"| {n} | {own['images']:,} | {own['skipped']:,} | {own['written']:,} |"
            for n, own in report["splits"].items()
        ),
        "\n`prepare.json` has the names of what was skipped, the duplicates and the statistics. To train on them:\n",
        *(
            f"- {own['images']:,} images, {own['dtype']} of {own['channels']} channel(s): "
            + (f"`{own['flags']}`" if own["flags"] else f"no flags, as {own['no_flags']}")
            for own in report["statistics"]
        ),
    ]
    return "\n".join(lines) + "\n"


def summary_of(report: dict[str, Any]) -> list[str]:
    """The lines of the log at the end."""
    skipped, duplicates = report["skipped"], report["duplicates"]
    lines = []
    for name, own in report["splits"].items():
        lines.append(f"{name}: {own['images']:,} images, {own['written']:,} written, {own['skipped']:,} skipped")
    if skipped:
        shown = "; ".join(f"{row['file']}: {row['reason']}" for row in skipped[:SHOWN])
        lines.append(f"skipped: {shown}" + ("; ..." if len(skipped) > SHOWN else ""))
    if report["tiles_without_content"]:
        lines.append(f"tiles left out for their content: {report['tiles_without_content']:,}")
    if report["jpegs_as_they_were"]:
        lines.append(f"JPEGs written as they were, with what their headers hold: {report['jpegs_as_they_were']:,}")
    for what, count in report["not_written"].items():
        lines.append(f"{LOST[what]}: {count:,} images")
    across = f", {duplicates['across_splits']:,} groups across splits" if len(report["splits"]) > 1 else ""
    lines.append(
        f"duplicates ({duplicates['of']}): {duplicates['images']:,} in {duplicates['groups']:,} groups{across}, "
        f"{duplicates['dropped']:,} left out"
    )
    sizes = f"{_size(report['bytes_before'])} before, {_size(report['bytes_after'])} after"
    lines.append(f"bytes of images: {sizes}, {report['mean_bytes']:,.0f} each")
    for own in report["statistics"]:
        flags = own["flags"] or f"none, as {own['no_flags']}"
        lines.append(f"{own['images']:,} images, {own['dtype']} of {own['channels']} channel(s); flags: {flags}")
    if len(report["statistics"]) > 1:
        lines.append("images are of several types or numbers of channels, of which a model takes one")
    return lines


def name_of(images: str | os.PathLike) -> str:
    """What to call images without folders of this machine."""
    return os.path.basename(os.path.realpath(images)) if os.path.exists(images) else str(images)


def _size(count: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}"
