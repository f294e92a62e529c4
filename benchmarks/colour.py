"""Pre-training on few images in colour: the training images of tuxpaint's stamps themselves, without their labels,
tiles of ten photographs that have nothing to do with them, or both. Evaluated on the classes of the stamps; encoder,
schedule and evaluation are those of the base of `factors.py`.

    python benchmarks/images.py --sets stamps photographs
    python benchmarks/colour.py --output benchmarks/results/colour.json [--seeds 0 1]

Goes on where it was stopped; several may write one file.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np
import torch


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.factors import BATCH, DRAWS, SIZE, config_of, option  # noqa: E402
from benchmarks.in_memory import Schedule, features, load  # noqa: E402
from benchmarks.methods import FOLDER, add, check_images, left_of, read  # noqa: E402
from benchmarks.methods_run import encoder_with, learn, probe_rows, rounded, subsets_of, tuned_rows  # noqa: E402
from benchmarks.methods_table import difference, values  # noqa: E402
from benchmarks.rivals import A2MIM  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


SCRATCH = "random weights"
STARTS = {SCRATCH: (), "stamps": ("stamps",), "photographs": ("photographs",), "both": ("stamps", "photographs")}
SETTING = option(num_channels=3)
TUNED = {"5": (5, 20, 60), "15": (15, 60, 100)}  # labels of each class, images in a batch, steps
COLUMNS = [
    *(("fine-tuning", labels) for labels in TUNED),
    *((f"probe, {layer}", labels) for layer in ("every stage", "last map") for labels in ("5", "15", "all")),
]
METRIC = "balanced_accuracy"  # as there are 6 times as many symbols as houses
HEAD = """Balanced accuracy on 179 stamps of 8 classes by what the encoder was pre-trained on, with labels of each
class; mean over draws of labels and seeds. In brackets the difference from random weights, with half a 95% interval,
bold where that leaves 0 out. `{command} --seeds {seeds}` makes this table."""


def run(args, settings: dict, start: str, seed: int):
    """Pre-train and evaluate."""
    begin, config = time.process_time(), config_of(SETTING)
    data = [load(FOLDER / "stamps.npz", split, SIZE) for split in ("train", "test")]
    (images, labels), (test, known) = data
    weights, found = None, {}
    if STARTS[start]:
        parts = [load(FOLDER / f"{name}.npz", "train", SIZE)[0] for name in STARTS[start]]
        unlabelled = torch.cat(parts)
        make = functools.partial(A2MIM, crops=SETTING.crop)
        schedule = Schedule(SETTING.steps, BATCH, SETTING.rate, seed)
        weights, found = learn(make, config, unlabelled, np.zeros(len(unlabelled), np.int64), schedule)
        found["images"] = len(unlabelled)
    core = encoder_with(config, weights, seed)
    subsets = subsets_of(labels, {"5": 5, "15": 15, "all": None}, DRAWS)
    rows = probe_rows(features(core, images), labels, features(core, test), known, subsets)
    for name, (count, batch_size, steps) in TUNED.items():
        schedule = Schedule(steps, batch_size, SETTING.tuning_rate, seed)
        rows += tuned_rows(config, weights, data, subsets_of(labels, {name: count}, DRAWS), schedule)
    result = {"start": start, "seed": seed, "pre-training": found, "rows": rounded(rows)}
    result["cpu_seconds"] = round(time.process_time() - begin)
    add(args.output, settings, "runs", f"{start}, {seed}", result)


def table(record: dict) -> str:
    runs, rows = list(record["runs"].values()), []
    others = [run for run in runs if run["start"] == SCRATCH]
    for start in STARTS:
        own = [run for run in runs if run["start"] == start]
        if not own:
            continue
        cells = [start, own[0]["pre-training"].get("images", "")]
        for column in COLUMNS:
            found, other = values(own, column, METRIC), values(others, column, METRIC)
            text = f"{np.mean(list(found.values())):.3f}"
            cells.append(text if start == SCRATCH else f"{text} ({difference(other, found)})")
        rows.append(cells)
    return markdown_table(["pre-trained on", "images", *(f"{by}, {labels}" for by, labels in COLUMNS)], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="run what has all of these in its name")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of pre-training (default: 0 1)")
    args = parser.parse_args()
    settings = {"size": SIZE, "batch_size": BATCH, "pretraining_steps": SETTING.steps, "device": "cpu"}
    check_images({"stamps", "photographs"})
    torch.set_num_threads(1)
    plan = [(start, seed) for seed in args.seeds for start in STARTS]
    for start, seed in left_of(plan, args.only, read(args.output, settings)["runs"]):
        run(args, settings, start, seed)
    record = read(args.output, settings)
    seeds = " ".join(map(str, sorted({run["seed"] for run in record["runs"].values()})))
    head = HEAD.format(command=record["command"], seeds=seeds)
    args.output.with_suffix(".md").write_text(f"{head}\n\n{table(record)}\n")


if __name__ == "__main__":
    main()
