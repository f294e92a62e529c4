"""How long `a2mim` takes to say what it takes, beside `import torch`: whole processes that take turns.

python benchmarks/startup.py --output benchmarks/results/startup.json
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim.export.record import versions  # noqa: E402
from modeling_a2mim.utils.files import write_json  # noqa: E402


TORCH = "import torch"
A2MIM = [sys.executable, "-m", "a2mim"]
PROGRAMS = {
    TORCH: [sys.executable, "-c", TORCH],
    "a2mim --help": [*A2MIM, "--help"],
    "a2mim --version": [*A2MIM, "--version"],
    "a2mim pretrain --help": [*A2MIM, "pretrain", "--help"],
    "a2mim finetune --help": [*A2MIM, "finetune", "--help"],
    "a2mim predict --help": [*A2MIM, "predict", "--help"],
    "import modeling_a2mim": [sys.executable, "-c", "import modeling_a2mim"],
}


def seconds(command: list[str]) -> tuple[float, float]:
    """Seconds that pass, and seconds of the CPU, of a program."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    for command in PROGRAMS.values():
        seconds(command)  # compiles the bytecode
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in tqdm(range(args.rounds), unit=" rounds"):
        for name, command in PROGRAMS.items():
            found[name].append(seconds(command))
    table = {}
    for name, pairs in found.items():
        wall, cpu = np.array(pairs).T
        ratios = cpu / np.array(found[TORCH])[:, 1]
        table[name] = {
            "seconds": [round(float(v), 2) for v in np.percentile(wall, [10, 50, 90])],
            "cpu_seconds": [round(float(v), 2) for v in np.percentile(cpu, [10, 50, 90])],
            "cpu_over_import_torch": [round(float(v), 2) for v in np.percentile(ratios, [10, 50, 90])],
        }
        print(f"{name:24}", *(f"{key} {value[1]} ({value[0]}-{value[2]})  " for key, value in table[name].items()))
    if args.output:
        record = {
            "command": "python benchmarks/startup.py --output benchmarks/results/startup.json",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": versions(),
            "spread": f"10th percentile, median and 90th of {args.rounds} rounds",
            "programs": table,
        }
        write_json(args.output, record)


if __name__ == "__main__":
    main()
