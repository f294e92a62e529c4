"""What to read from a frozen encoder: the mean of its last map, or mean and deviation of every stage
(`--probe_layers last|all`)?

A CNN and a ViT of half a million parameters, with random weights and pre-trained in memory without labels (solar
cells and Fashion-MNIST, 64 px); k-NN and logistic regression with 10, 50 and 200 labels of each class (5 draws) and
with all, evaluated on the test images. Goes on where it was stopped.

    python benchmarks/images.py
    python benchmarks/probe_layers.py --output benchmarks/results/probe_layers.json
"""

import argparse
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

from benchmarks.few_labels import ENCODERS  # noqa: E402
from benchmarks.images import FOLDER  # noqa: E402
from benchmarks.in_memory import Schedule, load, normalize, pretrain  # noqa: E402
from benchmarks.judging import linear_probes, scores  # noqa: E402
from benchmarks.rates import SETS, SIZE, config_of  # noqa: E402
from modeling_a2mim import A2MIMForPreTraining, A2MIMModel  # noqa: E402
from modeling_a2mim.data.subsets import draw_subset  # noqa: E402
from modeling_a2mim.evaluation.frozen import frozen_metrics, nearest_neighbors  # noqa: E402
from modeling_a2mim.evaluation.summary import paired_difference  # noqa: E402
from modeling_a2mim.models.pooled_features import ALL, layer_features, layer_widths  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


LAYERS = {"last": -1, "all": ALL}
METHODS = ("k-NN", "logistic regression")
STARTS = ("random", "pre-trained")
LABELS, DRAWS = (10, 50, 200, None), 5  # of each class; `None`: all of them, once
NEIGHBORS, TEMPERATURE = 20, 0.07  # the defaults of `--knn`
HEAD = """AUROC on test images (of more than two classes the mean of each against the others) of frozen encoders, by
what is read from them: the mean of the last map, or mean and deviation of every stage; mean over 5 draws of labels,
and half a 95% interval of the difference. `make probe-layers` makes this table; all figures are in
[probe_layers.json](probe_layers.json)."""


@torch.no_grad()
def features_of(core: A2MIMModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Features of uint8 images by the name of the layer."""
    core.eval()
    parts = [layer_features(core, normalize(part, core.config), list(LAYERS.values())) for part in images.split(256)]
    return {name: torch.cat(found) for name, found in zip(LAYERS, zip(*parts, strict=True), strict=True)}


def measure(core: A2MIMModel, data: tuple, labels_of: tuple[int | None, ...], draws: int) -> dict[str, list[float]]:
    """AUROC for each draw, by "method, layer, labels of each class"."""
    (images, labels), (test, known) = data
    train, other = features_of(core, images), features_of(core, test)
    found = {}
    for count in labels_of:
        subsets = [list(range(len(labels)))]
        if count is not None:
            subsets = [draw_subset(labels.tolist(), per_class=count, seed=seed) for seed in range(draws)]
        for name, layer in LAYERS.items():
            x, y = train[name].numpy(), other[name].numpy()
            widths = layer_widths(core, layer) if layer == ALL else None
            near = []
            for rows in subsets:
                nearest = nearest_neighbors((x[rows], labels[rows]), NEIGHBORS, TEMPERATURE, widths)
                near.append(frozen_metrics(nearest, (y, known), len(set(labels)))["auroc"])
            logits = linear_probes(train[name], labels, other[name], subsets)
            for method, values in zip(METHODS, (near, [scores(each, known)["auroc"] for each in logits]), strict=True):
                found[f"{method}, {name}, {count or 'all'}"] = [round(value, 4) for value in values]
    return found


def table(record: dict) -> str:
    head = ["images", "encoder", "weights", "labels of each class"]
    head += [f"{method}, {what}" for method in METHODS for what in (*LAYERS, "difference")]
    rows = []
    for run in record["runs"].values():
        for count in dict.fromkeys(name.split(", ")[-1] for name in run["auroc"]):
            cells = []
            for method in METHODS:
                last, every = (run["auroc"][f"{method}, {name}, {count}"] for name in LAYERS)
                cells += [f"{np.mean(last):.3f}", f"{np.mean(every):.3f}", str(paired_difference(last, every))]
            rows.append([run["set"], run["encoder"], run["weights"], count, *cells])
    return markdown_table(head, rows)


def mean_differences(record: dict) -> dict[str, str]:
    """How much better every stage is than the last map by each method, over all that was measured."""
    found = {}
    for method in METHODS:
        pairs = [
            [np.mean(values[f"{method}, {name}, {count or 'all'}"]) for name in LAYERS]
            for values in (run["auroc"] for run in record["runs"].values())
            for count in LABELS
            if f"{method}, last, {count or 'all'}" in values
        ]
        found[method] = str(paired_difference(*zip(*pairs, strict=True)))
    return found


def read(path: Path) -> dict:
    """The results so far."""
    record = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    record["command"] = "python benchmarks/probe_layers.py --output benchmarks/results/probe_layers.json"
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, {platform.system()}"
    record["versions"] = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="to run")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=ENCODERS, help="to run")
    parser.add_argument("--tiny", action="store_true", help="only see that it runs: few steps, images and labels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = read(args.output)
    for name, encoder in [(s, e) for s in args.sets for e in args.encoders]:
        missing = [start for start in STARTS if f"{name}, {encoder}, {start}" not in record["runs"]]
        if not missing:
            continue
        decoder, steps, rate = ENCODERS[encoder]
        config = config_of({"encoder": encoder, "decoder": decoder})
        data = [load(FOLDER / f"{name}.npz", split, SIZE) for split in ("train", "test")]
        if args.tiny:
            steps, data = 3, [(images[:300], labels[:300]) for images, labels in data]
        for start in tqdm(missing, desc=f"{name}, {encoder}", unit=" runs"):
            torch.manual_seed(0)
            model = A2MIMForPreTraining(config)
            if start == "pre-trained":
                model, _ = pretrain(config, data[0][0], data[1][0][:64], Schedule(steps, 64, rate))
            found = measure(model.a2mim, data, (3, None) if args.tiny else LABELS, 2 if args.tiny else DRAWS)
            run = {"set": name, "encoder": encoder, "weights": start, "auroc": found}
            record["runs"][f"{name}, {encoder}, {start}"] = run
            record["mean difference"] = mean_differences(record)
            args.output.write_text(json.dumps(record, indent=1) + "\n")
            args.output.with_suffix(".md").write_text(f"{HEAD}\n\n{table(record)}\n")


if __name__ == "__main__":
    main()
