"""What A2MIM is worth beside other ways of pre-training: the same encoder, images, batch size and number of steps for
each method of `rivals.py`, random weights ("scratch"), and as a ceiling supervised training on all labels (which has
then seen the labels that the others are not given). BEiT is left out, as its tokenizer cannot be had from a package.

Everything is in memory at 64 px, with AdamW, weight decay 0.05, a warm-up of 5% and a cosine to 0. The learning rate
of a method is that of `RATES` which gives the best AUROC of a linear probe (every stage) on a fifth of the training
images, after `TRIAL` of the steps on the rest; the same for all seeds. Methods of two views see the crops, flips,
contrast, brightness and blur of `rivals.augment`, the others crops of 80 to 100% and flips.

Encoders are evaluated on the test images by fine-tuning with 10, 50 and all labels of each class, logistic regression
on frozen features (of the last map, and of every stage) and k-NN (the last map), over 5 draws of labels. Accuracy,
balanced accuracy, AUROC and average precision are in the JSON; differences are paired over seeds and draws.

    python benchmarks/images.py
    python benchmarks/methods.py --output benchmarks/results/methods.json [--only solar_cells "convnext 0.4M"]

Goes on where it was stopped; several may write one file, or --workers does. --device cuda is for a GPU, with a file of
its own: a run took 6 to 13 seconds with 14 workers, which shared an H100 by NVIDIA's MPS. The encoders are left in
--folder as plain timm checkpoints, which `run_finetune.py --model_name_or_path` takes. Larger encoders on one GPU are
those of `methods_gpu.py`.
"""

import argparse
import fcntl
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.images import FOLDER  # noqa: E402
from benchmarks.in_memory import Schedule, features, load, moved  # noqa: E402
from benchmarks.judging import linear_probes, scores  # noqa: E402
from benchmarks.methods_run import (  # noqa: E402
    SCRATCH,
    encoder_with,
    learn,
    probe_rows,
    rounded,
    subsets_of,
    tuned_rows,
)
from benchmarks.methods_table import plot, tables  # noqa: E402
from benchmarks.rates import ENCODERS as SIZES  # noqa: E402
from benchmarks.rates import SIZE  # noqa: E402
from benchmarks.rivals import METHODS  # noqa: E402
from benchmarks.workers import run_all  # noqa: E402
from modeling_a2mim import A2MIMConfig, A2MIMModel  # noqa: E402
from modeling_a2mim.evaluation.frozen import frozen_metrics, nearest_neighbors  # noqa: E402
from modeling_a2mim.export.folder import export_model  # noqa: E402
from modeling_a2mim.export.record import hardware  # noqa: E402


POOLED = {"global_pool": "avg", "fc_norm": False}  # masked pre-training teaches the class token nothing
ENCODERS = {
    "convnext 0.4M": (*SIZES["convnext 0.4M"], "multiscale"),
    "vit 0.5M": (SIZES["vit 0.5M"][0], SIZES["vit 0.5M"][1] | POOLED, "linear"),
}
SETS = ("solar_cells", "fashion_mnist_60000")
ORDER = (SCRATCH, *METHODS)
CELL, BATCH = 16, 64  # a cell of the mask is one of the map that the token of the CNN enters
RATES, TRIAL = [3e-4, 1e-3, 3e-3], 0.2
TRIED = 5000  # images at most that a rate is evaluated with
# Labels of each class (`None`: all), images in a batch at most, and steps of fine-tuning, and its learning rate.
LABELS = {"10": (10, 64, 100), "50": (50, 64, 100), "all": (None, 64, 400)}
COUNTS = {name: count for name, (count, _, _) in LABELS.items()}
TUNING_RATE = 1e-3


def config_of(encoder: str) -> A2MIMConfig:
    architecture, model_args, decoder = ENCODERS[encoder]
    shape = {"image_size": SIZE, "mask_patch_size": CELL, "num_channels": 1, "decoder": decoder}
    return A2MIMConfig.for_architecture(architecture, model_args=model_args, **shape)


def choose_rate(method: str, config: A2MIMConfig, data: tuple, steps: int) -> dict:
    """Try each rate on four fifths of the training images, and evaluate on the rest."""
    (images, labels), _ = data
    order = np.random.default_rng(0).permutation(len(images))
    fit, held = order[len(order) // 5 :], order[: len(order) // 5]
    tried = {}
    for rate in RATES:
        schedule = Schedule(steps, BATCH, rate, graph=images.is_cuda)
        weights, _ = learn(method, config, images[fit], labels[fit], schedule)
        core = moved(encoder_with(config, weights, 0), images.device)
        few = fit[:TRIED], held[:TRIED]
        own, others = (features(core, images[rows])["every stage"] for rows in few)
        logits = linear_probes(own, labels[few[0]], others, [list(range(len(own)))], 1)[0]
        tried[str(rate)] = round(scores(logits, labels[few[1]])["auroc"], 4)
    return {"steps": steps, "tried": tried, "chosen": float(max(tried, key=tried.get))}


def frozen_rows(core: A2MIMModel, data: tuple, draws: int) -> list[dict]:
    """Figures of linear probes and of nearest neighbors."""
    (images, labels), (test, known) = data
    own, others = features(core, images), features(core, test)
    subsets = subsets_of(labels, COUNTS, draws)
    rows = probe_rows(own, labels, others, known, subsets)
    last, other = (of["last map"].cpu().numpy() for of in (own, others))
    wanted = ("accuracy", "balanced_accuracy", "auroc", "average_precision")
    for name, draw, subset in subsets:
        neighbors = nearest_neighbors((last[subset], labels[subset]))
        found = frozen_metrics(neighbors, (other, known), len(np.unique(labels)))
        rows.append({"by": "k-NN", "labels": name, "draw": draw, **{key: found[key] for key in wanted}})
    return rows


def plan(seeds: list[int]) -> list[tuple[str, str, str, int]]:
    """What is run, in this order."""
    runs = [(s, e, m, seed) for s in SETS for seed in seeds for e in ENCODERS for m in ORDER]
    return [run for run in runs if run[2] != "MAE" or run[1].startswith("vit")]


def left_of(runs: list[tuple], words: list[str], known: dict) -> list[tuple]:
    """The runs with all of `words` in their name that are not known yet.

    Raises:
        SystemExit: if no run has them in its name.
    """
    chosen = {", ".join(map(str, what)): what for what in runs}
    chosen = {key: what for key, what in chosen.items() if all(word in key.split(", ") for word in words)}
    if not chosen:
        sys.exit(f"--only: nothing has {words} in its name, such as {', '.join(map(str, runs[1]))}")
    return [what for key, what in chosen.items() if key not in known]


def check_images(names: Collection[str]) -> None:
    """Ends the program if a set of images is missing."""
    for name in names:
        if not (FOLDER / f"{name}.npz").exists():
            sys.exit(f"{name}: no images; first python benchmarks/images.py --sets {name}")


def settings_of(args) -> dict:
    labels = {name: {"batch_size": batch, "steps": steps} for name, (_, batch, steps) in LABELS.items()}
    tuning = {"learning_rate": TUNING_RATE, "labels": labels}
    common = {"size": SIZE, "mask_patch_size": CELL, "batch_size": BATCH}
    settings = {"steps": args.steps, "draws": args.draws, "rates": RATES, "trial": TRIAL, **common}
    return settings | {"fine-tuning": tuning, "device": args.device}


def read(path: Path, settings: dict) -> dict:
    """The results so far.

    Raises:
        SystemExit: if they are of other settings.
    """
    record = {"settings": settings, "rates": {}, "runs": {}}
    if path.exists():
        record = json.loads(path.read_text())
        if record["settings"] != settings:
            sys.exit(f"--output: {path.name} has results of other settings, {record['settings']}; give another file")
    return record


def add(path: Path, settings: dict, part: str, key: str, result: dict):
    """Add a result to what others, who may run beside this one, have written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read(path, settings)
        record[part][key] = result
        device = torch.device(settings["device"])
        options = ("steps", "draws") if "steps" in settings else ()
        options = [f"--{name} {settings[name]}" for name in options if name in settings]
        options += [] if device.type == "cpu" else [f"--device {device.type}"]
        program = f"python benchmarks/{Path(sys.argv[0]).name} --output {path.name}"
        record["command"] = " ".join([program, *options])
        record["machine"] = f"{hardware(device, 1)}, 1 thread each run, {platform.system()}"
        record["versions"] = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(scratch, path)


def run(args, settings: dict, what: tuple[str, str, str, int]):
    """Pre-train and evaluate; what is there of it is not made again."""
    name, encoder, method, seed = what
    key, data = ", ".join(map(str, what)), images_of(name, args.device)
    config, common = config_of(encoder), f"{name}, {encoder}, {method}"
    result, weights = {"set": name, "encoder": encoder, "method": method, "seed": seed}, None
    if method != SCRATCH:
        folder = args.folder / key.replace(", ", "-").replace(" ", "-")
        (images, labels), _ = data
        if common not in read(args.output, settings)["rates"]:
            add(args.output, settings, "rates", common, choose_rate(method, config, data, round(TRIAL * args.steps)))
        rate = read(args.output, settings)["rates"][common]["chosen"]
        made, about = folder / "pretraining.json", {"steps": args.steps, "learning_rate": rate}
        found = json.loads(made.read_text()) if made.exists() else {}
        if about.items() <= found.items():
            weights = load_file(folder / "model.safetensors")
        else:
            made.unlink(missing_ok=True)
            schedule = Schedule(args.steps, BATCH, rate, seed, graph=images.is_cuda)
            weights, found = learn(method, config, images, labels, schedule)
            export_model(encoder_with(config, weights, seed), folder)
            found |= about
            made.write_text(json.dumps(found))
        result["pre-training"] = found
    begin = time.process_time()
    device = data[0][0].device
    rows = frozen_rows(moved(encoder_with(config, weights, seed), device), data, args.draws)
    for labels, (count, batch_size, steps) in LABELS.items():
        subsets = subsets_of(data[0][1], {labels: count}, args.draws, args.draws)
        schedule = Schedule(steps, batch_size, TUNING_RATE, seed, graph=device.type == "cuda")
        rows += tuned_rows(config, weights, data, subsets, schedule)
    result["evaluation_cpu_seconds"] = round(time.process_time() - begin)
    add(args.output, settings, "runs", key, result | {"rows": rounded(rows)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="run what has all of these in its name")
    parser.add_argument("--steps", type=int, default=1000, help="of pre-training (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="of labels (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of pre-training (default: 0)")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "methods", help="for the encoders")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args()
    settings = settings_of(args)
    left = left_of(plan(args.seeds), args.only, read(args.output, settings)["runs"])
    check_images({name for name, *_ in left})
    run_all(functools.partial(run, args, settings), left, args.workers, functools.partial(report, args, settings))
    report(args, settings)


def report(args, settings: dict):
    record = read(args.output, settings)
    if not record["runs"]:
        return
    args.output.with_suffix(".md").write_text(tables(record) + "\n")
    plot(record, args.output.with_suffix(".png"))


@functools.lru_cache(maxsize=1)
def images_of(name: str, device: str) -> list[tuple]:
    """(images, labels) of training and of testing, at `SIZE`, on the device."""
    return [load(FOLDER / f"{name}.npz", split, SIZE, device) for split in ("train", "test")]


if __name__ == "__main__":
    main()
