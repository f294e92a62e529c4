"""Which learning rate teaches an encoder anything, by batch, size and kind of encoder, and how many steps it takes:
the measurements behind the default rate and `--num_train_epochs auto`.

Every run pre-trains on solar cells or Fashion-MNIST at 64 px with cells of 8 px, all images in memory, and is judged
by the error of the masked pixels of 256 test images, in dB above the mean fill. Results are kept as they come; a run
that is there is not made again.

    python benchmarks/images.py
    python benchmarks/rates.py --output benchmarks/results/rates.json [--only solar_cells resnet18]
"""

import argparse
import itertools
import json
import os
import platform
import sys
from pathlib import Path

import timm
import torch
import transformers
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.images import FOLDER  # noqa: E402
from benchmarks.in_memory import Schedule, load, pretrain  # noqa: E402
from modeling_a2mim import A2MIMConfig  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


ENCODERS = {
    "convnext 0.4M": ("convnext_atto", {"dims": [24, 48, 96, 192], "depths": [1, 1, 2, 1]}),
    "resnet10t": ("resnet10t", {}),
    "resnet18": ("resnet18", {}),
    "vit 0.5M": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}),
    "vit_tiny": ("vit_tiny_patch16_224", {"patch_size": 8}),
    "vit 11M": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 288, "depth": 11, "num_heads": 6}),
}
SETS = ("solar_cells", "fashion_mnist")
SIZE, CELL = 64, 8  # pixels
RATES = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3)
HEAD = """How much nearer the masked pixels of test images come than the mean colour of each image, in dB (PSNR), by
learning rate; the best of each row is bold, "published rule" is 1.5e-4 times batch / 256. `make rates` makes this
table; machine, versions and the way there of each run are in [rates.json](rates.json)."""
PUBLISHED = 1.5e-4 / 256  # for each image of the batch


def plan() -> list[dict]:
    """What is run, in this order."""
    runs = []

    def add(sets, encoders, batches, steps=300, rates=RATES, decoders=("linear",)):
        for batch, encoder, name, decoder in itertools.product(batches, encoders, sets, decoders):
            for rate in (*rates, PUBLISHED * batch) if decoder == "linear" else rates:
                run = {"set": name, "encoder": encoder, "decoder": decoder, "batch_size": batch}
                runs.append(run | {"steps": steps, "learning_rate": round(rate, 9)})

    solar, fashion = SETS[:1], SETS[1:]
    small, large, fewer = ("convnext 0.4M", "vit 0.5M"), ("resnet18", "vit_tiny"), RATES[:4]
    add(solar, small, (16,))
    add(solar, large, (16,), steps=200, rates=fewer)
    add(solar, small, (64,))
    add(solar, ("convnext 0.4M", "resnet18"), (16,), steps=200, rates=fewer, decoders=("multiscale",))
    add(fashion, small, (16,), rates=fewer)
    add(solar, small, (256,), steps=200, rates=RATES[1:])
    add(fashion, large, (16,), steps=200, rates=fewer)
    add(fashion, small, (64,), rates=fewer)
    add(solar, ("resnet18",), (64,), steps=200, rates=fewer)
    add(solar, ("convnext 0.4M",), (64,), steps=200, rates=fewer, decoders=("multiscale",))
    add(solar, ("resnet10t", "vit 11M"), (16,), steps=200, rates=fewer)
    add(solar, ("vit_tiny",), (64,), steps=200, rates=fewer)
    add(fashion, ("convnext 0.4M",), (64,), steps=200, rates=fewer, decoders=("multiscale",))
    return runs


def config_of(run: dict) -> A2MIMConfig:
    architecture, model_args = ENCODERS[run["encoder"]]
    return A2MIMConfig.for_architecture(
        architecture,
        model_args=model_args,
        image_size=SIZE,
        mask_patch_size=CELL,
        num_channels=1,
        decoder=run["decoder"],
    )


def key(run: dict) -> str:
    return ", ".join(str(run[name]) for name in ("set", "encoder", "decoder", "batch_size", "steps", "learning_rate"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="run what has all of these in its name")
    parser.add_argument("--half", type=int, choices=(0, 1), help="run every other one, to share the work of two")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = {}
    runs = [run for run in plan() if all(word in key(run).split(", ") for word in args.only)]
    runs = runs if args.half is None else runs[args.half :: 2]
    for number, run in enumerate(tqdm(runs, unit=" runs")):
        known = json.loads(args.output.read_text())["runs"] if args.output.exists() else {}
        if key(run) in known:
            continue
        name = run["set"]
        if name not in images:
            path = FOLDER / f"{name}.npz"
            images[name] = [load(path, split, SIZE)[0] for split in ("train", "test")]
            images[name][1] = images[name][1][:256]
        config = config_of(run)
        schedule = Schedule(run["steps"], run["batch_size"], run["learning_rate"], points=(0.25, 0.5, 0.75, 1.0))
        model, result = pretrain(config, *images[name], schedule)
        result |= {"parameters": sum(p.numel() for p in model.a2mim.encoder.parameters())}
        last = result["points"][-1]
        gain = last["masked_psnr"] - last["mean_fill_psnr"]
        tqdm.write(f"{number + 1}/{len(runs)} {key(run)}: {gain:+.2f} dB, {result['seconds']:.0f} s")
        write(args.output, key(run), run | result)
    record = json.loads(args.output.read_text())
    args.output.with_suffix(".md").write_text(f"{HEAD}\n\n{table(record)}\n")


def table(record: dict) -> str:
    """What was found, a row for each set, encoder, decoder and batch: the gain over the mean fill at each rate."""
    rates = sorted({run["learning_rate"] for run in record["runs"].values()} & set(RATES))
    head = ["images", "encoder", "decoder", "batch", "steps", "published rule", *(f"{rate:g}" for rate in rates)]
    lines = []
    groups: dict[tuple, dict] = {}
    for run in record["runs"].values():
        row = tuple(run[name] for name in ("set", "encoder", "decoder", "batch_size", "steps"))
        last = run["points"][-1]
        groups.setdefault(row, {})[run["learning_rate"]] = last["masked_psnr"] - last["mean_fill_psnr"]
    for row, gains in sorted(groups.items()):
        published = gains.get(round(PUBLISHED * row[3], 9))
        cells = map(gains.get, rates)
        best = max(gains.values())
        text = ["" if v is None else f"**{v:+.2f}**" if v == best else f"{v:+.2f}" for v in (published, *cells)]
        lines.append([*row, *text])
    return markdown_table(head, lines)


def write(path: Path, name: str, result: dict):
    """Add a result to what others, who may run beside this one, have written."""
    record = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    record["command"] = "python benchmarks/rates.py --output benchmarks/results/rates.json"
    record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread each run, {platform.system()}"
    record["versions"] = {m.__name__: m.__version__ for m in (torch, timm, transformers)}
    record["versions"]["python"] = platform.python_version()
    record["runs"][name] = result
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(scratch, path)


if __name__ == "__main__":
    main()
