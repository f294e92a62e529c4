"""What the encoders of `first_run.py` are worth that ran to their end: `run_finetune.py` with 50 labels of each class,
5 draws of them, against random weights; frozen (k-NN and logistic regression) and fine-tuned, all defaults but for the
size and the channels of the images.

    python benchmarks/first_run.py --output benchmarks/results/first_run.json
    python benchmarks/first_run_labels.py --output benchmarks/results/first_run_labels.json

Goes on where it was stopped. Differences are paired over the draws of labels.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.first_run import DATA, ENCODERS  # noqa: E402
from modeling_a2mim.evaluation.summary import mean_and_interval, paired_difference  # noqa: E402
from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


SEEDS = (0, 1, 2, 3, 4)
METRICS = ("accuracy", "balanced_accuracy", "auroc")
MODES = {
    "frozen": ["--knn", "--probe_layers", "last"],
    "fine-tuned": ["--eval_strategy", "no", "--save_strategy", "no"],
}
PRETRAINED, RANDOM = "pre-trained", "random weights"


def run(name: str, encoder: str, start: str, mode: str, folder: Path) -> dict:
    """What `run_finetune.py` measures: rows with a method, a seed and metrics each."""
    out = folder / f"{name}-{encoder}-{mode}-{start}".replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    command = ["run_finetune.py", *MODES[mode], "--image_size", "96", "--num_channels", "1"]
    weights = os.path.relpath(folder / f"{name}-{encoder}-16", ROOT)
    if start == PRETRAINED:
        command += ["--model_name_or_path", weights]
    else:
        command += ["--architecture", encoder, *ENCODERS[encoder]]
    images = (DATA / name).relative_to(ROOT)
    command += ["--train_dir", f"{images}/train", "--validation_dir", f"{images}/test", "--labels_per_class", "50"]
    command += ["--seeds", *map(str, SEEDS), "--use_cpu", "--disable_tqdm", "True"]
    command += ["--output_dir", os.path.relpath(out, ROOT)]
    began = time.time()
    with open(folder / f"{out.name}.txt", "w") as log:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, *command], check=True, stdout=log, stderr=log, cwd=ROOT, env=environment)
    rows = json.loads((out / "results.json").read_text())["results"]
    kept = [
        {"method": row["method"] if mode == "frozen" else mode, "seed": row["seed"]}
        | {name: row[name] for name in METRICS}
        for row in rows
    ]
    return {"command": " ".join(["python", *command]), "seconds": round(time.time() - began), "rows": kept}


def table(record: dict) -> str:
    """Means with half a 95% interval, and the paired difference."""
    head = ["images", "encoder", "method", "metric", RANDOM, PRETRAINED, "difference"]
    rows = []
    for what, found in record["runs"].items():
        name, encoder, mode, start = what.split(", ")
        other = record["runs"].get(f"{name}, {encoder}, {mode}, {RANDOM}")
        if start == RANDOM or other is None:
            continue
        for method in dict.fromkeys(row["method"] for row in found["rows"]):
            for metric in METRICS:
                pair = [
                    [row[metric] for row in sorted(rows, key=lambda row: row["seed"]) if row["method"] == method]
                    for rows in (other["rows"], found["rows"])
                ]
                cells = [str(mean_and_interval(values)) for values in pair]
                difference = paired_difference(*pair)
                cells.append(f"{difference.mean:+.3f} ± {difference.half_width:.3f}")
                rows.append([name, encoder, method, metric, *cells])
    return markdown_table(head, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], help="run what has all of these in its name")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "first_run", help="where first_run.py wrote")
    args = parser.parse_args()
    ended = json.loads((ROOT / "benchmarks/results/first_run.json").read_text())["runs"]
    for what, pretrained in ended.items():
        name, encoder, batch = what.split(", ")
        if batch != "16" or pretrained["stopped_when_learned"]:
            continue
        for mode in MODES:
            for start in (RANDOM, PRETRAINED):
                key = f"{name}, {encoder}, {mode}, {start}"
                record = json.loads(args.output.read_text()) if args.output.exists() else {"runs": {}}
                if key in record["runs"] or not all(word in key.split(", ") for word in args.only):
                    continue
                found = run(name, encoder, start, mode, args.folder)
                record = json.loads(args.output.read_text()) if args.output.exists() else {"runs": {}}
                record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
                record["runs"][key] = found
                args.output.write_text(json.dumps(record, indent=1) + "\n")
                args.output.with_suffix(".md").write_text(table(record) + "\n")
                print(key, f"{found['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
