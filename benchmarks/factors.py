"""When does a CNN gain from A2MIM? One factor at a time is changed around a base that learns: length, mask, fill,
token, losses, decoder, target, BatchNorm, crops, size of the encoder, rate; and of fine-tuning, the rate and its decay
over layers. Everything else, data and evaluation among it, is that of `methods.py`.

    python benchmarks/images.py
    python benchmarks/factors.py --output benchmarks/results/factors.json [--only solar_cells "mask ratio"]

Goes on where it was stopped; several may write one file, or --workers does. On a GPU (--device cuda, with a file of
its own) five processes took 10 seconds for a setting, 40 of a core. Differences are from the base of the same seed,
paired over draws of labels.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.in_memory import Schedule, features, moved, normalize  # noqa: E402
from benchmarks.methods import add, check_images, images_of, left_of, read  # noqa: E402
from benchmarks.methods_run import encoder_with, learn, probe_rows, rounded, subsets_of, tuned_rows  # noqa: E402
from benchmarks.methods_table import difference, values  # noqa: E402
from benchmarks.rivals import A2MIM  # noqa: E402
from benchmarks.variants import VARIANTS, recalibrated  # noqa: E402
from benchmarks.workers import run_all  # noqa: E402
from modeling_a2mim import A2MIMConfig, decoders  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


SIZE, BATCH = 64, 64
SETS = ("solar_cells", "fashion_mnist")
SMALL = ("resnet10t", {"channels": [24, 48, 96, 192], "stem_width": 16})
LARGER = ("resnet10t", {"channels": [48, 96, 192, 384], "stem_width": 16})
LAYER_NORM = ("convnext_atto", {"dims": [24, 48, 96, 192], "depths": [1, 1, 2, 1]})
TUNED = {"10": (10, 20, 60), "50": (50, 64, 100)}  # labels of each class, images in a batch, steps
DRAWS = 5
CALIBRATION = 20  # batches
COLUMNS = (
    *(("fine-tuning", labels) for labels in TUNED),
    *(("probe, every stage", labels) for labels in ("10", "50", "all")),
    *(("probe, last map", labels) for labels in ("50", "all")),
)
HEAD = """Figures of the test images (AUROC for solar cells, accuracy for Fashion-MNIST) by what was changed, with
labels of each class; mean over draws of labels and seeds. In brackets the difference from the base (of the base, other
encoders, rates of fine-tuning and changes together, from random weights), with half a 95% interval, bold where that
leaves 0 out.
`{command}` makes this table{more}."""


@dataclass(frozen=True)
class Setting:
    """How it is pre-trained and fine-tuned."""

    encoder: tuple[str, dict] = SMALL
    steps: int = 600
    rate: float | None = 1e-3  # `None`: random weights
    crop: tuple[float, float] = (0.6, 1.0)
    options: dict[str, Any] = field(default_factory=dict)  # of the configuration
    width: int = decoders.WIDTH  # channels of the multiscale decoder
    variant: str | None = None
    recalibrate: bool = False
    tuning_rate: float = 1e-3
    layer_decay: float | None = None


BASE_NAME, SCRATCH = "base", "random weights"
TOGETHER = "normalised target, 2400 steps, fine-tuned at"
BASE = Setting(options={"decoder": "multiscale", "mask_patch_size": 16})


def option(**options: Any) -> Setting:
    return replace(BASE, options=BASE.options | options)


FACTORS: dict[str, dict[str, Setting]] = {
    SCRATCH: {"": replace(BASE, rate=None)},
    BASE_NAME: {"": BASE},
    "steps": {str(n): replace(BASE, steps=n) for n in (150, 300, 1200, 2400, 4800)},
    "decoder": {
        "linear": option(decoder="linear"),
        "linear, 3x3": option(decoder="linear", decoder_kernel_size=3),
        "32 channels": replace(BASE, width=32),
        "128 channels": replace(BASE, width=128),
    },
    "BatchNorm": {
        "statistics of visible cells": replace(BASE, variant="visible norm"),
        "averages of whole images": replace(BASE, variant="running norm"),
        "recalibrated on whole images": replace(BASE, recalibrate=True),
    },
    "target": {"normalised by cell": option(target="normalised"), "HOG": replace(BASE, variant="HOG")},
    "mask ratio": {str(r): option(mask_ratio=r) for r in (0.3, 0.45, 0.75, 0.9)},
    "cell": {f"{n} px": option(mask_patch_size=n) for n in (4, 8, 32)},
    "token site": {f"stage {n + 1}": option(mask_site=n) for n in (0, 1, 2, 4)},
    "fill": {name: option(mask_fill=name) for name in ("zero", "none")},
    "token": {
        "without gamma": option(mask_gamma_init=None),
        "replaces": option(mask_token_mode="replace", mask_gamma_init=None),
    },
    "spatial loss": {"L1": option(spatial_loss="l1")},
    "Fourier weight": {str(w): option(frequency_loss_weight=w) for w in (0.0, 0.1, 1.0)},
    "Fourier term": {
        "of each image": option(frequency_batch_average=False),
        "not focal": option(frequency_focal=False),
    },
    "crop scale": {f"{low} to 1": replace(BASE, crop=(low, 1.0)) for low in (0.2, 0.8)},
    "rate": {f"{rate:g}": replace(BASE, rate=rate) for rate in (3e-4, 3e-3)},
    "encoder": {
        "resnet 2.8M": replace(BASE, encoder=LARGER),
        "resnet 2.8M, random weights": replace(BASE, encoder=LARGER, rate=None),
        "convnext 0.6M": replace(BASE, encoder=LAYER_NORM),
        "convnext 0.6M, random weights": replace(BASE, encoder=LAYER_NORM, rate=None),
    },
    "fine-tuning rate": {
        f"{rate:g}{words}": replace(start, tuning_rate=rate)
        for rate in (1e-4, 3e-4, 3e-3, 1e-2)
        for words, start in (("", BASE), (f", {SCRATCH}", replace(BASE, rate=None)))
    },
    "layer decay": {str(decay): replace(BASE, layer_decay=decay) for decay in (0.5, 0.75)},
    TOGETHER: {
        f"{rate:g}": replace(option(target="normalised"), steps=2400, tuning_rate=rate) for rate in (3e-4, 1e-3, 1e-2)
    },
}


@contextlib.contextmanager
def decoder_width(width: int) -> Iterator[None]:
    """Multiscale decoders that are made meanwhile have so many channels, which no option of the package says."""
    usual, decoders.WIDTH = decoders.WIDTH, width
    try:
        yield
    finally:
        decoders.WIDTH = usual


def config_of(setting: Setting) -> A2MIMConfig:
    architecture, model_args = setting.encoder
    shape = {"image_size": SIZE, "num_channels": 1}
    return A2MIMConfig.for_architecture(architecture, model_args=model_args, **{**shape, **setting.options})


def pretrained(setting: Setting, data: tuple, seed: int, folder: Path) -> tuple[dict | None, dict]:
    """Weights of the encoder, `None` for random ones, and what was measured; kept in the folder."""
    if setting.rate is None:
        return None, {}
    own = replace(setting, tuning_rate=0, layer_decay=None)  # which play no part here
    path = folder / f"{hashlib.sha256(f'{own}, {seed}'.encode()).hexdigest()[:16]}-{len(data[0][0])}.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            return load_file(path), json.loads(file.metadata()["found"])
    (images, labels), _ = data
    config = config_of(setting)
    schedule = Schedule(setting.steps, BATCH, setting.rate, seed, graph=images.is_cuda)
    make = functools.partial(VARIANTS.get(setting.variant, A2MIM), crops=setting.crop)
    with decoder_width(setting.width):
        weights, found = learn(make, config, images, labels, schedule)
    if setting.recalibrate:
        core = moved(encoder_with(config, weights, seed), images.device)
        recalibrated(core, (normalize(part, config) for part in images[: CALIBRATION * BATCH].split(BATCH)))
        weights = {name: core.encoder.state_dict()[name].contiguous().clone() for name in weights}
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")  # killed meanwhile, it would be half a file
    save_file(weights, scratch, {"found": json.dumps(found)})
    os.replace(scratch, path)
    return weights, found


def evaluate(setting: Setting, weights: dict | None, data: tuple, seed: int) -> list[dict]:
    """Figures of linear probes and of fine-tuning with few labels."""
    config, ((images, labels), (test, known)) = config_of(setting), data
    core = moved(encoder_with(config, weights, seed), images.device)
    own, others = features(core, images), features(core, test)
    rows = probe_rows(own, labels, others, known, subsets_of(labels, {"10": 10, "50": 50, "all": None}, DRAWS))
    for name, (count, batch_size, steps) in TUNED.items():
        options = {"layer_decay": setting.layer_decay, "graph": images.is_cuda}
        schedule = Schedule(steps, batch_size, setting.tuning_rate, seed, **options)
        rows += tuned_rows(config, weights, data, subsets_of(labels, {name: count}, DRAWS), schedule)
    return rounded(rows)


def plan(sets: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str, str, int]]:
    """Set, factor, its value and seed, in the order in which they run."""
    return [(s, f, v, seed) for seed in seeds for s in sets for f, values in FACTORS.items() for v in values]


def reference_of(run: dict) -> tuple[str, str]:
    """Factor and value of what a run is compared with."""
    factor, value = run["factor"], run["value"]
    if factor in {SCRATCH, BASE_NAME} or value.endswith(SCRATCH):
        return SCRATCH, ""
    if factor == TOGETHER:
        return (SCRATCH, "") if float(value) == BASE.tuning_rate else ("fine-tuning rate", f"{value}, {SCRATCH}")
    if factor in {"encoder", "fine-tuning rate"}:
        return factor, f"{value}, {SCRATCH}"
    return BASE_NAME, ""


def table(record: dict) -> str:
    timed = record["settings"]["device"] == "cpu"  # processes that share a GPU wait for each other
    head = ["images", "factor", "value", *["CPU s"] * timed, *(f"{by}, {labels}" for by, labels in COLUMNS)]
    rows, runs = [], list(record["runs"].values())
    known = {(run["set"], run["factor"], run["value"]) for run in runs}
    for name, factor, value in (what for *what, _ in plan(SETS, [0]) if tuple(what) in known):
        own = [run for run in runs if (run["set"], run["factor"], run["value"]) == (name, factor, value)]
        reference = reference_of(own[0])
        others = [run for run in runs if (run["set"], run["factor"], run["value"]) == (name, *reference)]
        metric = "auroc" if name == "solar_cells" else "accuracy"
        seconds = [run["pre-training"]["cpu_seconds"] for run in own if run["pre-training"]]
        cells = [name, factor, value, *[f"{np.mean(seconds):.0f}" if seconds else ""] * timed]
        for column in COLUMNS:
            found, other = values(own, column, metric), values(others, column, metric)
            text = f"{np.mean(list(found.values())):.3f}"
            cells.append(text if reference == (factor, value) else f"{text} ({difference(other, found)})")
        rows.append(cells)
    return markdown_table(head, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="run what has all of these in its name")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of pre-training (default: 0)")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "factors", help="for the encoders")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    args = parser.parse_args()
    settings = {"size": SIZE, "batch_size": BATCH, "draws": DRAWS, "base": dataclasses.asdict(BASE)}
    settings = json.loads(json.dumps(settings | {"device": args.device}))
    left = left_of(plan(args.sets, args.seeds), args.only, read(args.output, settings)["runs"])
    check_images({name for name, *_ in left})
    run_all(functools.partial(run, args, settings), left, args.workers, functools.partial(report, args, settings))
    report(args, settings)


def report(args, settings: dict):
    record = read(args.output, settings)
    if record["runs"]:
        seeds = sorted({run["seed"] for run in record["runs"].values()} - {0})
        more = f", with `--seeds {' '.join(map(str, seeds))}` what is over several" if seeds else ""
        head = HEAD.format(command=record["command"], more=more)
        args.output.with_suffix(".md").write_text(f"{head}\n\n{table(record)}\n")


def run(args, settings: dict, what: tuple[str, str, str, int]):
    name, factor, value, seed = what
    begin, setting, data = time.process_time(), FACTORS[factor][value], images_of(name, args.device)
    weights, found = pretrained(setting, data, seed, args.folder)
    result = {"set": name, "factor": factor, "value": value, "seed": seed, "pre-training": found}
    result["rows"] = evaluate(setting, weights, data, seed)
    result["cpu_seconds"] = round(time.process_time() - begin)
    add(args.output, settings, "runs", ", ".join(map(str, what)), result)


if __name__ == "__main__":
    main()
