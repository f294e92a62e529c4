"""Metrics of single classes (precision, recall, average precision): their names, a table of them, and the log."""

import logging
from collections.abc import Sequence


logger = logging.getLogger("a2mim")

BY_CLASS = ("precision", "recall", "average_precision")  # followed by _ and the name of the class
MOST_LISTED = 20  # classes in the log at the end


def class_figure(name: str) -> tuple[str, str] | None:
    """The figure and the class of `precision_NAME`, `eval_recall_NAME`, ...; `None` for a figure of all classes."""
    name = name.removeprefix("eval_")
    return next(((kind, name[len(kind) + 1 :]) for kind in BY_CLASS if name.startswith(f"{kind}_")), None)


def class_rows(metrics: dict[str, float], counts: dict[str, int]) -> list[dict[str, str]]:
    """A row of a table for each class: its images, and its figures, if there are any of any class.

    Args:
        metrics: of an evaluation.
        counts: images of each class that it was made on.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in counts}
    for name, value in metrics.items():
        kind, of = class_figure(name) or (None, None)
        if of in found:
            found[of][kind] = f"{value:.4f}"
    if not any(found.values()):
        return []
    return [
        {"class": name, "images": f"{counts[name]:,}"}
        | {kind.replace("_", " "): row.get(kind, "-") for kind in BY_CLASS}
        for name, row in found.items()
    ]


def log_figures(figures: dict[str, float], names: Sequence[str], counts: Sequence[int] | None, images: int):
    """Log figures of an evaluation, and those of up to `MOST_LISTED` classes.

    Args:
        names, counts: of the classes, and how many images there are of each, if that is known.
        images: that were evaluated on.
    """
    shown = ", ".join(f"{name.replace('_', ' ')} {v:.4f}" for name, v in figures.items() if not class_figure(name))
    logger.info("%s on %d images", shown, images)
    there = [(name, count) for name, count in zip(names, counts or (), strict=False) if count]
    for name, count in there[:MOST_LISTED]:
        found = [(figure, figures.get(f"{figure}_{name}")) for figure in BY_CLASS]
        shown = ", ".join(f"{figure.replace('_', ' ')} {value:.4f}" for figure, value in found if value is not None)
        logger.info("class %s: %s on %d images", name, shown, count)
    if len(there) > MOST_LISTED:
        logger.info("%d further classes: see eval_results.json", len(there) - MOST_LISTED)
