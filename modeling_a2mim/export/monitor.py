"""What was measured of an encoder while it learned (`training.monitor`), taken from the log of its run for the record
and the card."""

import math

from ..evaluation.gauge import MORE_IS_BETTER


MONITOR = "monitor_"  # how the names of its figures begin in a log
KINDS = ("first", "best", "last")

Point = tuple[int, float]  # a step, and a figure at it


def monitor_log(log: list[dict]) -> list[dict]:
    """The entries of the gauge in a log: dicts of `step` and figures, by the names of `gauge.MORE_IS_BETTER`."""
    found = []
    for entry in log:
        figures = {name: entry[f"{MONITOR}{name}"] for name in MORE_IS_BETTER if f"{MONITOR}{name}" in entry}
        if figures:
            found.append({"step": entry["step"], **figures})
    return found


def monitor_summary(log: list[dict]) -> dict[str, tuple[Point, Point, Point]]:
    """The first, best and last value of each figure in a log; the best is the first of several that are as good.
    Values that are no numbers are left out."""
    entries, found = monitor_log(log), {}
    for name, more in MORE_IS_BETTER.items():
        points = [(e["step"], e[name]) for e in entries if e.get(name) is not None and math.isfinite(e[name])]
        if points:
            best = (max if more else min)(points, key=lambda point: point[1])
            found[name] = points[0], best, points[-1]
    return found


def monitor_record(log: list[dict], images, data: str | None, layers: str = "last") -> dict:
    """What the training record says of the gauge.

    Args:
        log: of the run.
        images: a `MonitorImages`.
        data: what they are, in words.
        layers: what was measured, "last" or "all" (`models.pooled_features`).
    """
    summary = {
        name: {kind: {"step": step, "value": value} for kind, (step, value) in zip(KINDS, points, strict=True)}
        for name, points in monitor_summary(log).items()
    }
    counts = {"images": len(images), "of": images.total, "classes": images.classes}
    return {"data": data, "probe_layers": layers, **counts, "summary": summary, "log": monitor_log(log)}
