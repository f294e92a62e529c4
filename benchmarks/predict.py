"""Kill `a2mim predict` again and again at moments drawn from a seed, go on each time with the same command, and
compare what comes out with a run that nothing disturbed: every file once, and the same bytes; and how fast that was.

    python benchmarks/predict.py [--images 10000] [--kills 5]
"""

import argparse
import csv
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZE = 32
RESULTS = ROOT / "benchmarks" / "results" / "predict.json"
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "timm", "pyarrow")


def write_images(folder: Path, count: int):
    """PNG files of 32 px in 100 folders, every thousandth of them broken."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 100:02}" / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 1000 == 7:
            path.write_bytes(b"\x89PNG nothing")
        else:
            Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)


def write_model(folder: Path):
    """timm's test_resnet, of 5 classes, with random weights."""
    import torch

    from modeling_a2mim import A2MIMConfig, A2MIMForImageClassification
    from modeling_a2mim.export.folder import export_model

    torch.manual_seed(0)
    config = A2MIMConfig.for_encoder(architecture="test_resnet", image_size=SIZE, num_labels=5)
    export_model(A2MIMForImageClassification(config), folder)


def start(command: list[str], log: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = measure(Path(name), args)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def measure(folder: Path, args: argparse.Namespace) -> dict:
    """The figures, with files in `folder`."""
    write_images(folder / "images", args.images)
    write_model(folder / "model")
    command = [sys.executable, "-m", "modeling_a2mim.commands.predict", str(folder / "model"), str(folder / "images")]
    command += ["--device", "cpu", "--num_workers", str(args.workers), "--out"]
    began = time.monotonic()
    first = start([*command, str(folder / "whole.csv")], folder / "whole.log")
    parts = folder / "whole.csv.parts"
    while not parts.exists() and first.poll() is None:
        time.sleep(0.01)
    ready = time.monotonic()
    assert first.wait() == 0, (folder / "whole.log").read_text()[-2000:]
    ended = time.monotonic()

    draw, kills = random.Random(args.seed), []
    out = folder / "killed.csv"
    share = (ended - ready) / (args.kills + 1)  # of the time that the images take, so that each run gets somewhere
    while not out.exists():
        process = start([*command, str(out)], folder / "killed.log")
        known = {path.name for path in out.with_name("killed.csv.parts").glob("*.part")}
        manifest = out.with_name("killed.csv.parts") / "manifest.json"
        begun = time.time()
        while process.poll() is None and not (manifest.exists() and manifest.stat().st_mtime > begun):
            time.sleep(0.01)
        if len(kills) < args.kills:
            while_running = draw.uniform(0, 2 * share)
            deadline = time.monotonic() + while_running
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                now = {path.name for path in out.with_name("killed.csv.parts").glob("*.part")}
                kills.append({"seconds": round(while_running, 3), "parts_before": len(known), "parts": len(now)})
                continue
        assert process.wait() == 0, (folder / "killed.log").read_text()[-2000:]
    with open(out, newline="", encoding="utf-8") as file:
        files = [row["file"] for row in csv.DictReader(file)]
    there = sorted(path.relative_to(folder / "images").as_posix() for path in (folder / "images").rglob("*.png"))
    log = (folder / "whole.log").read_text(encoding="utf-8")
    return {
        "command": f"python {' '.join([Path(sys.argv[0]).as_posix().split(f'{ROOT}/')[-1], *sys.argv[1:]])}",
        "machine": f"cpu, {os.cpu_count()} cores, {platform.system()}",
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "images": args.images,
        "image_size": SIZE,
        "model": "test_resnet",
        "seconds": round(ended - began, 1),
        "seconds_until_the_first_image": round(ready - began, 1),
        "images_per_second": round(args.images / (ended - ready)),
        "load": [round(value, 1) for value in os.getloadavg()],
        "kills": kills,
        "every_file_once": sorted(files) == there and len(set(files)) == len(files) == args.images,
        "same_bytes_as_the_whole": out.read_bytes() == (folder / "whole.csv").read_bytes(),
        "left_beside_it": sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "killed.csv."))),
        "summary": next(line for line in log.splitlines() if "could not be read; " in line),
    }


if __name__ == "__main__":
    main()
