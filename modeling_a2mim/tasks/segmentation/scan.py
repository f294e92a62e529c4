"""All annotated maps are looked through before training: which classes there are, how much of them does not count, and
which images have no label."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch.distributed as dist
from transformers.utils.logging import tqdm

from ...data.decoding import JPEGS, BrokenImage
from ...data.reading import is_remote
from ...data.sources import RowsOf, RowSource
from .labels import LabelValues, open_map, read_pixels, show_value, some


logger = logging.getLogger("a2mim")

TRAINING, EVALUATION = "training maps", "evaluation maps"
CHUNK = 64  # maps that are read together
RARE = 1e-3  # of all pixels: values that are rarer may be noise
MANY = 16  # values of which so many are rare
RESTORE = (
    "save the original maps as PNG, or restore their values (of 0 and 255: `image.point(lambda v: 255 * (v > 127))`)"
)


@dataclass
class FoundInMaps:
    """What the maps of a split hold, as `look_through` counts it.

    Args:
        maps: that were read.
        pixels, in_maps: of each value, how many pixels have it, and how many maps.
        first: of each value, a row that has it.
        strange: the same as `pixels` of colours, where maps of numbers are expected.
        jpegs, palettes: how many maps are JPEG files, and how many have a palette.
        missing, ignored: rows without a map, and with maps of which no pixel counts.
        broken, refused: rows of maps that cannot be decoded, or are no maps, with the reason.
    """

    maps: int = 0
    pixels: Counter = field(default_factory=Counter)
    in_maps: Counter = field(default_factory=Counter)
    first: dict[int, int] = field(default_factory=dict)
    strange: Counter = field(default_factory=Counter)
    jpegs: int = 0
    palettes: int = 0
    missing: list[int] = field(default_factory=list)
    ignored: list[int] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, value, not_counted: set[int], colours: bool, max_pixels: int):
        """Count the map of a row in."""
        try:
            if value is None or (isinstance(value, dict) and value.get("bytes") is None and not value.get("path")):
                self.missing.append(row)
                return
            if isinstance(value, BrokenImage):
                raise value
            header = open_map(value, max_pixels)
            pixels, coloured = read_pixels(header, colours)
        except BrokenImage as error:
            self.broken.append((row, str(error)))
            return
        except ValueError as error:
            self.refused.append((row, str(error)))
            return
        self.maps += 1
        self.jpegs += header.format in JPEGS
        self.palettes += getattr(header, "mode", None) == "P" and not colours
        counts = count_values(pixels)
        if coloured and not colours:
            self.strange.update(counts)
            return
        self.pixels.update(counts)
        self.in_maps.update(counts.keys())
        for one in counts:
            self.first.setdefault(one, row)
        if not counts.keys() - not_counted:
            self.ignored.append(row)

    def merge(self, other: "FoundInMaps"):
        """Count in what another process found in later rows."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            elif isinstance(mine, dict):
                setattr(self, name, {**value, **mine})
            else:
                setattr(self, name, mine + value)

    @property
    def unlabelled(self) -> set[int]:
        """Rows that nothing can be learned from or measured on."""
        return {*self.missing, *self.ignored, *(row for row, _ in self.broken)}

    def shares(self, values, colours: bool) -> str:
        """How much of all pixels has each of these values, in words."""
        total = max(1, sum(self.pixels.values()))
        return some(f"{show_value(v, colours)} ({100 * self.pixels[v] / total:.3g}% of the pixels)" for v in values)


def count_values(pixels: np.ndarray) -> dict[int, int]:
    """How many pixels have each value, of those that occur."""
    if pixels.min() >= 0 and pixels.max() < 2**16:
        counts = np.bincount(pixels.reshape(-1))
        values = counts.nonzero()[0]
        return dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    values, counts = np.unique(pixels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def is_far(source: RowSource) -> bool:
    """Whether its rows come over the network, which is no place to look through all of them first."""
    while isinstance(source, RowsOf):
        source = source.source
    return source.remote or any(map(is_remote, getattr(source, "files", ())))


def look_through(
    source: RowSource, column: str, not_counted: set[int], colours: bool, max_pixels: int, what: str
) -> FoundInMaps:
    """Read all maps in this column, each process its share of them, with a progress bar; called by all processes.

    Raises:
        ValueError: naming `label_column_name` and the row, if one is no map of classes.
    """
    maps, found = source.select(column), FoundInMaps()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    first, last = len(maps) * rank // world, len(maps) * (rank + 1) // world
    with tqdm(total=last - first, desc=f"looking through the {what}", unit=" maps", delay=1, leave=False) as bar:
        for start in range(first, last, CHUNK):
            rows = list(range(start, min(start + CHUNK, last)))
            for row, (value, _) in zip(rows, maps.read(rows), strict=True):
                found.add(row, value, not_counted, colours, max_pixels)
            bar.update(len(rows))
    if world > 1:
        parts: list[FoundInMaps | None] = [None] * world
        dist.all_gather_object(parts, found)
        found = parts[0]
        for part in parts[1:]:
            found.merge(part)
    if found.refused:
        row, reason = found.refused[0]
        raise ValueError(f"{reason} ({maps.describe(row)}, one of {len(found.refused):,} of {len(maps):,} {what})")
    if found.strange:
        common = [show_value(value, True) for value, _ in found.strange.most_common()]
        raise ValueError(
            f"labels_file: {what} hold colours: {some(common)}; name those of the classes by #rrggbb, as in "
            f'{{"{common[0]}": "name"}}'
        )
    return found


def label_maps(
    sources: dict[str, RowSource],
    column: str,
    named: dict[int, str] | None,
    ignore_value: int | None,
    reduce_labels: bool,
    colours: bool,
    max_pixels: int,
    most_broken: float,
) -> tuple[dict[str, RowSource | None], LabelValues]:
    """Look through all maps that are on this machine: the rows with labels of each split (`None` for none), and the
    classes. What was found is in the log.

    Args:
        sources: rows of `TRAINING`, `EVALUATION`, or both.
        column: of the maps.
        named, ignore_value, reduce_labels, colours: as in `choose_labels`.
        max_pixels, most_broken: the largest maps, and the largest share of maps that may be broken.

    Raises:
        ValueError: naming the argument, if maps cannot be trained on.
    """
    not_counted = LabelValues([], [], ignore_value, reduce_labels, colours).not_counted
    found = {}
    for what, source in sources.items():
        if not is_far(source):
            found[what] = look_through(source, column, not_counted, colours, max_pixels, what)
        elif named is None:
            raise ValueError("labels_file: a remote stream is not read through to find its classes; name them")
        else:
            logger.warning("the %s are streamed from afar, and not looked through before training", what)
    labels = choose_labels(found, named, colours, ignore_value, reduce_labels)
    report(found, labels)
    kept = {what: labelled_rows(sources[what], column, one, what, most_broken) for what, one in found.items()}
    return {**sources, **kept}, labels


def choose_labels(
    found: dict[str, FoundInMaps],
    named: dict[int, str] | None,
    colours: bool = False,
    ignore_value: int | None = None,
    reduce_labels: bool = False,
) -> LabelValues:
    """The classes, from a file of their names or from what was found.

    Args:
        found: in the maps of each split: of `TRAINING`, `EVALUATION`, or both.
        named: names of classes by their values, from `--labels_file`; `None` for all values that occur.
        colours, ignore_value, reduce_labels: see `LabelValues`.

    Raises:
        ValueError: naming the argument and the split, if maps hold what is no class, or only one class.
    """
    if named is None:
        stored = sorted(set().union(*(one.pixels for one in found.values())))
        counted = LabelValues([], [], ignore_value, reduce_labels).not_counted
        values = [value - reduce_labels for value in stored if value not in counted]
        if values and values[0] < 0:
            raise ValueError(
                f"ignore_index: maps hold the value {values[0]}, which can be no class; ignore it or name it"
            )
        _check_noise(found, values)
        labels = LabelValues([f"class {v}" for v in values], values, ignore_value, reduce_labels)
    else:
        labels = LabelValues(list(named.values()), list(named), ignore_value, reduce_labels, colours)
    for what, one in found.items():
        _check_values(what, one, labels)
        _check_classes(what, one, labels)
    return labels


def _check_noise(found: dict[str, FoundInMaps], values: list[int]):
    """Values that nobody named may be none of classes, but of what compression or resizing made of a few."""
    jpegs = sum(one.jpegs for one in found.values())
    if jpegs and len(values) > 2:
        maps = sum(one.maps for one in found.values())
        raise ValueError(
            f"label_column_name: {jpegs:,} of {maps:,} maps are JPEG files, whose compression changes values: there "
            f"are {len(values)}, which are not all classes; {RESTORE}; if they are, name them in --labels_file"
        )
    pixels = sum((one.pixels for one in found.values()), Counter())
    rare = [value for value in values if pixels[value] < RARE * pixels.total()]
    if len(rare) >= MANY and 2 * len(rare) > len(values):
        logger.warning(
            "%d of the %d values that are taken for classes are rare: if the maps were resized with interpolation, or "
            "compressed with loss, these are none; name the classes with --labels_file",
            len(rare),
            len(values),
        )


def _check_values(what: str, found: FoundInMaps, labels: LabelValues):
    """Raises ValueError, if there are values that nobody named."""
    unknown = sorted(found.pixels.keys() - labels.stored.keys() - labels.not_counted)
    if not unknown:
        return
    maps = max(found.in_maps[value] for value in unknown)
    ways = [f"name them in --labels_file, which has {labels.describe()}, or have one ignored with --ignore_index"]
    if found.jpegs:
        ways = [f"{found.jpegs:,} of the {what} are JPEG files, whose compression changes values: {RESTORE}"]
    elif found.palettes:
        ways.append("of images with a palette the indices count, the colours where classes are named by #rrggbb")
    raise ValueError(
        f"labels_file: {what} hold values of no class: {found.shares(unknown, labels.colours)}, in {maps:,} of "
        f"{found.maps:,} maps or more, as in row {found.first[unknown[0]]}; {'; '.join(ways)}"
    )


def _check_classes(what: str, found: FoundInMaps, labels: LabelValues):
    """Raises ValueError, or warns of an evaluation, if there are not two classes to tell apart."""
    occurring = [value for value in labels.stored if found.pixels[value]]
    if len(occurring) > 1 or not found.maps:
        return
    ignored = [value for value in sorted(labels.not_counted) if found.pixels[value]]
    left = "no class" if not occurring else f"one class, {labels.names[labels.stored[occurring[0]]]!r}"
    value = "" if not occurring else f" (value {found.shares(occurring, labels.colours)})"
    words = f"ignored: {found.shares(ignored, labels.colours)}" if ignored else "nothing is ignored"
    hint = "; if that is a class, name it in --labels_file or give --ignore_index none" if ignored else ""
    message = f"{what} hold {left}{value}, and there is nothing to tell it from; {words}{hint}"
    if what == TRAINING:
        raise ValueError(f"labels_file: {message}")
    logger.warning("%s", message)


def report(found: dict[str, FoundInMaps], labels: LabelValues):
    """Say which values are which class, how many pixels do not count, and which classes do not occur."""
    logger.info("%d classes by the values in the maps: %s", len(labels.stored), labels.describe())
    for what, one in found.items():
        total, ignored = one.pixels.total(), sum(one.pixels[value] for value in labels.not_counted)
        values = ", ".join(show_value(value, labels.colours) for value in sorted(labels.not_counted)) or "no value"
        logger.info("%s: %.3g%% of their pixels are ignored (%s)", what, 100 * ignored / max(1, total), values)
        if one.jpegs:
            logger.warning("%s of the %s are JPEG files, whose compression changes values", f"{one.jpegs:,}", what)
        absent = [labels.names[index] for value, index in labels.stored.items() if not one.pixels[value]]
        if absent and one.maps:
            logger.warning("%s: these classes do not occur: %s", what, some(absent, 20))


def labelled_rows(
    source: RowSource, column: str, found: FoundInMaps, what: str, most_broken: float
) -> RowSource | None:
    """The rows with a label; `None` if there are none. What is left out is counted in the log.

    Args:
        source, column: what `found` was found in.
        what: to call its maps.
        most_broken: the largest share of the maps that may be broken.

    Raises:
        ValueError: naming `max_skipped_ratio`, if more are.
    """
    if len(found.broken) > most_broken * len(source):
        row, reason = found.broken[0]
        raise ValueError(
            f"max_skipped_ratio: {len(found.broken):,} of {len(source):,} {what} cannot be read, more than "
            f"{most_broken:.3g} of them; {source.select(column).describe(row)}: {reason}"
        )
    out = found.unlabelled
    if not out:
        return source
    kinds: dict[str, Sequence] = {
        "without a map": found.missing,
        "ignored in all pixels": found.ignored,
        "broken": found.broken,
    }
    logger.warning(
        "%s: %s of %s images are left out (%s), as %s",
        what,
        f"{len(out):,}",
        f"{len(source):,}",
        ", ".join(f"{len(rows):,} {kind}" for kind, rows in kinds.items() if rows),
        source.select(column).describe(min(out)),
    )
    kept = np.setdiff1d(np.arange(len(source)), sorted(out))
    return RowsOf(source, kept) if len(kept) else None
