"""Does it pay to continue from the weights that one has? An encoder that learned Fashion-MNIST with labels stands for
them; without labels it continues on photographs of solar cells, at once or with a frozen first phase, with and without
layer-wise decay, at three rates; against the same encoder as it is, and against random weights with and without
pre-training. All images are in memory, 64 px.

Each encoder is evaluated on the test images of the solar cells (AUROC): logistic regression on frozen features, mean
and standard deviation of every stage, with 50 labels of each class (5 draws) and with all; and fine-tuned with 50
labels of each class. Goes on where it was stopped.

    python benchmarks/images.py
    python benchmarks/adapt.py --output benchmarks/results/adapt.json
"""

import argparse
import copy
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
from benchmarks.in_memory import Schedule, features, fine_tune, load, predict, pretrain  # noqa: E402
from benchmarks.judging import linear_probes, scores  # noqa: E402
from benchmarks.rates import CELL, ENCODERS, SIZE  # noqa: E402
from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining  # noqa: E402
from modeling_a2mim.data.subsets import draw_subset  # noqa: E402
from modeling_a2mim.evaluation.summary import mean_and_interval  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


DECODERS = {"convnext 0.4M": "multiscale", "vit 0.5M": "linear"}
FIRST, CONTINUED, TUNED = 1500, 400, 100  # steps of 64 images
FROZEN = 0.1  # share of the steps
DECAY = 0.75
LABELS, DRAWS = 50, 5
SEEDS = (0, 1, 2)  # of how it continues and is fine-tuned; what it starts from is the same
# Name: from Fashion-MNIST or from random weights, rate (None: as it is), share of frozen steps, layer-wise decay.
ARMS = {
    "random": ("random", None, 0, None),
    "random, 1e-3": ("random", 1e-3, 0, None),
    "as it is": ("labels", None, 0, None),
    "1e-3": ("labels", 1e-3, 0, None),
    "1e-3, frozen first": ("labels", 1e-3, FROZEN, None),
    "1e-3, frozen first, decay": ("labels", 1e-3, FROZEN, DECAY),
    "3e-4": ("labels", 3e-4, 0, None),
    "3e-4, frozen first": ("labels", 3e-4, FROZEN, None),
    "3e-4, frozen first, decay": ("labels", 3e-4, FROZEN, DECAY),
    "1e-4, frozen first": ("labels", 1e-4, FROZEN, None),
}
HEAD = """AUROC on test images of solar cells of encoders that learned Fashion-MNIST with labels and continued on solar
cells without, by how they continued; mean over seeds with half a 95% interval. `python benchmarks/adapt.py --output
benchmarks/results/adapt.json` makes this table."""


def config_of(encoder: str) -> A2MIMConfig:
    architecture, model_args = ENCODERS[encoder]
    shape = {"image_size": SIZE, "mask_patch_size": CELL, "num_channels": 1, "decoder": DECODERS[encoder]}
    return A2MIMConfig.for_architecture(architecture, model_args=model_args, **shape)


def measure(config: A2MIMConfig, weights: dict, data: tuple, seed: int) -> dict[str, float]:
    """AUROC of an encoder, frozen and fine-tuned."""
    (images, labels), (test, known) = data
    core = A2MIMForPreTraining(config).a2mim
    core.encoder.load_state_dict(weights)
    train, other = (features(core, part)["every stage"] for part in (images, test))
    few = [draw_subset(labels.tolist(), per_class=LABELS, seed=draw) for draw in range(DRAWS)]
    logits = linear_probes(train, labels, other, [*few, list(range(len(labels)))])
    found = [scores(part, known)["auroc"] for part in logits]
    chosen = torch.tensor(draw_subset(labels.tolist(), per_class=LABELS, seed=seed))
    schedule = Schedule(TUNED, 64, 5e-4, seed)
    tuned, _ = fine_tune(config, weights, images[chosen], torch.from_numpy(labels)[chosen], 2, schedule)
    return {
        "frozen, 50 labels": round(float(np.mean(found[:-1])), 4),
        "frozen, all labels": round(found[-1], 4),
        "fine-tuned, 50 labels": round(scores(predict(tuned, test), known)["auroc"], 4),
    }


def table(record: dict) -> str:
    names = ["frozen, 50 labels", "frozen, all labels", "fine-tuned, 50 labels", "masked PSNR"]
    rows = []
    for encoder in DECODERS:
        for arm in ARMS:
            runs = [run for run in record["runs"].values() if (run["encoder"], run["arm"]) == (encoder, arm)]
            if runs:
                values = [[run[name] for run in runs if run[name] is not None] for name in names]
                cells = ["" if not value else str(mean_and_interval(value)) for value in values[:-1]]
                cells.append(f"{np.mean(values[-1]):.1f} dB" if values[-1] else "")
                rows.append([encoder, arm, len(runs), *cells])
    return markdown_table(["encoder", "weights and how they continue", "seeds", *names], rows)


def read(path: Path) -> dict:
    """The results so far."""
    record = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    record["command"] = "python benchmarks/adapt.py --output benchmarks/results/adapt.json"
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, {platform.system()}"
    record["versions"] = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", default=list(DECODERS), choices=DECODERS, help="to run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = [load(FOLDER / "solar_cells.npz", split, SIZE) for split in ("train", "test")]
    first: dict[tuple[str, str], dict] = {}
    for seed, encoder, arm in tqdm([(s, e, a) for s in SEEDS for e in args.encoders for a in ARMS], unit=" runs"):
        key = f"{encoder}, {arm}, {seed}"
        if key in read(args.output)["runs"]:
            continue
        (start, rate, frozen, decay), config = ARMS[arm], config_of(encoder)
        if (encoder, start) not in first:
            torch.manual_seed(0)
            weights = A2MIMForPreTraining(config).a2mim.encoder.state_dict()
            if start == "labels":
                images, labels = load(FOLDER / "fashion_mnist.npz", "train", SIZE)
                schedule = Schedule(FIRST, 64, 1e-3)
                model, _ = fine_tune(config, weights, images, torch.from_numpy(labels), 10, schedule)
                weights = {name: model.a2mim.encoder.state_dict()[name] for name in weights}
            first[encoder, start] = copy.deepcopy(weights)
        weights, psnr = first[encoder, start], None
        if rate is not None:
            schedule = Schedule(CONTINUED, 64, rate, seed, frozen=round(frozen * CONTINUED), layer_decay=decay)
            model, found = pretrain(config, data[0][0], data[1][0][:128], schedule, weights)
            weights, psnr = model.a2mim.encoder.state_dict(), found["points"][-1]["masked_psnr"]
        run = {
            "encoder": encoder,
            "arm": arm,
            "seed": seed,
            "masked PSNR": psnr,
            **measure(config, weights, data, seed),
        }
        record = read(args.output)  # to which another process may have added
        record["runs"][key] = run
        tqdm.write(f"{run}")
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(f"{HEAD}\n\n{table(record)}\n")


if __name__ == "__main__":
    main()
