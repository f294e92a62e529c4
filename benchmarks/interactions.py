"""What interaction strength costs beside a straightforward evaluation of the same pairs and contexts: four forward
passes for each context, the masks of one pair built at a time, as the release does it. And what sharing contexts does
to the variance: fewer passes for the same interval are the real speed.

    python -m benchmarks.interactions [--models FOLDER ...] [--output benchmarks/results/interactions.json]

Without models: a small CNN and a small ViT with random weights.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import timm
import torch

from modeling_a2mim.analysis.comparison import DTYPES, load_model
from modeling_a2mim.analysis.contexts import SAMPLINGS
from modeling_a2mim.analysis.measurement import interaction_strength
from modeling_a2mim.data.loading import load_images
from modeling_a2mim.export.record import hardware, versions

from .demo import SMALL
from .straightforward import compare_times


def bundled(count: int, transform) -> tuple[torch.Tensor, list[int]]:
    rows = load_images(split="test").take(count)
    return torch.stack([transform(image)["pixel_values"] for image in rows["image"]]), rows["label"]


def compare_variances(model, images, labels, args) -> dict:
    """How much I(m) of an image varies with the pairs and contexts that are drawn, and what that costs."""
    found, ratios = {}, (0.1, 0.5, 0.9)
    for sampling in SAMPLINGS:
        values, passes = [], []
        for seed in range(args.draws):
            result = interaction_strength(
                model,
                images[: args.rounds],
                labels[: args.rounds],
                grid=args.grid,
                ratios=ratios,
                pairs=args.pairs,
                contexts=args.contexts,
                sampling=sampling,
                seed=seed,
                batch_size=args.batch_size,
            )
            values.append(result.per_image)
            passes.append(result.forward_passes)
        values = np.stack(values)  # (draws, images, orders)
        found[sampling] = {
            "mean": values.mean((0, 1)),
            "variance": values.var(0, ddof=1).mean(0),
            "between_images": values.mean(0).var(0, ddof=1),
            "passes": float(np.mean(passes)) / args.rounds,
        }
    # With one draw for each image, I(m) over N images has (variance of draws + variance between images) / N. The
    # latter is the same for all samplings, and known best from the one whose draws vary least.
    least = min(found.values(), key=lambda f: f["variance"].sum())
    between = np.maximum(least["between_images"] - least["variance"] / args.draws, 0)
    cost = {name: (f["variance"] + between) * f["passes"] for name, f in found.items()}
    return {
        "ratios": list(ratios),
        "draws": args.draws,
        "images": args.rounds,
        "samplings": {
            name: {key: np.round(value, 6).tolist() for key, value in values.items()}
            | {"fewer_passes_for_the_same_interval": np.round(cost["independent"] / cost[name], 2).tolist()}
            for name, values in found.items()
        },
    }


def subjects_of(args):
    """(name, model, images, labels)"""
    for source in args.models:
        named = load_model(source, kind="classifier")
        yield source, named.model.to(args.device), *bundled(args.rounds, named.transform)
    if not args.models:
        for name in ("convnext_atto", "vit_tiny_patch16_224"):
            small = SMALL[name]
            size = {"img_size": 32} if "vit" in name else {}
            model = timm.create_model(name, num_classes=10, in_chans=1, **small["model_args"], **size)
            rows = load_images(split="test").take(args.rounds)
            pixels = torch.stack([torch.from_numpy(np.asarray(i.resize((32, 32)), np.float32)) for i in rows["image"]])
            yield name, model.eval().to(args.device), pixels[:, None] / 127.5 - 1, rows["label"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=[], help="folders of classifiers of the bundled sample")
    parser.add_argument("--grid", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--contexts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="images")
    parser.add_argument("--draws", type=int, default=6, help="of pairs and contexts, for the variance")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    results = {}
    for name, model, images, labels in subjects_of(args):
        results[name] = {"variance": compare_variances(model, images, labels, args)}
        print(name, json.dumps(results[name]["variance"]), flush=True)
        for sampling in ("shared", "windows"):
            results[name][sampling] = compare_times(model, images, labels, args, sampling, DTYPES[args.dtype])
            print(name, sampling, json.dumps(results[name][sampling]), flush=True)
    record = {
        "command": " ".join(["python", "-m", "benchmarks.interactions", *sys.argv[1:]]),
        "settings": {name: getattr(args, name) for name in ("grid", "pairs", "contexts", "rounds", "draws", "dtype")},
        "results": results,
        "machine": f"{hardware(torch.device(args.device), 1)}, {platform.system()}",
        "versions": versions(),
    }
    if args.output is not None:
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    print("| | times faster (least, most) | passes | deviation of J | fewer passes for the same interval |")
    for name, found in results.items():
        for sampling in ("shared", "windows"):
            t, fewer = found[sampling], found["variance"]["samplings"][sampling]["fewer_passes_for_the_same_interval"]
            print(
                f"| {name}, {sampling} | {t['times_faster'][0]} ({t['times_faster'][1]}, {t['times_faster'][2]}) | "
                f"{t['forward_passes']['straightforward']:,} / {t['forward_passes']['ours']:,} | "
                f"{t['largest_relative_deviation_of_J']} | {fewer} |"
            )


if __name__ == "__main__":
    main()
