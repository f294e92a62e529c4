"""Whether each method of `rivals.py` learns at all: its own loss at the start and at the end of a short run on
Fashion-MNIST, and k-NN on frozen features (the last map, and every stage) beside the random weights that it began
with. Encoders, batches and the size of the images are those of `methods.py`; one rate for all.

    python benchmarks/images.py --sets fashion_mnist
    python benchmarks/methods_check.py --output benchmarks/results/methods_check.json

Goes on where it was stopped.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np
import torch


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.in_memory import Schedule, features, moved  # noqa: E402
from benchmarks.methods import (  # noqa: E402
    BATCH,
    ENCODERS,
    SIZE,
    add,
    check_images,
    config_of,
    images_of,
    left_of,
    plan,
    read,
)
from benchmarks.methods_run import SCRATCH, encoder_with, learn  # noqa: E402
from benchmarks.workers import run_all  # noqa: E402
from modeling_a2mim.evaluation.frozen import frozen_metrics, nearest_neighbors  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


SET, RATE = "fashion_mnist", 1e-3
READ = ("last map", "every stage")
HEAD = """Each method after {steps} steps of 64 images of Fashion-MNIST (10,000 images) at a rate of 1e-3: its own
loss, the mean of the first and of the last 20 steps, and the accuracy of k-NN on 2,000 test images with the labels of
all training images, on frozen features; in brackets the difference from the random weights that it began with.
`{command}` makes this table."""


def run(args, settings: dict, what: tuple[str, str]):
    """Pre-train and find nearest neighbors."""
    encoder, method = what
    config, ((images, labels), (test, known)) = config_of(encoder), images_of(SET, args.device)
    weights, found = None, {}
    if method != SCRATCH:
        weights, found = learn(method, config, images, labels, Schedule(args.steps, BATCH, RATE, graph=images.is_cuda))
    core = moved(encoder_with(config, weights, 0), images.device)
    own, others = features(core, images), features(core, test)
    for kind in READ:
        neighbors = nearest_neighbors((own[kind].cpu().numpy(), labels))
        part = frozen_metrics(neighbors, (others[kind].cpu().numpy(), known), len(np.unique(labels)))
        found[f"k-NN, {kind}"] = round(part["accuracy"], 4)
    add(args.output, settings, "runs", ", ".join(what), {"encoder": encoder, "method": method, **found})


def report(args, settings: dict):
    record = read(args.output, settings)
    rows = []
    for encoder, method in of_plan():
        found = record["runs"].get(f"{encoder}, {method}")
        before = record["runs"].get(f"{encoder}, {SCRATCH}")
        if found is None or before is None:
            continue
        trained = method != SCRATCH
        loss = f"{found['first_loss']:.4f} to {found['last_loss']:.4f}" if trained else ""
        kinds = [f"k-NN, {kind}" for kind in READ]
        cells = [f"{found[k]:.3f}" + (f" ({found[k] - before[k]:+.3f})" if trained else "") for k in kinds]
        rows.append([encoder, method, f"{found['cpu_seconds']:.0f}" if trained else "", loss, *cells])
    table = markdown_table(["encoder", "method", "CPU s", "own loss", *(f"k-NN, {kind}" for kind in READ)], rows)
    head = HEAD.format(steps=args.steps, command=record.get("command", ""))
    args.output.with_suffix(".md").write_text(f"{head}\n\n{table}\n")


def of_plan() -> list[tuple[str, str]]:
    """Encoder and method."""
    return list(dict.fromkeys((encoder, method) for _, encoder, method, _ in plan([0])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="run what has all of these in its name")
    parser.add_argument("--steps", type=int, default=300, help="of pre-training (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args()
    settings = {"set": SET, "size": SIZE, "batch_size": BATCH, "learning_rate": RATE, "steps": args.steps}
    settings |= {"encoders": list(ENCODERS), "device": args.device}
    left = left_of(of_plan(), args.only, read(args.output, settings)["runs"])
    check_images([SET] if left else [])
    torch.set_num_threads(1)
    run_all(functools.partial(run, args, settings), left, args.workers, functools.partial(report, args, settings))
    report(args, settings)


if __name__ == "__main__":
    main()
