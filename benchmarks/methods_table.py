"""Tables and figure of `methods.py`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.rivals import METHODS
from modeling_a2mim.evaluation.summary import mean_and_interval, paired_difference
from modeling_a2mim.utils.tables import markdown_table


SCRATCH, A2MIM = "scratch", "A2MIM"
TUNED, NEIGHBORS, PROBE, LAST = "fine-tuning", "k-NN", "probe, every stage", "probe, last map"
COLUMNS = [
    *((TUNED, labels) for labels in ("10", "50", "all")),
    *((PROBE, labels) for labels in ("10", "50", "all")),
    (LAST, "50"),
    (LAST, "all"),
    (NEIGHBORS, "all"),
]
COMPARED = [*COLUMNS[:5], (NEIGHBORS, "10"), (NEIGHBORS, "50")]
METRICS = {"auroc": "AUROC", "average_precision": "average precision", "accuracy": "accuracy"}
ORDER = (SCRATCH, *METHODS)
HEAD = """Figures of the test images by how the encoder was pre-trained, by labels of each class; mean over draws of
labels and seeds, with half a 95% interval where there are several. "supervised" has seen all labels in pre-training.
{cost}The loss is each method's own, the mean of the first and of the last 20 steps. BEiT is left out: its tokenizer is
in no package. {steps} steps of {batch_size} images; {seeds}."""
COST = "CPU seconds are those of pre-training, the choice of the rate not counted. "
FINE_TUNED = [(TUNED, labels) for labels in ("10", "50", "all")]
FROZEN = [*((PROBE, labels) for labels in ("10", "50", "all")), (NEIGHBORS, "50")]


def panels(record: dict) -> Iterator[tuple[str, str, dict[str, list[dict]]]]:
    """Set, encoder, and the runs of each method."""
    groups: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for run in record["runs"].values():
        groups.setdefault((run["set"], run["encoder"]), {}).setdefault(run["method"], []).append(run)
    for (name, encoder), methods in sorted(groups.items()):
        yield name, encoder, {method: methods[method] for method in sorted(methods, key=ORDER.index)}


def values(runs: list[dict], column: tuple[str, str], metric: str) -> dict[tuple[int, int], float]:
    """{(seed, draw): figure}"""
    return {
        (run["seed"], row["draw"]): row[metric]
        for run in runs
        for row in run["rows"]
        if (row["by"], row["labels"]) == column
    }


def difference(one: dict, other: dict) -> str:
    """`other - one` of the seeds and draws that both have; bold where the interval leaves 0 out."""
    common = sorted(one.keys() & other.keys())
    if not common:
        return ""
    mean, half = paired_difference([one[key] for key in common], [other[key] for key in common])
    text = f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")
    return f"**{text}**" if half is not None and abs(mean) > half else text


def metrics_of(name: str) -> list[str]:
    """The balanced Fashion-MNIST needs accuracy alone."""
    return list(METRICS) if name == "solar_cells" else ["accuracy"]


def tables(record: dict) -> str:
    """All tables in Markdown: for each set fine-tuning and frozen features, then all figures of each encoder."""
    timed = record["settings"]["device"] == "cpu"  # processes that share a GPU wait for each other
    parts = [HEAD.format(cost=COST * timed, seeds=seeds_of(record), **record["settings"])]
    for name in sorted({run["set"] for run in record["runs"].values()}):
        own = [(encoder, methods) for of, encoder, methods in panels(record) if of == name]
        for columns in (FINE_TUNED, FROZEN):
            parts += [f"{name}, random weights and the difference from them:", overview(name, own, columns)]
    for name, encoder, methods in panels(record):
        for metric in metrics_of(name):
            head = [f"{METRICS[metric]}, pre-trained by", *["CPU s"] * timed, "loss"]
            head += [f"{by}, {labels}" for by, labels in COLUMNS]
            lines = []
            for method, runs in methods.items():
                trained = [run["pre-training"] for run in runs if "pre-training" in run]
                seconds = f"{np.mean([t['cpu_seconds'] for t in trained]):.0f}" if trained else ""
                losses = [
                    f"{np.mean([t[key] for t in trained]):.3g}" for key in ("first_loss", "last_loss") if trained
                ]
                cells = [list(values(runs, column, metric).values()) for column in COLUMNS]
                cells = [str(mean_and_interval(found)) if found else "" for found in cells]
                lines.append([method, *[seconds] * timed, " to ".join(losses), *cells])
            parts += [f"{name}, {encoder}:", markdown_table(head, lines)]
        parts += differences(name, encoder, methods, metrics_of(name)[0])
    return "\n\n".join(parts)


def seeds_of(record: dict) -> str:
    """Which sets and encoders have how many seeds of all methods, and of some."""
    parts = []
    for name, encoder, methods in panels(record):
        counts = [len({run["seed"] for run in runs}) for runs in methods.values()]
        least, most = min(counts), max(counts)
        parts.append(f"{name}, {encoder}: {least}" + (f" ({most} of some methods)" if most > least else ""))
    return "seeds of pre-training: " + "; ".join(parts)


def overview(name: str, encoders: list[tuple[str, dict]], columns: list[tuple[str, str]]) -> str:
    """Each method beside random weights, for several encoders."""
    metric, rows = metrics_of(name)[0], []
    head = [f"{METRICS[metric]}, pre-trained by"]
    head += [f"{encoder}, {by.split(',')[0]}, {labels}" for encoder, _ in encoders for by, labels in columns]
    for method in ORDER:
        cells = []
        for _, methods in encoders:
            for column in columns:
                found, base = (values(methods.get(one, []), column, metric) for one in (method, SCRATCH))
                if method == SCRATCH:
                    cells.append(f"{np.mean(list(found.values())):.3f}" if found else "")
                else:
                    cells.append(difference(base, found))
        if any(cells):
            rows.append([method, *cells])
    return markdown_table(head, rows)


def differences(name: str, encoder: str, methods: dict[str, list[dict]], metric: str) -> list[str]:
    """Tables of the differences from scratch and from A2MIM, and which methods k-NN says have learned nothing."""
    parts = []
    for base in (SCRATCH, A2MIM):
        others = [method for method in methods if method != base]
        if base in methods and others:
            head = [f"{METRICS[metric]} minus {base}", *(f"{by}, {labels}" for by, labels in COMPARED)]
            lines = []
            for method in others:
                pairs = [[values(methods[m], column, metric) for m in (base, method)] for column in COMPARED]
                lines.append([method, *(difference(*pair) for pair in pairs)])
            parts += [f"{name}, {encoder}, paired differences:", markdown_table(head, lines)]
    if SCRATCH in methods:
        mean = {method: neighbors(runs, metric) for method, runs in methods.items()}
        if idle := [method for method in mean if method != SCRATCH and mean[method] <= mean[SCRATCH]]:
            parts.append(f"k-NN ({METRICS[metric]}, all labels) is not above random weights: {', '.join(idle)}.")
    return parts


def neighbors(runs: list[dict], metric: str) -> float:
    return float(np.mean(list(values(runs, (NEIGHBORS, "all"), metric).values())))


def plot(record: dict, path: Path):
    """Fine-tuning by method, a row for each set and encoder, a panel for each number of labels."""
    rows = list(panels(record))
    figure = Figure(figsize=(11, 3.2 * len(rows)), layout="constrained")
    for number, (name, encoder, methods) in enumerate(rows):
        metric = metrics_of(name)[0]
        for place, column in enumerate(COLUMNS[:3]):
            axes = figure.add_subplot(len(rows), 3, 3 * number + place + 1)
            found = [mean_and_interval(list(values(runs, column, metric).values())) for runs in methods.values()]
            colors = ["C1" if method == A2MIM else "C0" for method in methods]
            for height, (interval, color) in enumerate(zip(found, colors, strict=True)):
                axes.errorbar(interval.mean, height, xerr=interval.half_width or 0, fmt="o", capsize=3, color=color)
            axes.axvline(found[list(methods).index(SCRATCH)].mean if SCRATCH in methods else 0, color="0.7", zorder=0)
            axes.set_yticks(range(len(methods)), list(methods) if place == 0 else [""] * len(methods))
            axes.set_ylabel(f"{name}\n{encoder}" if place == 0 else "", fontsize=8)
            axes.invert_yaxis()
            axes.set_title(f"{column[1]} labels of each class", fontsize=8)
            axes.set_xlabel(f"{METRICS[metric]}, fine-tuned", fontsize=8)
            axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=90)
