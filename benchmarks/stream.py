"""What a long stream costs: memory and the time to go on, after few and after many samples; and how random it is.

    python benchmarks/stream.py [--samples 100000]

Memory and times are of this process, which reads parquet shards of small JPEGs through `TrainingData` as training
does. Randomness: rows sorted by class, batches of 256, this package's order beside `datasets`' shuffle buffer of the
same size over the same shards in random order, and beside a full shuffle.
"""

import argparse
import gc
import io
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_a2mim import A2MIMConfig  # noqa: E402
from modeling_a2mim.data.dataset import REPORT, ImageSamples, collate  # noqa: E402
from modeling_a2mim.data.order import EpochOrder, ShuffleLayout  # noqa: E402
from modeling_a2mim.data.progress import TrainingData  # noqa: E402
from modeling_a2mim.data.shards import ParquetSource  # noqa: E402
from modeling_a2mim.data.transforms import PreTrainTransform  # noqa: E402


BATCH, SHUFFLE = 64, 16384
CONFIG = A2MIMConfig(architecture="test_resnet", image_size=32, mask_patch_size=8)


def write_shards(folder: Path, samples: int):
    photograph = load_sample_images().images[0]
    generator = np.random.default_rng(0)
    images = []
    for _ in range(500):
        top, left = generator.integers(0, 300, 2)
        file = io.BytesIO()
        Image.fromarray(photograph[top : top + 64, left : left + 64]).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    for shard, numbers in enumerate(np.array_split(np.arange(samples), max(1, samples // 5000))):
        rows = [{"bytes": images[n % 500], "path": None} for n in numbers]
        schema = datasets.Features({"image": datasets.Image()}).arrow_schema
        table = pa.table({"image": pa.array(rows, schema.field("image").type)}, schema=schema)
        pq.write_table(table, folder / f"{shard:04}.parquet", row_group_size=100)


def open_run(folder: Path, record: dict | None = None) -> tuple[TrainingData, DataLoader]:
    source = ParquetSource("shards", sorted(str(file) for file in folder.iterdir()))
    samples = ImageSamples(source, PreTrainTransform(CONFIG), "image", shuffle_size=SHUFFLE)
    data = TrainingData(samples, BATCH, resumed=record)
    data.begin(data.batches.resumed[0])
    skipped = data.batches.skipped if record else 0
    keys = [keys for keys in data.batches if keys] if skipped else data.batches
    return data, DataLoader(samples, batch_sampler=keys, collate_fn=collate)


def resident_megabytes() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def long_run(folder: Path, samples: int) -> tuple[dict[int, float], dict[int, dict]]:
    """Memory, and the record of the data, after so many samples."""
    data, loader = open_run(folder)
    marks = {count: count // BATCH for count in (1000, samples // 10, samples)}
    memory, records = {}, {}
    for index, batch in enumerate(tqdm(loader, unit="batch", leave=False, mininterval=5), start=1):
        data.trained(batch[REPORT])
        for count, at in marks.items():
            if index == at:
                memory[count], records[count] = resident_megabytes(), json.loads(json.dumps(data.state()))
        if index == max(marks.values()):
            return memory, records


def resume_times(folder: Path, records: dict[int, dict], rounds: int) -> dict[int, list[float]]:
    """Seconds from opening the shards to the first batch."""
    seconds = {count: [] for count in records}
    for _ in range(rounds):
        for count in np.random.permutation(list(records)).tolist():
            start = time.perf_counter()
            _, loader = open_run(folder, records[count])
            next(iter(loader))
            seconds[count].append(time.perf_counter() - start)
    return seconds


def randomness(rows: int = 128_000, classes: int = 1000, batch: int = 256) -> dict[str, dict[str, float]]:
    """Classes in a batch of rows that are sorted by class, and how far from each other a batch's rows were."""
    chunks = np.full(rows // 100, 100)
    layout = ShuffleLayout.choose(chunks, batch, SHUFFLE, row_bytes=20_000.0)
    ours = EpochOrder(chunks, layout, seed=0).rows(0, 0, rows)
    sorted_rows = datasets.Dataset.from_dict({"row": range(rows)}).to_iterable_dataset(num_shards=128)
    buffered = np.array([row["row"] for row in sorted_rows.shuffle(seed=0, buffer_size=SHUFFLE)])
    orders = {
        f"this package ({layout.streams} lanes, blocks of {layout.block})": ours,
        f"datasets, shuffle(buffer_size={SHUFFLE})": buffered,
        "full shuffle": np.random.default_rng(0).permutation(rows),
    }
    found = {}
    for name, order in orders.items():
        batches = order[: rows // batch * batch].reshape(-1, batch)
        kinds = np.array([len(np.unique(keys * classes // rows)) for keys in batches])
        found[name] = {
            "classes_in_a_batch": round(float(kinds.mean()), 1),
            "fewest": int(kinds.min()),
            "first_tenth_of_a_pass_covers": round(len(np.unique(order[: rows // 10] * classes // rows)) / classes, 3),
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, help="write the results there as JSON")
    args = parser.parse_args()
    np.random.seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), args.samples + args.samples // 10)
        memory, records = long_run(Path(folder), args.samples)
        seconds = resume_times(Path(folder), records, args.rounds)
    few, some, many = records
    ratios = np.array(seconds[many]) / np.array(seconds[few])
    quantiles = [round(float(value), 3) for value in np.percentile(ratios, [10, 50, 90])]
    results = {
        "resident_megabytes": {str(count): round(value, 1) for count, value in memory.items()},
        "memory_ratio": round(memory[many] / memory[some], 4),
        "seconds_to_go_on": {str(c): round(float(np.median(values)), 3) for c, values in seconds.items()},
        "time_ratio": {"low": quantiles[0], "median": quantiles[1], "high": quantiles[2]},
        "randomness": randomness(),
    }
    print("\n| samples | resident MB | seconds to go on |\n|---|---|---|")
    for count in records:
        print(f"| {count:,} | {memory[count]:.1f} | {np.median(seconds[count]):.3f} |")
    print(f"\nmemory at {many:,} over {some:,}: {results['memory_ratio']}")
    print(f"time to go on after {many:,} over {few:,}: {quantiles[1]} ({quantiles[0]}-{quantiles[2]})")
    columns = ["classes_in_a_batch", "fewest", "first_tenth_of_a_pass_covers"]
    print(f"\n| order | {' | '.join(name.replace('_', ' ') for name in columns)} |\n|---|---|---|---|")
    for name, row in results["randomness"].items():
        print(f"| {name} | {' | '.join(str(row[column]) for column in columns)} |")
    if args.output:
        record = {
            "command": " ".join(["python", "benchmarks/stream.py", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, {platform.system()}",
            "versions": {m.__name__: m.__version__ for m in (torch, datasets, pa, PIL)}
            | {"python": platform.python_version()},
            "spread": f"median, 10th and 90th percentile of {args.rounds} rounds",
            **results,
        }
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
