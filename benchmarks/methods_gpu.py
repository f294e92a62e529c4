"""`methods.py` on one GPU, in 9 minutes, with nothing but torch, timm and transformers: a ResNet-18 and a ViT-Ti at 96
px, from scratch and pre-trained with SimMIM, A2MIM and SimCLR (`rivals.py`), in bfloat16. All methods get the same
number of steps, as many as the time allows after what the evaluation takes (fine-tuning with 10, 50 and all labels of
each class, and linear probes), and in no less than half of it. The GPU has to be free: the plan is made from a few
timed steps.

    python benchmarks/images.py        # once, where `pip install elpv-dataset` works
    python benchmarks/methods_gpu.py --output benchmarks/results/methods_gpu.json
    python benchmarks/methods_gpu.py --small --minutes 1 --output small.json       # tiny, on a CPU

Results are written after each part; what does not fit into the time is left out and named under "skipped".
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import transformers


START = time.perf_counter()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.images import FOLDER  # noqa: E402
from benchmarks.in_memory import Schedule, features, fine_tune, load, moved, predict  # noqa: E402
from benchmarks.methods_run import (  # noqa: E402
    SCRATCH,
    encoder_with,
    learn,
    probe_rows,
    rounded,
    subsets_of,
    tuned_rows,
)
from modeling_a2mim import A2MIMConfig  # noqa: E402
from modeling_a2mim.export.record import hardware  # noqa: E402


METHODS = (SCRATCH, "A2MIM", "SimCLR", "SimMIM")
PER_PROBE = 3.0  # seconds for the probes of one encoder
SPARE = 0.9  # of the time is planned


@dataclass
class Settings:
    """How much of everything."""

    # Architecture, arguments, decoder, rates of pre-training and fine-tuning.
    encoders: tuple = (
        ("resnet18", {}, "multiscale", 2e-3, 1e-3),
        (
            "vit_tiny_patch16_224",
            {"patch_size": 8, "global_pool": "avg", "fc_norm": False},
            "linear",
            1e-3,
            5e-4,
        ),
    )
    sets: tuple = (("solar_cells", 0.55), ("fashion_mnist_60000", 0.45))  # with their share of the time
    size: int = 96
    cell: int = 16
    batch_size: int = 256
    labels: tuple = (("10", 10, 64, 100), ("50", 50, 64, 100), ("all", None, 128, 400))
    draws: tuple = (5, 3, 2)  # the most that leaves half of the time for pre-training
    trial: int = 16  # steps that are timed
    most: int = 20000  # steps


SMALL = Settings(
    encoders=(
        ("test_resnet", {}, "multiscale", 2e-3, 1e-3),
        ("test_vit", {"global_pool": "avg"}, "linear", 1e-3, 5e-4),
    ),
    size=64,
    batch_size=16,
    labels=(("4", 4, 8, 4), ("all", None, 16, 6)),
    draws=(2,),
    trial=6,
    most=20,
)


class Clock:
    """What is left of the time, and what was left out."""

    def __init__(self, args):
        self.args, self.until, self.record = args, 0.0, {"runs": [], "pre-training": {}, "skipped": [], "plan": {}}

    def left(self) -> float:
        return START + self.until - time.perf_counter()

    def fits(self, what: str, seconds: float) -> bool:
        """Whether there is the time for it; if not, that is noted."""
        if seconds <= self.left():
            return True
        self.record["skipped"].append(f"{what}: about {seconds:.0f} s, {max(0.0, self.left()):.0f} s were left")
        return False

    def write(self):
        scratch = self.args.output.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.record, indent=1) + "\n")
        os.replace(scratch, self.args.output)


def images_of(name: str, settings: Settings, args) -> tuple | None:
    """((images, labels), (test images, labels)) on the device; `None` without the file. --small: a few of them."""
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        return None
    parts = [load(path, split, settings.size, args.device) for split in ("train", "test")]
    if args.small:
        few = [np.sort(np.argsort(labels, kind="stable")[:: len(labels) // 40][:40]) for _, labels in parts]
        parts = [(images[rows], labels[rows]) for (images, labels), rows in zip(parts, few, strict=True)]
    return tuple(parts)


def compare(name: str, data: tuple, clock: Clock, settings: Settings, args):
    """All encoders and methods on one set."""
    (images, labels), (test, _) = data
    known = torch.from_numpy(labels).to(images.device)
    common = {"bf16": args.bf16, "graph": args.device == "cuda"}
    configs = {
        encoder[0]: A2MIMConfig.for_architecture(
            encoder[0],
            model_args=encoder[1],
            decoder=encoder[2],
            image_size=settings.size,
            mask_patch_size=settings.cell,
            num_channels=1,
        )
        for encoder in settings.encoders
    }
    tuning, speeds = {}, {}  # seconds of all fine-tuning of one encoder with one draw; steps in a second
    for architecture, _, _, rate, tuned in settings.encoders:
        tuning[architecture] = 0.0
        for _, _, batch_size, steps in settings.labels:
            trial = Schedule(settings.trial, batch_size, tuned, **common)
            begin = time.perf_counter()
            model, found = fine_tune(configs[architecture], None, images, known, int(labels.max()) + 1, trial)
            predict(model, test, args.bf16)
            around = time.perf_counter() - begin - settings.trial / found["steps_per_second"]
            tuning[architecture] += steps / found["steps_per_second"] + around
        for method in METHODS[1:]:
            trial = Schedule(settings.trial, settings.batch_size, rate, **common)
            speeds[architecture, method] = learn(method, configs[architecture], images, labels, trial)[1]
    left, evaluation = SPARE * clock.left(), 0.0
    for draws in settings.draws:
        evaluation = len(METHODS) * (draws * sum(tuning.values()) + PER_PROBE * len(tuning))
        if evaluation <= left / 2:
            break
    each = sum(1 / found["steps_per_second"] for found in speeds.values())
    steps = int(min(settings.most, max(settings.trial, (left - min(evaluation, left / 2)) / each)))
    plan = {"steps": steps, "epochs": round(steps * settings.batch_size / len(images), 1), "draws": draws}
    clock.record["plan"][name] = plan | {"batch_size": settings.batch_size}
    print(name, clock.record["plan"][name], flush=True)
    for architecture, _, _, rate, tuned in settings.encoders:
        config = configs[architecture]
        for method in METHODS:
            what, weights = f"{name}, {architecture}, {method}", None
            if method != SCRATCH:
                if not clock.fits(f"pre-training of {what}", steps / speeds[architecture, method]["steps_per_second"]):
                    continue
                schedule = Schedule(steps, settings.batch_size, rate, **common)
                weights, found = learn(method, config, images, labels, schedule)
                clock.record["pre-training"][what] = found
            row = {"set": name, "encoder": architecture, "method": method}
            if clock.fits(f"probes of {what}", PER_PROBE):
                clock.record["runs"] += [row | found for found in probes(config, weights, data, draws, settings)]
            for labeled, count, batch_size, tuning_steps in settings.labels:
                if clock.fits(f"fine-tuning of {what}, {labeled} labels", draws * tuning[architecture] / 2):
                    subsets = subsets_of(labels, {labeled: count}, draws, draws)
                    schedule = Schedule(tuning_steps, batch_size, tuned, **common)
                    found = rounded(tuned_rows(config, weights, data, subsets, schedule))
                    clock.record["runs"] += [row | one for one in found]
            print(f"{what}: {clock.left():.0f} s left", flush=True)
            clock.write()


def probes(config: A2MIMConfig, weights: dict | None, data: tuple, draws: int, settings: Settings) -> list[dict]:
    """Figures of linear probes with few labels."""
    (images, labels), (test, known) = data
    core = moved(encoder_with(config, weights, 0), images.device)
    few = {name: count for name, count, _, _ in settings.labels if count}
    own, others = features(core, images), features(core, test)
    return rounded(probe_rows(own, labels, others, known, subsets_of(labels, few, draws)))


def table(record: dict) -> str:
    """Means and standard deviations over draws, in plain text."""
    groups: dict[tuple, dict[str, list[float]]] = {}
    for row in record["runs"]:
        metric = "auroc" if row["set"] == "solar_cells" else "accuracy"
        cells = groups.setdefault((row["set"], metric, row["encoder"], row["method"]), {})
        cells.setdefault(f"{row['by']}, {row['labels']}", []).append(row[metric])
    lines = []
    for group, cells in groups.items():
        figures = (f"{name}: {np.mean(found):.3f} ({np.std(found):.3f})" for name, found in cells.items())
        lines.append(", ".join(group) + "\n    " + "\n    ".join(figures))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny encoders and few images, on a CPU, in float32")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.device, args.bf16 = ("cpu", False) if args.small else ("cuda", True)
    if not args.small and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; --small runs on a CPU")
    if args.small:
        torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    settings, clock = SMALL if args.small else Settings(), Clock(args)
    clock.record["command"] = " ".join(["python", "benchmarks/methods_gpu.py", *sys.argv[1:]])
    clock.record["machine"] = f"{hardware(torch.device(args.device), 1)}, {os.cpu_count()} cores, {platform.system()}"
    clock.record["versions"] = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
    clock.record["labels"] = [list(row) for row in settings.labels]
    clock.record["size"], clock.record["mask_patch_size"] = settings.size, settings.cell
    for number, (name, _) in enumerate(settings.sets):
        clock.until = 60 * args.minutes * sum(part for _, part in settings.sets[: number + 1])
        data = images_of(name, settings, args)
        if data is None:
            clock.record["skipped"].append(f"{name}: python benchmarks/images.py --sets {name}")
            continue
        compare(name, data, clock, settings, args)
    if not clock.record["plan"]:
        sys.exit("\n".join(["no images; first", *clock.record["skipped"]]))
    clock.record["seconds"] = round(time.perf_counter() - START, 1)
    clock.write()
    print(table(clock.record))
    print("skipped:", *clock.record["skipped"] or ["nothing"], sep="\n  ")


if __name__ == "__main__":
    main()
