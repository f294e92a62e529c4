"""How to fine-tune with few labels: rate, crops and steps for an encoder pre-trained on the same images, and for
random weights; the measurements behind the defaults of run_finetune.py.

Encoders of about half a million parameters, pre-trained in memory without labels (solar cells and Fashion-MNIST, 64
px), then fine-tuned on 50 labels of each class and on all; AUROC on the test images, the mean of two draws of labels.
Goes on where it was stopped.

    python benchmarks/images.py
    python benchmarks/few_labels.py --output benchmarks/results/few_labels.json
"""

import argparse
import itertools
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.images import FOLDER  # noqa: E402
from benchmarks.in_memory import Schedule, fine_tune, load, predict, pretrain  # noqa: E402
from benchmarks.judging import scores  # noqa: E402
from benchmarks.rates import SETS, SIZE, config_of  # noqa: E402
from modeling_a2mim.data.subsets import draw_subset  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


# Encoder, decoder, steps and rate of its pre-training.
ENCODERS = {"convnext 0.4M": ("multiscale", 500, 2e-3), "vit 0.5M": ("linear", 1000, 2e-3)}
DRAWS = 2


def plan() -> list[dict]:
    runs = []

    def add(sets, encoders, labels, rates, crops, steps, batches=(64,), starts=("pre-trained",)):
        for name, encoder, count, start in itertools.product(sets, encoders, labels, starts):
            for batch, rate, crop, length in itertools.product(batches, rates, crops, steps):
                run = {"set": name, "encoder": encoder, "start": start, "labels": count, "batch_size": batch}
                runs.append(run | {"learning_rate": rate, "smallest_crop": crop, "steps": length})

    solar, cnn, both = SETS[:1], list(ENCODERS)[:1], ("pre-trained", "random")
    add(solar, cnn, ("50",), (1e-4, 5e-4, 2e-3), (0.35, 0.8), (100,))
    add(solar, cnn, ("50",), (5e-4, 2e-3), (0.35, 0.8), (25, 400))
    add(solar, cnn, ("50",), (5e-4, 2e-3), (0.8,), (100, 400), starts=both[1:])
    add(solar, cnn, ("50",), (5e-4, 2e-3), (0.8,), (100, 400), batches=(16,))
    add(solar, ENCODERS, ("50",), (1e-4, 5e-4, 2e-3), (0.35, 0.8), (100,), starts=both)
    add(solar, ENCODERS, ("all",), (5e-4, 2e-3), (0.35, 0.8), (400,), starts=both)
    return list({key(run): run for run in runs}.values())


def key(run: dict) -> str:
    return ", ".join(map(str, run.values()))


def table(record: dict) -> str:
    """AUROC (mean over the draws) from a pre-trained encoder / from random weights."""
    rows: dict[tuple, dict] = {}
    names = ("set", "encoder", "labels", "batch_size", "steps", "smallest_crop", "learning_rate")
    for run in record["runs"].values():
        rows.setdefault(tuple(run[n] for n in names), {})[run["start"]] = np.mean(run["auroc"])
    head = [
        "images",
        "encoder",
        "labels of each class",
        "batch",
        "steps",
        "smallest crop",
        "rate",
        "pre-trained",
        "random",
    ]
    lines = []
    for row, found in sorted(rows.items()):
        cells = [f"{found[start]:.3f}" if start in found else "" for start in ("pre-trained", "random")]
        lines.append([*row, *cells])
    return markdown_table(head, lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(args.output.read_text()) if args.output.exists() else {"runs": {}}
    record["command"] = "python benchmarks/few_labels.py --output benchmarks/results/few_labels.json"
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, {platform.system()}"
    record["versions"] = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
    data, weights = {}, {}
    for run in tqdm(plan(), unit=" runs"):
        if key(run) in record["runs"]:
            continue
        name, encoder = run["set"], run["encoder"]
        decoder, steps, rate = ENCODERS[encoder]
        config = config_of({"encoder": encoder, "decoder": decoder})
        if name not in data:
            data[name] = [load(FOLDER / f"{name}.npz", split, SIZE) for split in ("train", "test")]
        (images, labels), (test, known) = data[name]
        if run["start"] == "pre-trained" and (name, encoder) not in weights:
            model, _ = pretrain(config, images, test[:64], Schedule(steps, 64, rate))
            weights[name, encoder] = model.a2mim.encoder.state_dict()
        start = weights[name, encoder] if run["start"] == "pre-trained" else None
        run = {**run, "auroc": [], "accuracy": []}
        for seed in range(DRAWS):
            rows = range(len(labels))
            if run["labels"] != "all":
                rows = draw_subset(labels.tolist(), per_class=int(run["labels"]), seed=seed)
            chosen = torch.tensor(list(rows))
            schedule = Schedule(run["steps"], run["batch_size"], run["learning_rate"], seed)
            schedule.crop_scale = (run["smallest_crop"], 1.0)
            model, _ = fine_tune(
                config, start, images[chosen], torch.from_numpy(labels)[chosen], len(set(labels)), schedule
            )
            found = scores(predict(model, test), known)
            for score in ("auroc", "accuracy"):
                run[score].append(round(found[score], 4))
        record["runs"][key({k: v for k, v in run.items() if k not in ("auroc", "accuracy")})] = run
        tqdm.write(f"{key(run)}")
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(f"{HEAD}\n\n{table(record)}\n")


HEAD = """AUROC on test images after fine-tuning, mean of two draws of labels (of more than two classes the mean of
each against the others), from an encoder pre-trained on the same images and from random weights. `make rates` makes
this table; all figures are in [few_labels.json](few_labels.json)."""


if __name__ == "__main__":
    main()
