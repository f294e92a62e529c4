"""The first run of a newcomer: `run_pretraining.py` on a folder of images with all defaults, but for the size and the
channels of the images; after how many steps are masked pixels 2 dB nearer than the mean colour of each image, and
where does the run end? Each run holds 128 images out to evaluate on, every 100 steps.

    python benchmarks/images.py --folders
    python benchmarks/first_run.py --output benchmarks/results/first_run.json [--until_learned]

With --until_learned a run is stopped as soon as it is there, which the results say. Goes on where it was stopped.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim.utils.tables import markdown_table  # noqa: E402


DATA = ROOT / "benchmarks" / "data"
ENCODERS = {
    "convnext_atto": [],
    "resnet18": [],
    "vit_tiny_patch16_224": ["--model_args", '{"patch_size": 8}'],
}
SETS, BATCHES = ("solar_cells", "fashion_mnist"), (16, 64)
LEARNED = 2.0  # dB above the mean fill


def gains(folder: Path) -> list[tuple[int, float, float]]:
    """(step, masked PSNR, that of the mean fill) of each evaluation so far."""
    path, found = folder / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.is_file() else ():
        entry = json.loads(line)
        if "eval_masked_psnr" in entry:
            found.append((entry["step"], entry["eval_masked_psnr"], entry["eval_mean_fill_psnr"]))
    return found


def core_seconds(process: subprocess.Popen) -> float:
    """Seconds of one core so far: other jobs on the machine do not count."""
    try:
        root = psutil.Process(process.pid)
        times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
    except psutil.NoSuchProcess:  # ended just now
        return 0.0
    return sum(one.user + one.system for one in times)


def run(command: list[str], folder: Path, until_learned: bool) -> dict:
    """What came of one run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start, learned, used = time.time(), None, 0.0
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log, cwd=ROOT, env=environment)
        while process.poll() is None:
            time.sleep(2)
            used = max(used, core_seconds(process))
            if learned is None:
                there = [step for step, found, mean in gains(folder) if found - mean >= LEARNED]
                learned = (there[0], round(time.time() - start), round(used)) if there else None
            if learned and until_learned:
                process.terminate()
                process.wait()
    found = gains(folder)
    if not found or (process.returncode and not (learned and until_learned)):
        raise RuntimeError(f"{' '.join(command)} failed, see {folder / 'log.txt'}")
    text = (folder / "log.txt").read_text()
    told = [line.split(" a2mim: ")[1] for line in text.splitlines() if "num_train_epochs auto" in line]
    return {
        "command": " ".join(["python", *command]),
        "length": told[0] if told else None,
        "learned_at_step": learned and learned[0],
        "learned_after_seconds": learned and learned[1],
        "learned_after_core_seconds": learned and learned[2],
        "stopped_when_learned": bool(learned and until_learned),
        "seconds": round(time.time() - start),
        "core_seconds": round(used),
        "evaluations": [{"step": step, "masked_psnr": one, "mean_fill_psnr": two} for step, one, two in found],
    }


def table(record: dict) -> str:
    head = ["images", "encoder", "batch", "2 dB above the mean colour", "after", "last evaluation"]
    rows = []
    for name, found in record["runs"].items():
        last = found["evaluations"][-1]
        gain = f"{last['masked_psnr'] - last['mean_fill_psnr']:+.1f} dB at step {last['step']:,}"
        gain += ", stopped there" if found["stopped_when_learned"] else ", the end"
        step, core = found["learned_at_step"], found.get("learned_after_core_seconds")
        spent = "not measured" if core is None else f"{core / 60:.0f} min of one core"
        at = ("not reached", "") if step is None else (f"step {step:,}", spent)
        rows.append([*name.split(", "), *at, gain])
    return markdown_table(head, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--until_learned", action="store_true", help="stop each run as soon as it is 2 dB above")
    parser.add_argument("--recipe", help="of pre-training")
    parser.add_argument("--only", nargs="+", default=[], help="run what has all of these in its name")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "first_run", help="where the runs write")
    args = parser.parse_args()
    for batch, name, encoder in itertools.product(BATCHES, SETS, ENCODERS):
        what = f"{name}, {encoder}, {batch}"
        record = json.loads(args.output.read_text()) if args.output.exists() else {"runs": {}}
        if what in record["runs"] or not all(word in what.split(", ") for word in args.only):
            continue
        command = ["run_pretraining.py", "--architecture", encoder, *ENCODERS[encoder]]
        command += ["--train_dir", str((DATA / name / "train").relative_to(ROOT)), "--image_size", "96"]
        command += ["--num_channels", "1", "--per_device_train_batch_size", str(batch)]
        command += ["--holdout", "128", "--eval_strategy", "steps", "--eval_steps", "100", "--save_strategy", "no"]
        command += ["--use_cpu", "--disable_tqdm", "True", *(["--recipe", args.recipe] if args.recipe else [])]
        folder = args.folder / what.replace(", ", "-")
        found = run([*command, "--output_dir", os.path.relpath(folder, ROOT)], folder, args.until_learned)
        record = json.loads(args.output.read_text()) if args.output.exists() else {"runs": {}}
        record["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
        record["runs"][what] = found
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(what, found["learned_at_step"], found["evaluations"][-1], f"{found['seconds']} s", flush=True)
    args.output.with_suffix(".md").write_text(table(json.loads(args.output.read_text())) + "\n")


if __name__ == "__main__":
    main()
