"""What one GPU says in 8 minutes, with nothing but torch, timm and transformers: what pre-training is worth (solar
cells, a CNN and a ViT), what a step costs over the bare encoder and over supervised training (time and memory, eager
and compiled), what of it the Fourier term takes, and how fast interaction strength is.

    python benchmarks/images.py --sets solar_cells     # once, where `pip install elpv-dataset` works
    python benchmarks/gpu.py --output benchmarks/results/gpu.json
    python benchmarks/gpu.py --small                     # all of it tiny, on a CPU

Each part has its share of the minutes, and what does not fit is named. The results are written after each measurement;
parts that are not run again stay in the file. A part that fails is named with its error, ends no other, and makes the
exit status 1.
"""

import argparse
import contextlib
import gc
import io
import itertools
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace


START = time.perf_counter()
ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from benchmarks import step  # noqa: E402
from benchmarks.in_memory import Schedule, features, fine_tune, load, predict, pretrain  # noqa: E402
from benchmarks.judging import linear_probes, scores  # noqa: E402
from benchmarks.straightforward import compare_times, logits_of  # noqa: E402
from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining, A2MIMModel  # noqa: E402
from modeling_a2mim.data.subsets import draw_subset  # noqa: E402
from modeling_a2mim.export.record import hardware  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


try:
    from modeling_a2mim.evaluation.summary import mean_and_interval, paired_difference
except ImportError:  # scipy, which nothing else here needs
    mean_and_interval = paired_difference = None


IMAGES = ROOT / "benchmarks" / "data" / "solar_cells.npz"
PARTS = {"effect": 4.5, "steps": 1.2, "fourier": 0.4, "interactions": 0.6, "compiled": 1.3}  # shares of the time
METRICS = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
STARTS = ("from scratch", "SimMIM", "A2MIM", "A2MIM, multiscale")
TUNED = "fine-tuning"
SUPERVISED = "supervised, 1000 classes"
# Variants of a step and what their times are divided by, in the summary.
SUMMARY = (
    (step.OURS, step.DECODER),
    (step.OURS, step.ENCODER),
    (step.MULTISCALE, step.ENCODER),
    (step.OFFICIAL, step.ENCODER),
    (step.OURS, SUPERVISED),
)
COMPILING = 45.0  # seconds for one variant, until one is known
PROBING = 4.0  # seconds for one encoder


@dataclass
class Encoder:
    """An encoder of the effect, with the learning rates of its pre-training and its fine-tuning."""

    architecture: str
    rates: tuple[float, float]
    model_args: dict = field(default_factory=dict)
    stages: bool = True  # whether it has maps of several resolutions


@dataclass
class Settings:
    """How much of everything."""

    encoders: tuple[Encoder, ...] = (
        Encoder("resnet18", (2e-3, 1e-3)),
        # Masked pre-training teaches the class token nothing; the mean of the patches is what is fine-tuned.
        Encoder(
            "vit_tiny_patch16_224", (1e-3, 5e-4), {"patch_size": 8, "global_pool": "avg", "fc_norm": False}, False
        ),
    )
    size: int = 128
    cell: int = 16
    epochs: int = 400
    batch_size: int = 256
    # Labels of each class (`None`: all), images in a batch and steps of fine-tuning.
    labels: dict = field(default_factory=lambda: {"10": (10, 20, 200), "50": (50, 64, 300), "all": (None, 128, 600)})
    draws: int = 5
    trial: int = 24  # steps that are timed to choose how many there are
    images: int | None = None
    steps: tuple = (*((name, 128) for name in step.ENCODERS), ("resnet50", 256))
    compiled: tuple = (
        ("resnet50", 128),
        ("vit_base_patch16_224", 128),
        ("convnext_tiny", 128),
        ("swin_tiny_patch4_window7_224", 128),
    )
    kinds: tuple[str, ...] = (step.ENCODER, step.OURS, SUPERVISED, step.DECODER)  # that are compiled
    rounds: int = 5
    repeats: int = 2  # steps of each variant in a round
    interactions: tuple[str, ...] = ("vit_base_patch16_224", "resnet50")
    pairs: int = 20
    contexts: int = 4
    pixels: int = 224  # of images whose interactions are measured
    masked: int = 256  # images in a forward pass there


SMALL = Settings(
    encoders=(Encoder("test_resnet", (2e-3, 1e-3)), Encoder("test_vit", (1e-3, 5e-4), {}, False)),
    size=64,
    epochs=2,
    batch_size=16,
    labels={"4": (4, 8, 8), "all": (None, 16, 10)},
    draws=2,
    trial=6,
    images=32,
    steps=(("test_resnet", 2), ("test_vit", 2)),
    compiled=(("test_vit", 2),),
    kinds=(step.ENCODER, step.OURS),
    rounds=2,
    repeats=1,
    interactions=("test_vit", "test_resnet"),
    pairs=2,
    contexts=2,
    pixels=160,
    masked=64,
)
SMALL_ENCODERS = {
    "test_resnet": A2MIMConfig.resnet("test_resnet", image_size=64, mask_patch_size=16),
    "test_vit": A2MIMConfig.vit("test_vit", image_size=64, mask_patch_size=16),
}


class Run:
    """Time, results, what was skipped and what failed, of each part; written as they come."""

    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        self.settings = SMALL if args.small else Settings()
        self.deadline, self.name = 0.0, ""
        known = args.output is not None and args.output.exists()
        self.parts = json.loads(args.output.read_text())["parts"] if known else {}
        self.about = {
            # Without the folder, which is of this machine alone.
            "command": " ".join(["python", "benchmarks/gpu.py", *(Path(word).name for word in sys.argv[1:])]),
            "machine": f"{hardware(self.device, 1)}, {os.cpu_count()} cores, {platform.system()}",
            "versions": installed() | {"python": platform.python_version(), "cuda": torch.version.cuda},
            "precision": "bfloat16" if args.bf16 else "float32",
        }

    def part(self, name: str, until: float, measure):
        """Let `measure` fill the part's results until so many seconds have passed since the start."""
        self.name, self.deadline, begin = name, START + until, time.perf_counter()
        self.parts[name] = {"run": self.about, "results": {}, "skipped": {}, "errors": {}}
        print(f"== {name}: {self.left():.0f} s", flush=True)
        with self.unit(name):
            measure(self, self.settings, self.parts[name]["results"])
        self.parts[name]["seconds"] = round(time.perf_counter() - begin, 1)
        self.write()

    def left(self) -> float:
        """Seconds until the part has to end."""
        return self.deadline - time.perf_counter()

    def skip(self, what: str, why: str):
        print(f"   {what}: skipped, {why}", flush=True)
        self.parts[self.name]["skipped"][what] = why

    def fits(self, what: str, seconds: float) -> bool:
        """Whether there is the time for it; if not, it is skipped."""
        if seconds > (left := self.left()):
            self.skip(what, f"takes about {seconds:.0f} s, {max(left, 0):.0f} s were left")
            return False
        return True

    @contextlib.contextmanager
    def unit(self, what: str):
        """What may fail without ending anything else."""
        begin, failed = time.perf_counter(), ""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            text = str(error).strip().split("\n")[0]
            self.parts[self.name]["errors"][what] = f"{type(error).__name__}: {text}"[:500]
            failed = "failed after "
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"   {what}: {failed}{time.perf_counter() - begin:.1f} s", flush=True)
        self.write()

    def write(self):
        if self.args.output is not None:
            scratch = self.args.output.with_suffix(".tmp")
            scratch.write_text(json.dumps({"parts": self.parts}, indent=1) + "\n")
            os.replace(scratch, self.args.output)


def installed() -> dict[str, str | None]:
    found = {}
    for name in ("torch", "torchvision", "timm", "transformers", "accelerate", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


# The effect


def effect(run: Run, settings: Settings, results: dict):
    """Pre-train and judge; 400 epochs where there is the time, the same number for all where not."""
    images = solar_cells(run, settings)
    if images is None:
        return
    starts = [(e, s) for e in settings.encoders for s in STARTS if e.stages or "multiscale" not in s]
    schedules, tuning = choose(run, settings, starts, images, results)
    encoders = {}  # encoder, start: configuration, weights (`None`: those of timm), seconds of a step of fine-tuning
    results["pre-training"], results["judged"] = {}, []
    for encoder, start in starts:
        name = f"{encoder.architecture}, {start}"
        config = configuration(encoder, start, settings)
        if start == STARTS[0]:
            encoders[name] = (encoder, start, config, None)
            continue
        schedule, seconds = schedules[name]
        if run.fits(f"pre-training of {name}", seconds):
            with run.unit(f"pre-training of {name}"):
                model, found = pretrain(config, images["train"], images["test"], schedule)
                encoders[name] = (encoder, start, config, model.a2mim.encoder.state_dict())
                results["pre-training"][name] = found | {"epochs": results["epochs"], "steps": schedule.steps}
                report_graph(run, name, found)
    for name, known in encoders.items():
        if run.fits(f"linear probe of {name}", PROBING):
            with run.unit(f"linear probe of {name}"):
                results["judged"] += probe(run, settings, *known, images)
    for labels, name in itertools.product(settings.labels, encoders):
        what, (schedule, seconds) = f"fine-tuning of {name} with {labels} labels", tuning[name.split(", ")[0], labels]
        if run.fits(what, seconds):
            with run.unit(what):
                results["judged"] += tune(run, settings, *encoders[name], images, labels, schedule)


def solar_cells(run: Run, settings: Settings) -> dict | None:
    """Images on the device, and labels; with --small a few of them, or if there are none, of a stand-in."""
    count = settings.images
    if IMAGES.exists():
        images = {}
        for split in ("train", "test"):
            images[split], images[f"{split}_labels"] = load(IMAGES, split, settings.size, run.device)
        images["name"] = IMAGES.stem
    elif run.args.small:
        generator, images = torch.Generator().manual_seed(0), {"name": "a synthetic stand-in"}
        for split in ("train", "test"):  # noise, on every other image with a bright bar
            pixels = torch.randint(0, 128, (count, 1, settings.size, settings.size), generator=generator)
            pixels[1::2, :, :, 20:28] += 100
            images[split], images[f"{split}_labels"] = pixels.byte().to(run.device), np.arange(count) % 2
    else:
        run.skip("effect", f"{IMAGES.relative_to(ROOT)} is missing: python benchmarks/images.py --sets solar_cells")
        return None
    run.parts[run.name]["images"] = images["name"]
    for split in ("train", "test"):
        order = np.argsort(images[f"{split}_labels"], kind="stable")  # few images, but of both classes
        kept = slice(None) if count is None else np.sort(np.concatenate([order[: count // 2], order[-count // 2 :]]))
        images[split], images[f"{split}_labels"] = images[split][kept], images[f"{split}_labels"][kept]
    images["train_known"] = torch.from_numpy(images["train_labels"]).to(run.device)
    return images


def configuration(encoder: Encoder, start: str, settings: Settings) -> A2MIMConfig:
    make = A2MIMConfig.simmim if start == "SimMIM" else A2MIMConfig.for_architecture
    return make(
        encoder.architecture,
        model_args=encoder.model_args,
        image_size=settings.size,
        mask_patch_size=settings.cell,
        num_channels=1,
        **({"decoder": "multiscale"} if "multiscale" in start else {}),
    )


def choose(run: Run, settings: Settings, starts: list, images: dict, results: dict) -> tuple[dict, dict]:
    """How long everything is trained, from the time of a few steps: as long as the settings say, or if that takes
    more than 90% of the time that the probes leave, less by the same factor.

    Returns:
        {encoder, start: (Schedule, seconds)} of pre-training, and {(encoder, labels): (Schedule, seconds)} of the
        fine-tuning of one start.
    """
    common = {"bf16": run.args.bf16, "graph": not run.args.eager}
    per_epoch = len(images["train"]) / settings.batch_size
    schedules, tuning, speeds, total = {}, {}, {}, 0.0
    for encoder, start in starts:
        name = f"{encoder.architecture}, {start}"
        if start == STARTS[0]:
            config, own, around = configuration(encoder, start, settings), {}, []
            for labels, (_, batch_size, steps) in settings.labels.items():
                trial = Schedule(settings.trial, batch_size, encoder.rates[1], crop_scale=(0.6, 1.0), **common)
                begin = time.perf_counter()
                model, found = fine_tune(config, None, images["train"], images["train_known"], 2, trial)
                predict(model, images["test"], run.args.bf16)
                speed = found["steps_per_second"]
                around.append(time.perf_counter() - begin - settings.trial / speed)  # to build, record and test
                speeds[f"fine-tuning of {encoder.architecture}, batch of {batch_size}"] = speed
                own[labels] = (replace(trial, steps=steps), steps / speed)
            for labels, (schedule, seconds) in own.items():
                tuning[encoder.architecture, labels] = (schedule, settings.draws * (seconds + min(around)))
                total += sum(e is encoder for e, _ in starts) * tuning[encoder.architecture, labels][1]
        else:
            trial = Schedule(settings.trial, settings.batch_size, encoder.rates[0], **common)
            model, found = pretrain(configuration(encoder, start, settings), images["train"], images["test"], trial)
            del model
            speeds[f"pre-training of {name}"] = found["steps_per_second"]
            steps = round(settings.epochs * per_epoch)
            schedules[name] = (replace(trial, steps=steps), steps / found["steps_per_second"])
            total += schedules[name][1]
    factor = min(1.0, max(0.0, 0.9 * (run.left() - PROBING * len(starts))) / total)
    results |= {
        "epochs": max(1, int(settings.epochs * factor)),
        "factor": round(factor, 3),
        "trial_steps_per_second": speeds,
        "size": settings.size,
        "mask_patch_size": settings.cell,
        "batch_size": settings.batch_size,
        "learning_rates": {e.architecture: {"pre-training": e.rates[0], TUNED: e.rates[1]} for e in settings.encoders},
        "augmentation": "crops of 80 to 100% of the area (fine-tuning 60 to 100%), flips",
        "images": {split: len(images[split]) for split in ("train", "test")},
    }
    for chosen in (schedules, tuning):
        for key, (schedule, seconds) in chosen.items():
            steps = max(2, round(schedule.steps * factor))
            if chosen is schedules:
                steps = max(2, round(results["epochs"] * per_epoch))
            chosen[key] = (replace(schedule, steps=steps), seconds * steps / schedule.steps)
    results["fine_tuning"] = {
        f"{labels} labels": {"batch_size": s.batch_size, "steps": s.steps}
        for (name, labels), (s, _) in tuning.items()
        if name == settings.encoders[0].architecture
    }
    print(
        f"   {results['epochs']} epochs of pre-training and {factor:.0%} of the steps of fine-tuning: all of it takes "
        f"about {total:.0f} s, {run.left():.0f} s are left; steps/s: {json.dumps(speeds)}",
        flush=True,
    )
    return schedules, tuning


def report_graph(run: Run, name: str, found: dict):
    if "graph_failure" in found:
        run.skip(f"CUDA graph of {name}", f"{found['graph_failure']}; its steps ran without")


def subsets_of(settings: Settings, labels: str, known: np.ndarray) -> list[list[int]]:
    """The rows of each draw; of all labels there is but one."""
    count = settings.labels[labels][0]
    if count is None:
        return [list(range(len(known)))]
    return [draw_subset(known, per_class=count, seed=seed) for seed in range(settings.draws)]


def probe(run: Run, settings: Settings, encoder: Encoder, start: str, config, weights, images: dict) -> list[dict]:
    torch.manual_seed(0)
    core = A2MIMModel(config, use_mask_token=False)
    if weights is not None:
        core.encoder.load_state_dict({name: weights[name] for name in core.plan.names}, strict=False)
    core, rows = core.to(run.device), []
    train, test = (features(core, images[split], run.args.bf16) for split in ("train", "test"))
    for name in train:
        for labels in settings.labels:
            subsets = subsets_of(settings, labels, images["train_labels"])
            logits = linear_probes(train[name], images["train_labels"], test[name], subsets)
            for draw, of_draw in enumerate(logits):
                row = {"encoder": encoder.architecture, "start": start, "method": f"probe, {name}", "labels": labels}
                rows.append(row | {"draw": draw} | scores(of_draw, images["test_labels"]))
    return rows


def tune(run, settings, encoder, start, config, weights, images, labels: str, schedule: Schedule) -> list[dict]:
    subsets, rows, known = subsets_of(settings, labels, images["train_labels"]), [], images["train_known"]
    for draw in range(settings.draws):
        chosen = torch.tensor(subsets[draw % len(subsets)], device=run.device)
        own = replace(schedule, seed=draw)
        model, found = fine_tune(config, weights, images["train"][chosen], known[chosen], 2, own)
        row = {"encoder": encoder.architecture, "start": start, "method": TUNED, "labels": labels, "draw": draw}
        row |= scores(predict(model, images["test"], run.args.bf16), images["test_labels"])
        rows.append(row | {"steps_per_second": found["steps_per_second"]})
        report_graph(run, f"fine-tuning of {encoder.architecture}, {start}, {labels} labels", found)
    return rows


# The cost


class Supervised(nn.Module):
    """timm's own supervised training of the encoder."""

    def __init__(self, config: A2MIMConfig):
        super().__init__()
        self.encoder = A2MIMModel(config, use_mask_token=False).plan.create(1000)

    def forward(self, pixel_values, mask):
        labels = torch.arange(len(pixel_values), device=pixel_values.device) % 1000
        return F.cross_entropy(self.encoder(pixel_values), labels)


def build(config: A2MIMConfig, kind: str) -> nn.Module:
    """A variant of `benchmarks/step.py`, or supervised training."""
    if kind == SUPERVISED:
        return Supervised(config)
    model = A2MIMForPreTraining(config)
    return step.Ours(model, kind) if kind == step.OURS else step.Floor(model, kind == step.DECODER)


def step_args(run: Run, settings: Settings, compiled: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        device=run.device.type,
        bf16=run.args.bf16,
        channels_last=True,
        compile=compiled,
        rounds=settings.rounds,
        steps=settings.repeats,
    )


def summarise(result: dict, batch_size: int) -> dict:
    """{variant: {"images_per_second", "peak_gib", floor: `step.ratio`}}"""
    floors = [floor for floor in (step.ENCODER, step.DECODER, SUPERVISED) if floor in result]
    table = {}
    for kind, found in result.items():
        seconds = float(np.median(found["seconds"]))
        table[kind] = {"images_per_second": round(batch_size / seconds, 1), "milliseconds": round(1000 * seconds, 2)}
        table[kind] |= {"peak_gib": round(found["memory"] / 2**30, 3)}
        table[kind] |= {floor: step.ratio(result, kind, floor) for floor in floors}
    return table


def steps(run: Run, settings: Settings, results: dict):
    """`benchmarks/step.py` with supervised training beside it."""
    args, longest = step_args(run, settings), 5.0
    for name, batch_size in settings.steps:
        what = f"{name}, batch of {batch_size}"
        if run.fits(what, longest):
            begin = time.perf_counter()
            with run.unit(what):
                torch.manual_seed(0)
                config = step.ENCODERS[name]
                found = step.variants(name, args)
                found[SUPERVISED] = step.Variant(build(config, SUPERVISED), config, args)
                results[what] = summarise(step.measure(name, batch_size, args, found), batch_size)
                del found
            longest = max(longest, time.perf_counter() - begin)


def compiled(run: Run, settings: Settings, results: dict):
    """The same with torch.compile, of as many variants as there is the time to compile."""
    args, longest = step_args(run, settings, compiled=True), 0.0
    for name, batch_size in settings.compiled:
        found, config = {}, step.ENCODERS[name]
        for kind in settings.kinds:
            what, begin = f"{name}, batch of {batch_size}, {kind}", time.perf_counter()
            if run.fits(what, longest or COMPILING):
                with run.unit(what):
                    variant = step.Variant(build(config, kind), config, args)
                    variant.time(variant.batch(batch_size))
                    found[kind] = variant
                longest = max(longest, time.perf_counter() - begin)
        if found:
            with run.unit(f"{name}, measured"):
                result = summarise(step.measure(name, batch_size, args, found), batch_size)
                results[f"{name}, batch of {batch_size}"] = result
        found.clear()
        torch._dynamo.reset()


def fourier(run: Run, settings: Settings, results: dict):
    """What share of a step the Fourier term takes: of A2MIM as it is trained (the batch averaged before the
    transform), and with the spectrum of each image, as the paper's equation has it."""
    args, longest = step_args(run, settings), 3.0
    for name, batch_size in settings.steps[:4]:
        what = f"{name}, batch of {batch_size}"
        if not run.fits(what, longest):
            continue
        begin = time.perf_counter()
        with run.unit(what):
            torch.manual_seed(0)
            config = step.ENCODERS[name].to_dict()
            weight, found = config["frequency_loss_weight"] or 0.5, {}
            kinds = {"without": (0.0, True), "with": (weight, True), "each image": (weight, False)}
            for kind, (own, average) in kinds.items():
                fields = {"frequency_loss_weight": own, "frequency_batch_average": average}
                changed = A2MIMConfig.from_dict({**config, **fields})
                found[kind] = step.Variant(build(changed, step.OURS), changed, args)
            result = step.measure(name, batch_size, args, found)
            seconds = {kind: np.array(of["seconds"]) for kind, of in result.items()}
            results[what] = {
                kind: {
                    "milliseconds": round(1000 * float(np.median(seconds[kind])), 2),
                    "share": round(float(np.median(1 - seconds["without"] / seconds[kind])), 4),
                    "peak_gib": round(result[kind]["memory"] / 2**30, 3),
                }
                for kind in found
            }
            del found
        longest = max(longest, time.perf_counter() - begin)


def interactions(run: Run, settings: Settings, results: dict):
    """Ours and the straightforward evaluation of the same pairs and contexts, of encoders with random weights."""
    longest, dtype = 5.0, torch.bfloat16 if run.args.bf16 else None
    args = {"grid": 4 if run.args.small else 14, "pairs": settings.pairs, "contexts": settings.contexts}
    args = SimpleNamespace(**args, seed=0, rounds=2, batch_size=settings.masked)
    for name in settings.interactions:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=1000).to(run.device).eval()
        images = torch.randn(args.rounds, 3, settings.pixels, settings.pixels, device=run.device)
        with torch.inference_mode(), torch.autocast(run.device.type, dtype, enabled=dtype is not None):
            for count in (4 * args.contexts, args.batch_size):  # the first pass of a size is slow
                logits_of(model, images[:1].expand(count, -1, -1, -1))
        for sampling in ("shared", "windows"):
            what, begin = f"{name}, {sampling}", time.perf_counter()
            if run.fits(what, longest):
                with run.unit(what):
                    results[what] = compare_times(model, images, [0] * args.rounds, args, sampling, dtype)
                longest = max(longest, time.perf_counter() - begin)


# Tables


def table(title: str, lines: list[list[str]]):
    print(f"\n{title}\n\n{markdown_table(lines[0], lines[1:])}")


def interval(values: list[float], others: list[float] | None = None) -> str:
    """Mean and 95% interval of values, or of `others - values`."""
    if mean_and_interval is None:
        return f"{np.mean(values) if others is None else np.mean(np.subtract(others, values)):.3f}"
    return str(mean_and_interval(values) if others is None else paired_difference(values, others))


def effect_tables(results: dict):
    lines = [["pre-training", "epochs", "steps/s", "seconds", "masked PSNR", "mean fill", "blur", "gain (dB)"]]
    for name, found in results.get("pre-training", {}).items():
        last = found["points"][-1]
        errors = [last[f"{guess}_psnr"] for guess in ("masked", "mean_fill", "blur")]
        cells = [found["epochs"], found["steps_per_second"], found["seconds"], *errors]
        lines.append([name, *map(str, cells), f"{errors[0] - errors[1]:+.2f}"])
    table("Pre-training; errors of the masked pixels of the test images", lines)
    groups: dict[tuple, dict] = {}
    for row in results.get("judged", []):
        group = groups.setdefault((row["encoder"], row["start"]), {})
        group.setdefault((row["method"], row["labels"]), []).append(row)
    columns = list(dict.fromkeys(column for found in groups.values() for column in found))
    for metric, title in METRICS.items():
        values = {
            group: {column: [row[metric] for row in rows] for column, rows in found.items()}
            for group, found in groups.items()
        }
        for methods in (lambda method: method == TUNED, lambda method: method != TUNED):
            chosen = [column for column in columns if methods(column[0])]
            lines = [["", *(f"{method.removeprefix('probe, ')}, {labels}" for method, labels in chosen)]]
            for group, found in values.items():
                cells = [interval(found[column]) if column in found else "-" for column in chosen]
                lines.append([", ".join(group), *cells])
            if chosen:
                method = TUNED if chosen[0][0] == TUNED else "linear probe"
                table(f"{title} on the test images, {method} (mean and 95% interval; labels of each class)", lines)
        if metric == "auroc":
            chosen = [column for column in columns if column[0] == TUNED]
            lines = [["", *(f"{labels} labels" for _, labels in chosen)]]
            for (encoder, start), found in values.items():
                for base in STARTS[:2]:
                    other = values.get((encoder, base), {})
                    if start.startswith("A2MIM"):
                        cells = [interval(other[c], found[c]) if c in found and c in other else "-" for c in chosen]
                        lines.append([f"{encoder}, {start} - {base}", *cells])
            table("Difference in AUROC after fine-tuning (paired by draw)", lines)


def steps_tables(results: dict, title: str = "A step, eager"):
    for name, found in results.items():
        floors = {step.ENCODER: "/ encoder", step.DECODER: "/ enc. + dec.", SUPERVISED: "/ supervised"}
        floors = {floor: label for floor, label in floors.items() if floor in found}
        lines = [["", "images/s", "ms", *(f"time {label}" for label in floors.values()), "GiB", "memory / encoder"]]
        for kind, row in found.items():
            cells = [f"{row[f]['time']:.3f} ({row[f]['low']:.3f}-{row[f]['high']:.3f})" for f in floors]
            memory = f"{row[step.ENCODER]['memory']:.3f}" if step.ENCODER in row else "-"
            cells += [f"{row['peak_gib']:.2f}", memory]
            lines.append([kind, f"{row['images_per_second']:,}", str(row["milliseconds"]), *cells])
        table(f"{title}: {name}", lines)
    lines = [["", "images/s", *(f"{kind} / {floor}" for kind, floor in SUMMARY), f"memory / {step.DECODER}"]]
    for name, found in results.items():
        if all(kind in found for kind in (step.OURS, step.ENCODER, step.DECODER)):
            own, cells = found[step.OURS], []
            for kind, floor in SUMMARY:
                row = found.get(kind, {}).get(floor)
                cells.append(f"{row['time']:.2f} ({row['low']:.2f}-{row['high']:.2f})" if row else "-")
            lines.append([name, f"{own['images_per_second']:,.0f}", *cells, f"{own[step.DECODER]['memory']:.3f}"])
    if lines[1:]:
        table(f"{title}, all encoders", lines)


def fourier_tables(results: dict):
    lines = [["", "without, ms", "with, ms", "share", "spectrum of each image, ms", "share"]]
    for name, found in results.items():
        cells = [str(found["without"]["milliseconds"])]
        for kind in ("with", "each image"):
            cells += [str(found[kind]["milliseconds"]), f"{found[kind]['share']:.1%}"]
        lines.append([name, *cells])
    table("The Fourier term's share of a step", lines)


def interactions_tables(results: dict):
    lines = [["", "seconds", "straightforward", "times faster (least-most)", "passes", "straightforward", "deviation"]]
    for name, found in results.items():
        middle, low, high = found["times_faster"]
        seconds = [f"{np.median(found['seconds'][kind]):.2f}" for kind in ("ours", "straightforward")]
        passes = [f"{found['forward_passes'][kind]:,}" for kind in ("ours", "straightforward")]
        deviation = f"{found['largest_relative_deviation_of_J']:.2g}"
        lines.append([name, *seconds, f"{middle} ({low}-{high})", *passes, deviation])
    table("Interaction strength of an image (random weights; deviation of J in this precision)", lines)


TABLES = {
    "effect": effect_tables,
    "steps": steps_tables,
    "fourier": fourier_tables,
    "interactions": interactions_tables,
    "compiled": lambda results: steps_tables(results, "A step, compiled"),
}
MEASURES = {f.__name__: f for f in (effect, steps, fourier, interactions, compiled)}


def report(parts: dict, output: Path | None):
    """Print the tables, the effect last, and what was skipped or failed; and write all of it beside `output`."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        tell(parts)
    print(text.getvalue())
    if output is not None:
        output.with_suffix(".md").write_text(text.getvalue().lstrip("\n"), encoding="utf-8")


def tell(parts: dict):
    for name in reversed(PARTS):
        if parts.get(name, {}).get("results"):
            TABLES[name](parts[name]["results"])
    if mean_and_interval is None:
        print("\nscipy is not installed: no intervals; the values of all draws are in the JSON")
    for about in {json.dumps(part["run"]): part["run"] for part in parts.values()}.values():
        of = [about["command"], about["machine"], about["precision"], json.dumps(about["versions"])]
        print("\n" + ", ".join(of) + "\n")
    for name, part in parts.items():
        print(f"- {name}: {part['seconds']} s, {len(part['skipped'])} skipped, {len(part['errors'])} failed")
        for what, why in part["skipped"].items():
            print(f"    - skipped: {what}: {why}")
        for what, why in part["errors"].items():
            print(f"    - FAILED: {what}: {why}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of them (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny encoders and few images, on a CPU")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs in the effect")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16, with --small float32")
    parser.add_argument("--output", type=Path, help="write the results there as JSON, and the tables beside it")
    parser.add_argument("--show", action="store_true", help="only print the tables of --output, and write them again")
    args = parser.parse_args()
    if args.show:
        report(json.loads(args.output.read_text())["parts"], args.output)
        return 0
    args.device = "cpu" if args.small else "cuda"
    args.bf16 = (args.dtype or ("float32" if args.small else "bfloat16")) == "bfloat16"
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that torch can use; --small runs on a CPU")
    if args.small:
        step.ENCODERS.update(SMALL_ENCODERS)
        torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    run, chosen = Run(args), [name for name in PARTS if name in args.parts]
    ends = list(itertools.accumulate(PARTS[name] for name in chosen))
    for name, end in zip(chosen, ends, strict=True):
        run.part(name, 60 * args.minutes * end / ends[-1], MEASURES[name])
    report(run.parts, args.output)
    return int(any(run.parts[name]["errors"] for name in chosen))


if __name__ == "__main__":
    sys.exit(main())
