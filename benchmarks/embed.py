"""`a2mim embed` on 10,000 small images: beside a bare loop, killed and resumed, and what memory it takes.

The bare loop decodes, transforms and embeds the same files in batches of the same size, and keeps the vectors; both
take turns over the same images, and the ratio is taken within a round. Memory is the most that a process held
(VmHWM of Linux; `ru_maxrss` has what its parent held, too). Neighbors and duplicates are of vectors drawn at random,
384 features each.

    python benchmarks/embed.py --output benchmarks/results/embed.json
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import sklearn
import timm
import torch
import transformers
from PIL import Image


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim import A2MIMConfig, A2MIMForPreTraining  # noqa: E402
from modeling_a2mim.export.folder import export_model  # noqa: E402
from modeling_a2mim.inference.embedding import embedder  # noqa: E402
from modeling_a2mim.inference.images import InferenceImages, open_every_image  # noqa: E402
from modeling_a2mim.inference.parts import PartedTable  # noqa: E402
from modeling_a2mim.inference.running import run_over  # noqa: E402
from modeling_a2mim.inference.vectors import EMBEDDING, columns, read_embeddings, write_file  # noqa: E402


BATCH, SIDE = 64, 32
MEASURED = """
import time
from pathlib import Path
{setup}
begin = time.perf_counter()
{run}
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(time.perf_counter() - begin, int(peak.split()[1]) / 1024)
"""
VECTORS = """
import numpy as np
from modeling_a2mim.inference.similarity import duplicate_groups, nearest
vectors = np.random.default_rng(0).standard_normal(({count}, 384), dtype=np.float32)
vectors[::1000] = vectors[0]
"""


def in_a_process(setup: str, run: str) -> tuple[float, float]:
    """Seconds, and the most MB that it held."""
    code = MEASURED.format(setup=setup, run=run)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def command(model: Path, images: Path, out: Path) -> list[str]:
    return [str(model), str(images), "--out", str(out), "--batch_size", str(BATCH), "--device", "cpu"]


def embed(model: Path, images: Path, out: Path) -> tuple[float, float]:
    setup = "from modeling_a2mim.commands.embed import main"
    return in_a_process(setup, f"main({command(model, images, out)!r})")


def kill_and_resume(model: Path, images: Path, out: Path, kills: int) -> list[int]:
    """Run the command until it ends, killed at random moments. Returns how many parts were there after each."""
    argv = [sys.executable, "-m", "modeling_a2mim.commands.embed", *command(model, images, out)]
    generator, parts = np.random.default_rng(0), []
    while not out.exists():
        process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL)
        folder = out.with_name(f"{out.name}.parts")
        if len(parts) < kills:
            wanted = len(list(folder.glob("*.parquet"))) + generator.integers(1, 3)
            while len(list(folder.glob("*.parquet"))) < wanted and process.poll() is None:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            parts.append(len(list(folder.glob("*.parquet"))))
        elif process.wait():
            raise RuntimeError("the command failed")
    return parts


def rounds_beside_bare_loop(model: Path, images: Path, work: Path, rounds: int, count: int) -> tuple[list, list]:
    """Images per second of the loop and of `run_over` with its file, of the first images."""
    found = embedder(str(model))
    source = open_every_image([images])
    files = sorted(images.iterdir())[:count]

    def bare():
        kept = []
        for first in range(0, count, BATCH):
            pixels = torch.stack([found.transform(str(file))["pixel_values"] for file in files[first : first + BATCH]])
            kept.append(found.embed(pixels))
        np.concatenate(kept)

    def ours():
        table = PartedTable(work / "round.parquet", count, {}, overwrite=True)
        run = lambda pixels, rows: {EMBEDDING: found.embed(pixels)}  # noqa: E731
        run_over(
            InferenceImages(source.take(count), found.transform), table, run, columns(found.dim, "float32"), BATCH
        )
        write_file(table, {})

    seconds: dict = {bare: [], ours: []}
    for number in range(rounds + 1):  # the first warms up
        for action in (bare, ours) if number % 2 else (ours, bare):
            begin = time.perf_counter()
            action()
            seconds[action].append(time.perf_counter() - begin)
    return [count / s for s in seconds[bare][1:]], [count / s for s in seconds[ours][1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    results: dict = {"images": args.images, "pixels": SIDE}
    with tempfile.TemporaryDirectory() as folder:
        work, images, few = Path(folder), Path(folder, "images"), Path(folder, "few")
        config = A2MIMConfig.for_architecture(architecture="convnext_atto", image_size=SIDE, mask_patch_size=16)
        model = export_model(A2MIMForPreTraining(config), work / "model")
        generator = np.random.default_rng(0)
        for number in range(args.images):
            for place in (images, few) if number < args.images // 10 else (images,):
                place.mkdir(exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(
                    place / f"{number:06}.png"
                )
        bare, ours = rounds_beside_bare_loop(model, images, work, args.rounds, min(2000, args.images))
        ratio = np.array(ours) / np.array(bare)
        results["bare_loop_images_per_second"] = round(float(np.median(bare)), 1)
        results["embed_images_per_second"] = round(float(np.median(ours)), 1)
        results["ratio"] = {n: round(float(f(ratio)), 3) for n, f in (("median", np.median), ("least", np.min))}
        seconds, megabytes = embed(model, images, work / "whole.parquet")
        results["command"] = {"seconds": round(seconds, 1), "peak_mb": round(megabytes)}
        results["command_on_a_tenth"] = {"peak_mb": round(embed(model, few, work / "few.parquet")[1])}
        results["npy"] = {"peak_mb": round(embed(model, images, work / "whole.npy")[1])}
        results["killed_after_parts"] = kill_and_resume(model, images, work / "killed.parquet", kills=4)
        whole, killed = pq.read_table(work / "whole.parquet"), pq.read_table(work / "killed.parquet")
        results["killed_equals_whole"] = bool(whole.equals(killed))
        results["npy_equals_parquet"] = bool(
            np.array_equal(read_embeddings(work / "whole.parquet").vectors, np.load(work / "whole.npy"))
        )
    for count in args.vectors:
        setup = VECTORS.format(count=count)
        base = in_a_process(setup, "pass")[1]
        near, near_mb = in_a_process(setup, "nearest(vectors, vectors[:8], 6)")
        alike, alike_mb = in_a_process(setup, "assert len(duplicate_groups(vectors, 0.98)) == 1")
        results[f"vectors_{count}"] = {
            "vectors_mb": round(count * 384 * 4 / 2**20),
            "neighbors_of_8_seconds": round(near, 2),
            "neighbors_further_mb": round(near_mb - base),
            "duplicates_seconds": round(alike, 1),
            "duplicates_further_mb": round(alike_mb - base),
        }
    record = {
        "command": " ".join(["python", "benchmarks/embed.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores (not alone), 1 thread, {platform.system()}",
        "versions": {m.__name__: m.__version__ for m in (torch, timm, transformers, sklearn, np)}
        | {"python": platform.python_version()},
        "spread": f"median of {args.rounds} rounds of 2000 images; whole runs once",
        "results": results,
    }
    print(json.dumps(record, indent=1))
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
