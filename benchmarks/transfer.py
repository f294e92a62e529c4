"""What pre-training is worth: a CNN and a ViT, untrained, pre-trained with SimMIM and with A2MIM on the 10,000 bundled
images without their labels, then judged by fine-tuning, linear probe and k-NN with 10, 100 and all 1,000 labels of
each class. All through the two scripts; same schedules for all three.

    python benchmarks/transfer.py --output benchmarks/results     # an hour on 2 cores; goes on where it was stopped
"""

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.demo import SMALL  # noqa: E402
from modeling_a2mim.evaluation.summary import mean_and_interval, paired_difference  # noqa: E402
from modeling_a2mim.export.record import versions  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


ENCODERS = {"CNN": "convnext_atto", "ViT": "vit_tiny_patch16_224"}
STARTS = ("scratch", "SimMIM", "A2MIM")
METHODS = ("fine-tuning", "linear probe", "k-NN")
# Labels of each class, and passes of fine-tuning over so few or many images.
LABELS = {"10": (10, 25), "100": (100, 6), "all": (None, 1)}
SEEDS = 5
PASSES = 6


def commands(kind: str, folder: Path) -> list[tuple[str, list[str]]]:
    """What is run for one kind of encoder, in turn: (folder with the result, command line)."""
    name = ENCODERS[kind]
    small = SMALL[name]
    encoder = ["--architecture", name, "--num_channels", "1", "--image_size", "32"]
    encoder += ["--model_args", json.dumps(small["model_args"])]
    common = ["--use_cpu", "--disable_tqdm", "True", "--save_strategy", "no", "--dataloader_num_workers", "1"]
    rate = ["--learning_rate", str(small["learning_rate"])]
    found = []
    for start in STARTS[1:]:
        mask = small["mask"] if start == "A2MIM" else ["--preset", "simmim", "--mask_patch_size", "4"]
        schedule = ["--num_train_epochs", str(PASSES), "--per_device_train_batch_size", "128"]
        out = folder / f"{kind}-{start}"
        found.append(
            (out, ["run_pretraining.py", *encoder, *mask, *schedule, *rate, *common, "--output_dir", str(out)])
        )
    seeds = ["--seeds", *map(str, range(SEEDS)), "--per_device_eval_batch_size", "250"]
    for labels, (count, passes) in LABELS.items():
        few = [] if count is None else ["--labels_per_class", str(count)]
        for start in STARTS:
            source = encoder if start == "scratch" else ["--model_name_or_path", str(folder / f"{kind}-{start}")]
            # Masked pre-training teaches the class token nothing; the published settings leave it out as well.
            source = [*source, "--global_pool", "avg"] if kind == "ViT" else source
            frozen = folder / f"{kind}-{start}-{labels}-frozen"
            found.append(
                (
                    frozen,
                    [
                        "run_finetune.py",
                        *source,
                        *few,
                        *seeds,
                        *common,
                        "--knn",
                        "--probe_layers",
                        "last",
                        "--probe_strength",
                        "0.1",
                        "--output_dir",
                        str(frozen),
                    ],
                )
            )
            tuned = folder / f"{kind}-{start}-{labels}-tuned"
            schedule = [
                "--num_train_epochs",
                str(passes),
                "--per_device_train_batch_size",
                "50",
                "--eval_strategy",
                "no",
            ]
            schedule += ["--crop_scale", "0.6", "1", *rate]
            found.append(
                (tuned, ["run_finetune.py", *source, *few, *seeds, *common, *schedule, "--output_dir", str(tuned)])
            )
    return found


def run_all(kind: str, folder: Path):
    """Run what has no result yet, in this process."""
    import torch

    import run_finetune
    import run_pretraining

    torch.set_num_threads(1)
    scripts = {"run_pretraining.py": run_pretraining.main, "run_finetune.py": run_finetune.main}
    for out, (script, *argv) in commands(kind, folder):
        done = "model.safetensors" if script == "run_pretraining.py" else "results.json"
        if (out / done).is_file():
            continue
        start = time.time()
        if "--seeds" in argv and "--knn" not in argv:
            argv += ["--resume_from_checkpoint", "last"]  # the seeds that are done are left as they are
        scripts[script](argv)
        logging.getLogger("a2mim").info("%s: %.0f s", out.name, time.time() - start)


def accuracies(folder: Path) -> dict:
    """{encoder: {method: {labels: {start: accuracy of each seed}}}}"""
    table = {}
    for kind in ENCODERS:
        for labels in LABELS:
            for start in STARTS:
                rows = []
                for part in ("frozen", "tuned"):
                    rows += json.loads((folder / f"{kind}-{start}-{labels}-{part}" / "results.json").read_text())[
                        "results"
                    ]
                for row in rows:
                    method = {"k-NN": "k-NN", "logistic regression": "linear probe"}.get(row["method"], "fine-tuning")
                    cells = table.setdefault(kind, {}).setdefault(method, {}).setdefault(labels, {})
                    cells.setdefault(start, []).append(round(row["accuracy"], 4))
    return table


def as_markdown(table: dict) -> str:
    columns = ["", "labels of each class", "scratch", "SimMIM", "A2MIM", "A2MIM - scratch", "A2MIM - SimMIM"]
    rows = []
    for kind, methods in table.items():
        for method in METHODS:
            for labels, cells in methods[method].items():
                line = [f"{kind}, {method}", labels, *(str(mean_and_interval(cells[start])) for start in STARTS)]
                line += [difference(cells[start], cells["A2MIM"]) for start in STARTS[:2]]
                rows.append(line)
    return markdown_table(columns, rows)


def difference(one: list[float], other: list[float]) -> str:
    """Seed by seed, where both have one value for each; bold where the interval leaves 0 out."""
    if len(one) != len(other):  # all labels and a frozen pre-trained encoder: no seed changes anything
        return f"{np.mean(other) - np.mean(one):+.3f}"
    mean, half = paired_difference(one, other)
    text = f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")
    return f"**{text}**" if half is not None and abs(mean) > half else text


def draw(table: dict, path: Path):
    """Accuracy by the number of labels, a panel for each encoder and method."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    for panel, (kind, method) in enumerate((kind, method) for kind in table for method in METHODS):
        axes = figure.add_subplot(2, 3, panel + 1)
        for place, start in enumerate(STARTS):
            values = [mean_and_interval(cells[start]) for cells in table[kind][method].values()]
            axes.errorbar(
                np.arange(len(LABELS)) + 0.06 * (place - 1),
                [value.mean for value in values],
                [value.half_width or 0 for value in values],
                marker="o",
                capsize=3,
                label=start,
            )
        axes.set_xticks(range(len(LABELS)), ["10", "100", "1,000 (all)"])
        axes.set_title(f"{kind}, {method}")
        axes.grid(alpha=0.3)
        if panel % 3 == 0:
            axes.set_ylabel("accuracy on 2,000 test images")
        if panel >= 3:
            axes.set_xlabel("labels of each class")
    axes.legend()
    figure.savefig(path, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", default="benchmarks/results", help="folder for transfer.json, .md and .png")
    parser.add_argument("--folder", default="transfer", help="where everything that is trained goes")
    parser.add_argument("--kind", choices=list(ENCODERS), help="run only this one, in this process")
    args = parser.parse_args()
    folder, output = Path(args.folder), Path(args.output)
    if args.kind:
        return run_all(args.kind, folder)
    me = [sys.executable, str(Path(__file__).resolve()), "--folder", str(folder), "--kind"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*me, kind], env=environment) for kind in ENCODERS]
    failed = [process.wait() for process in running]
    if any(failed):
        sys.exit("a part failed; what is done is kept")
    table = accuracies(folder)
    record = {
        "command": "python benchmarks/transfer.py",
        "commands": [shlex.join(argv) for kind in ENCODERS for _, argv in commands(kind, Path("transfer"))],
        "accuracy": table,
        "machine": f"{os.cpu_count()} cores",
        "versions": versions(),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "transfer.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / "transfer.md").write_text(as_markdown(table) + "\n")
    draw(table, output / "transfer.png")
    print(as_markdown(table))


if __name__ == "__main__":
    main()
