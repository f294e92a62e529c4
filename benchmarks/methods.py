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

Goes on where it was stopped; several may write one file. The encoders are left in --folder as plain timm checkpoints,
which `run_finetune.py --model_name_or_path` takes. With --gpu, see `methods_gpu.py`.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.images import FOLDER  # noqa: E402
from benchmarks.in_memory import Schedule, Step, features, fine_tune, load, moved, normalize, predict, train  # noqa: E402
from benchmarks.judging import FOLDS, linear_probes, scores  # noqa: E402
from benchmarks.methods_table import plot, tables  # noqa: E402
from benchmarks.rates import CELL, SIZE  # noqa: E402
from benchmarks.rates import ENCODERS as SIZES  # noqa: E402
from benchmarks.rivals import METHODS, Supervised  # noqa: E402
from modeling_a2mim import A2MIMConfig, A2MIMModel  # noqa: E402
from modeling_a2mim.data.subsets import draw_subset  # noqa: E402
from modeling_a2mim.evaluation.frozen import frozen_metrics, nearest_neighbors  # noqa: E402
from modeling_a2mim.export.folder import export_model  # noqa: E402


POOLED = {"global_pool": "avg", "fc_norm": False}  # masked pre-training teaches the class token nothing
ENCODERS = {
    "convnext 0.4M": (*SIZES["convnext 0.4M"], "multiscale"),
    "vit 0.5M": (SIZES["vit 0.5M"][0], SIZES["vit 0.5M"][1] | POOLED, "linear"),
}
SETS = ("solar_cells", "fashion_mnist_60000")
SCRATCH = "scratch"
ORDER = (SCRATCH, *METHODS)
BATCH = 64
RATES, TRIAL = [3e-4, 1e-3, 3e-3], 0.2
# Labels of each class (`None`: all), images in a batch at most, and steps of fine-tuning, and its learning rate.
LABELS = {"10": (10, 64, 100), "50": (50, 64, 100), "all": (None, 64, 200)}
TUNING_RATE = 1e-3
MANY = 5000  # images, from which on one fold chooses the decay of a linear probe
ENDS = 20  # steps at either end of training over which the loss is averaged


def config_of(encoder: str) -> A2MIMConfig:
    architecture, model_args, decoder = ENCODERS[encoder]
    shape = {"image_size": SIZE, "mask_patch_size": CELL, "num_channels": 1, "decoder": decoder}
    return A2MIMConfig.for_architecture(architecture, model_args=model_args, **shape)


def learn(method: str, config: A2MIMConfig, images: torch.Tensor, labels: torch.Tensor, schedule: Schedule) -> tuple:
    """Pre-train on uint8 images.

    Returns:
        The weights of the encoder, and {"cpu_seconds", "steps_per_second", "first_loss", "last_loss", ...}.
    """
    torch.manual_seed(schedule.seed)
    device, extra = images.device, {}
    if METHODS[method] is Supervised:
        extra = {"classes": int(labels.max()) + 1}
    model = moved(METHODS[method](config, schedule.steps, **extra), device).train()
    generator = torch.Generator(device).manual_seed(schedule.seed)
    losses = torch.zeros(schedule.steps + 8, device=device)  # a step that is recorded is tried before
    place = torch.zeros(1, dtype=torch.long, device=device)

    def make(rows):
        return model.inputs(normalize(images[rows], config), labels[rows], generator)

    def loss(*inputs):
        found = model(*inputs)
        losses.index_copy_(0, place, found.detach().float().view(1))
        place.add_(1)
        return found

    begin = time.process_time()
    step = Step(model, model.groups(schedule.learning_rate), loss, schedule)
    result = train(step, make, len(images), schedule)
    ends = min(ENDS, max(1, schedule.steps // 2))
    known = losses[: int(place)]
    found = {
        "cpu_seconds": round(time.process_time() - begin, 1),
        "steps_per_second": result["steps_per_second"],
        "first_loss": round(float(known[:ends].mean()), 4),
        "last_loss": round(float(known[-ends:].mean()), 4),
    }
    return model.encoder_weights(), found | {key: result[key] for key in ("graph_failure",) if key in result}


def encoder_with(config: A2MIMConfig, weights: dict[str, torch.Tensor] | None, seed: int) -> A2MIMModel:
    """The encoder with these weights; `None`: with the random ones of a seed."""
    torch.manual_seed(seed)
    core = A2MIMModel(config)
    if weights is not None:
        core.encoder.load_state_dict(weights)
    return core


def choose_rate(method: str, config: A2MIMConfig, data: tuple, steps: int) -> dict:
    """Try each rate on four fifths of the training images, and evaluate on the rest."""
    (images, labels), _ = data
    order = np.random.default_rng(0).permutation(len(images))
    fit, held = order[len(order) // 5 :], order[: len(order) // 5]
    tried = {}
    for rate in RATES:
        schedule = Schedule(steps, BATCH, rate)
        weights, _ = learn(method, config, images[fit], torch.from_numpy(labels[fit]), schedule)
        core = encoder_with(config, weights, 0)
        few = fit[:MANY], held[:MANY]
        own, others = (features(core, images[rows])["every stage"] for rows in few)
        logits = linear_probes(own, labels[few[0]], others, [list(range(len(own)))], 1)[0]
        tried[str(rate)] = round(scores(logits, labels[few[1]])["auroc"], 4)
    return {"steps": steps, "tried": tried, "chosen": float(max(tried, key=tried.get))}


def frozen_rows(core: A2MIMModel, data: tuple, draws: int) -> list[dict]:
    """Figures of linear probes and of nearest neighbors."""
    (images, labels), (test, known) = data
    own, others = features(core, images), features(core, test)
    subsets, names = [], []
    for name, (count, _, _) in LABELS.items():
        for draw in range(draws if count else 0):
            subsets.append(draw_subset(labels.tolist(), per_class=count, seed=draw))
            names.append((name, draw))
    subsets.append(list(range(len(labels))))
    names.append(("all", 0))
    rows = []
    for kind in own:
        # One at a time: all at once would compute each on the images of all.
        folds = [1 if len(subset) > MANY else FOLDS for subset in subsets]
        logits = [
            linear_probes(own[kind], labels, others[kind], [subset], held_out)[0]
            for subset, held_out in zip(subsets, folds, strict=True)
        ]
        for (name, draw), part in zip(names, logits, strict=True):
            rows.append({"by": f"probe, {kind}", "labels": name, "draw": draw, **scores(part, known)})
    for (name, draw), subset in zip(names, subsets, strict=True):
        neighbors = nearest_neighbors((own["last map"][subset].numpy(), labels[subset]))
        found = frozen_metrics(neighbors, (others["last map"].numpy(), known), len(np.unique(labels)))
        wanted = ("accuracy", "balanced_accuracy", "auroc", "average_precision")
        rows.append({"by": "k-NN", "labels": name, "draw": draw, **{key: found[key] for key in wanted}})
    return rows


def tuned_rows(config: A2MIMConfig, weights: dict[str, torch.Tensor] | None, data: tuple, draws: int, seed: int):
    """Figures of fine-tuning; of all labels, the draw is the seed of the training."""
    (images, labels), (test, known) = data
    rows = []
    for name, (count, batch_size, steps) in LABELS.items():
        for draw in range(draws):
            chosen = np.arange(len(labels))
            if count:
                chosen = np.array(draw_subset(labels.tolist(), per_class=count, seed=draw))
            schedule = Schedule(steps, min(batch_size, len(chosen)), TUNING_RATE, 100 * seed + draw)
            targets = torch.from_numpy(labels[chosen])
            model, _ = fine_tune(config, weights, images[chosen], targets, int(labels.max()) + 1, schedule)
            rows.append({"by": "fine-tuning", "labels": name, "draw": draw, **scores(predict(model, test), known)})
    return rows


def plan(seeds: list[int]) -> list[tuple[str, str, str, int]]:
    """What is run, in this order."""
    runs = [(s, e, m, seed) for s in SETS for seed in seeds for e in ENCODERS for m in ORDER]
    return [run for run in runs if run[2] != "MAE" or run[1].startswith("vit")]


def settings_of(args) -> dict:
    labels = {name: {"batch_size": batch, "steps": steps} for name, (_, batch, steps) in LABELS.items()}
    tuning = {"learning_rate": TUNING_RATE, "labels": labels}
    common = {"size": SIZE, "mask_patch_size": CELL, "batch_size": BATCH}
    return {"steps": args.steps, "draws": args.draws, "rates": RATES, "trial": TRIAL, **common, "fine-tuning": tuning}


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
    record["command"] = f"python benchmarks/methods.py --output {path.name}"
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread each run, {platform.system()}"
    record["versions"] = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
    return record


def add(path: Path, settings: dict, part: str, key: str, result: dict):
    """Add a result to what others, who may run beside this one, have written."""
    record = read(path, settings)
    record[part][key] = result
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(scratch, path)


def run(key: str, what: tuple, data: tuple, args, settings: dict):
    """Pre-train and evaluate; what is there of it is not made again."""
    name, encoder, method, seed = what
    config, common = config_of(encoder), f"{name}, {encoder}, {method}"
    result, weights = {"set": name, "encoder": encoder, "method": method, "seed": seed}, None
    if method != SCRATCH:
        folder = args.folder / key.replace(", ", "-").replace(" ", "-")
        (images, labels), _ = data
        if common not in read(args.output, settings)["rates"]:
            add(args.output, settings, "rates", common, choose_rate(method, config, data, round(TRIAL * args.steps)))
        rate = read(args.output, settings)["rates"][common]["chosen"]
        if (folder / "pretraining.json").exists():  # written last
            found, weights = (
                json.loads((folder / "pretraining.json").read_text()),
                load_file(folder / "model.safetensors"),
            )
        else:
            schedule = Schedule(args.steps, BATCH, rate, seed)
            weights, found = learn(method, config, images, torch.from_numpy(labels), schedule)
            export_model(encoder_with(config, weights, seed), folder)
            (folder / "pretraining.json").write_text(json.dumps(found))
        result |= {"pre-training": found | {"learning_rate": rate}}
    begin = time.process_time()
    rows = frozen_rows(encoder_with(config, weights, seed), data, args.draws)
    rows += tuned_rows(config, weights, data, args.draws, seed)
    rounded = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    add(
        args.output,
        settings,
        "runs",
        key,
        result | {"evaluation_cpu_seconds": round(time.process_time() - begin)} | {"rows": rounded},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="run what has all of these in its name")
    parser.add_argument("--steps", type=int, default=1000, help="of pre-training (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="of labels (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of pre-training (default: 0)")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "methods", help="for the encoders")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings, loaded = settings_of(args), {}
    chosen = [(", ".join(map(str, what)), what) for what in plan(args.seeds)]
    chosen = [(key, what) for key, what in chosen if all(word in key.split(", ") for word in args.only)]
    if not chosen:
        parser.error(f"--only: nothing has {args.only} in its name, such as {', '.join(map(str, plan([0])[1]))}")
    for number, (key, what) in enumerate(chosen):
        if key in read(args.output, settings)["runs"]:
            continue
        if not (FOLDER / f"{what[0]}.npz").exists():
            sys.exit(f"{what[0]}: no images; first python benchmarks/images.py --sets {what[0]}")
        if what[0] not in loaded:
            loaded = {what[0]: [load(FOLDER / f"{what[0]}.npz", split, SIZE) for split in ("train", "test")]}
        begin = time.time()
        run(key, what, loaded[what[0]], args, settings)
        print(f"{number + 1}/{len(chosen)} {key}: {time.time() - begin:.0f} s", flush=True)
        record = read(args.output, settings)
        args.output.with_suffix(".md").write_text(tables(record) + "\n")
        plot(record, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
