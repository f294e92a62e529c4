"""Figures of single classes among the metrics of a classifier: how they are called, and a table of them."""

BY_CLASS = ("precision", "recall", "average_precision")  # followed by _ and the name of the class


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
    found = {name: {} for name in counts}
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
