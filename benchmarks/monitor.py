"""What the gauge of pre-training (`training/monitor.py`) costs: seconds of a step with and without it.

Runs with and without it take turns in one process, in a new order each round; each is timed over as many steps as lie
between two measurements (as `--monitor_steps auto` has them), one measurement among them, after some to warm up. The
ratio is taken within a round. CPU seconds are those of this process; other programs disturb them less than the time on
the clock. Printed are medians over the rounds, with the 10th and 90th percentile.

    python benchmarks/monitor.py [--device cuda]
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining, A2MIMTrainer, A2MIMTrainingArguments  # noqa: E402
from modeling_a2mim.data.dataset import ImageSamples  # noqa: E402
from modeling_a2mim.data.loading import load_images  # noqa: E402
from modeling_a2mim.data.monitor import MonitorImages, monitor_images  # noqa: E402
from modeling_a2mim.data.transforms import PreTrainTransform  # noqa: E402
from modeling_a2mim.training.monitor import MonitorCallback, steps_between  # noqa: E402


WARM = 3  # steps
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


class Clock(TrainerCallback):
    """Takes the time before each step."""

    def __init__(self):
        self.times: list[dict[str, float]] = []

    def on_step_begin(self, args, state, control, **kwargs):
        if torch.cuda.is_available() and not args.use_cpu:
            torch.cuda.synchronize()
        self.times.append({name: clock() for name, clock in CLOCKS.items()})

    def between(self, first: int, last: int) -> dict[str, float]:
        """Seconds of these steps, by each clock."""
        return {name: self.times[last][name] - self.times[first][name] for name in CLOCKS}


class TimedMonitor(MonitorCallback):
    """Takes the time of each measurement."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seconds: list[dict[str, float]] = []

    def figures(self):
        start = {name: clock() for name, clock in CLOCKS.items()}
        found = super().figures()
        self.seconds.append({name: clock() - start[name] for name, clock in CLOCKS.items()})
        return found


def run(config: A2MIMConfig, images: MonitorImages | None, between: int, args) -> tuple[dict, dict | None]:
    """Seconds of a step, and of a measurement, each by both clocks."""
    torch.manual_seed(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = A2MIMTrainer(
            model=A2MIMForPreTraining(config),
            args=A2MIMTrainingArguments(
                folder,
                per_device_train_batch_size=args.batch_size,
                max_steps=WARM + between + 1,
                use_cpu=args.device == "cpu",
                bf16=args.bf16,
                disable_tqdm=True,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                dataloader_num_workers=args.workers,
            ),
            train_dataset=ImageSamples(load_images(), PreTrainTransform(config), "image"),
            callbacks=[clock],
        )
        for callback in [c for c in trainer.callback_handler.callbacks if isinstance(c, PrinterCallback)]:
            trainer.remove_callback(callback)
        monitor = None if images is None else TimedMonitor(trainer, images, between)
        if monitor is not None:
            trainer.monitor = monitor
            trainer.add_callback(monitor)
        trainer.train()
    whole = clock.between(WARM, WARM + between)
    return {name: seconds / between for name, seconds in whole.items()}, monitor and monitor.seconds[1]


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [10, 50, 90])
    return {k: round(float(v), 5) for k, v in {"median": median, "low": low, "high": high}.items()}


def measure(name: str, args) -> dict:
    """Of one encoder: seconds of a step with and without the gauge, and of a measurement, and the ratio."""
    config = A2MIMConfig.for_architecture(name, image_size=args.image_size, num_channels=1)
    images = monitor_images(load_images(split="test"), PreTrainTransform(config, train=False), args.images)
    between, _ = steps_between(len(images), args.batch_size, 0)
    steps: dict[bool, list[dict]] = {True: [], False: []}
    measurements = []
    order = [True, False]
    for _ in tqdm(range(args.rounds), desc=name, unit="round"):
        random.shuffle(order)
        for with_gauge in order:
            seconds, measurement = run(config, images if with_gauge else None, between, args)
            steps[with_gauge].append(seconds)
            measurements += [measurement] if with_gauge else []
    found = {"images": len(images), "batch_size": args.batch_size, "image_size": args.image_size, "steps": between}
    for clock in CLOCKS:
        with_it, without = ([one[clock] for one in steps[kind]] for kind in (True, False))
        measured = [one[clock] for one in measurements]
        found[f"{clock}_seconds"] = {
            "step_without": spread(without),
            "step_with": spread(with_it),
            "measurement": spread(measured),
            "ratio": spread([a / b for a, b in zip(with_it, without, strict=True)]),
            # The same from its parts, of which the difference of two noisy times has no share.
            "share": spread([m / (between * s) for m, s in zip(measured, without, strict=True)]),
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoders", nargs="+", default=["resnet18", "vit_tiny_patch16_224"], metavar="NAME")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--images", type=int, default=128, help="that are measured on")
    parser.add_argument("--rounds", type=int, default=10, help="rounds in which both take their turn")
    parser.add_argument("--workers", type=int, default=0, help="that load images")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    random.seed(0)

    table = {}
    for name in args.encoders:
        table[name] = result = measure(name, args)
        print(f"\n{name}, steps of {args.batch_size} images, {result['images']} images every {result['steps']} steps")
        for clock in CLOCKS:
            for label, found in result[f"{clock}_seconds"].items():
                text = f"{found['median']:.4f} ({found['low']:.4f}-{found['high']:.4f})"
                print(f"{clock:6}{label:16}{text:>28}", flush=True)

    if args.output:
        device = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
        run_of = {
            "command": " ".join(["python", "benchmarks/monitor.py", *sys.argv[1:]]),
            "machine": f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.system()}",
            "versions": {m.__name__: m.__version__ for m in (torch, timm, transformers)}
            | {"python": platform.python_version()},
            "spread": f"median, 10th and 90th percentile of {args.rounds} rounds",
        }
        record = json.loads(args.output.read_text()) if args.output.exists() else {}
        record |= {name: {**run_of, **result} for name, result in table.items()}  # other encoders keep their own
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
