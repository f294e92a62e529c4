"""Which encoders run in another runtime: one of each of 60 families, as ONNX and as a program of torch.export.

    python -m benchmarks.onnx [--names NAME ...] [--out benchmarks/results/onnx]

Each encoder (small, 128 px, as in the tests) is exported by what `a2mim export` calls and compared with PyTorch in
onnxruntime: its features with images of other sizes where that is possible, else of its own, and a classifier of 3
classes of its own size; the classifier as a program of torch.export as well. Weights are drawn so that all parts of a
network have a say (`tests.sample_families.awaken`). Rows of an earlier run are kept for the names that are not tried.
"""

import argparse
import json
import logging
import os
import platform
import re
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from modeling_a2mim import A2MIMForImageClassification, A2MIMModel
from modeling_a2mim.export import runtime_model
from modeling_a2mim.export.agreement import TOLERANCE
from modeling_a2mim.export.onnx import write_onnx
from modeling_a2mim.export.runtime_model import RuntimeModel, free_sizes
from modeling_a2mim.export.torch_program import write_program
from modeling_a2mim.utils.files import atomic_write, write_json
from modeling_a2mim.utils.tables import markdown_table
from tests.sample_families import NAMES, awake_sample, sample_config


SECONDS = 20  # for the rules of free sizes


def examine(name: str) -> dict:
    """What becomes of one encoder: the row of the table."""
    config = sample_config(name, num_labels=3)
    size, started = tuple(config.input_size), time.time()
    row = {"name": name, "image_size": list(size)}
    with tempfile.TemporaryDirectory() as folder:
        file, channels = Path(folder) / "model.onnx", config.num_channels
        model = awake_sample(A2MIMModel, name)
        stride = model.plan.stride
        try:
            freed = RuntimeModel(free_sizes(awake_sample(A2MIMModel, name)), classifier=False)
            agreement, traced = write_onnx(freed, file, channels, size, {}, stride=stride)
            row |= {"dynamic_size": True, "size_multiple": traced.multiple}
        except ValueError as error:
            row |= {"dynamic_size": False, "why_not_dynamic": short(str(error).removeprefix("dynamic_size: "))}
            agreement = tried(row, "encoder", write_onnx, RuntimeModel(model, False), file, channels, size)
        if agreement is not None:
            row |= {"encoder_error": agreement.error, "encoder_response": agreement.response}
        classifier = RuntimeModel(awake_sample(A2MIMForImageClassification, name), classifier=True)
        program = tried(row, "torch", write_program, classifier, Path(folder) / "model.pt2", channels, size)
        row["torch_error"] = None if program is None else program.error
        agreement = tried(row, "classifier", write_onnx, classifier, file, channels, size)
        if agreement is not None:
            row |= {"classifier_error": agreement.error, "classifier_response": agreement.response}
    return row | {"seconds": round(time.time() - started, 1)}


def tried(row: dict, what: str, write, *args):
    """The agreement, or `None` and the reason in the row."""
    try:
        return write(*args, {})[0]
    except ValueError as error:
        row[f"why_no_{what}"] = short(str(error))
        return None


def short(text: str) -> str:
    """A reason without places and without advice on logs."""
    text = re.sub(r'File "[^"]*", line \d+, in \S+|/\S+/site-packages/|For more information, run with \S+', "", text)
    text = re.sub(r"L\['pixel_values'\]\.size\(\)\[2\]", "height", text)
    text = re.sub(r"L\['pixel_values'\]\.size\(\)\[3\]", "width", text)
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:159].rstrip() + "…"


def table(rows: list[dict]) -> str:
    """The rows in Markdown, and how many there are of each kind."""
    lines = []
    for row in rows:
        sizes = row.get("why_not_dynamic", "")
        if row["dynamic_size"]:
            multiple = row["size_multiple"]
            sizes = "yes, any size" if multiple == 1 else f"yes, multiples of {multiple} px"
        errors = [row.get(f"{what}_error") for what in ("encoder", "classifier")]
        cells = [
            f"{error:.1e}" if error is not None else row.get(f"why_no_{what}", "")
            for what, error in zip(("encoder", "classifier"), errors, strict=True)
        ]
        responses = [row[key] for key in ("encoder_response", "classifier_response") if key in row]
        response = f"{min(responses):.2f}" if responses else ""
        torch_cell = "yes" if row["torch_error"] is not None else row.get("why_no_torch", "")
        lines.append([row["name"], *cells, response, sizes if row["dynamic_size"] else f"no: {sizes}", torch_cell])
    largest = max((row.get(k) or 0 for row in rows for k in ("encoder_error", "classifier_error")), default=0)
    counts = [
        f"{sum('encoder_error' in row for row in rows)} encoders and "
        f"{sum('classifier_error' in row for row in rows)} classifiers of {len(rows)} families agree with PyTorch in "
        f"onnxruntime (at most {TOLERANCE:.0e} is right; the largest error is {largest:.1e}); "
        f"{sum(row['dynamic_size'] for row in rows)} encoders also take images of other sizes; "
        f"{sum(row['torch_error'] is not None for row in rows)} are programs of torch.export."
    ]
    columns = ["encoder", "encoder error", "classifier error", "response", "other sizes", "torch.export"]
    notes = (
        "Error: max |a - b| / max |a| over batches of 1 and 3, a of PyTorch, b of onnxruntime, float32. Response: the "
        "least share of the outputs' largest value that depends on the image."
    )
    return "\n\n".join(["# Other runtimes", *counts, notes, markdown_table(columns, lines)]) + "\n"


def main(argv: list[str] | None = None):
    """Try the encoders, and write the table after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx", description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/onnx"), help="without an ending")
    args = parser.parse_args(argv)
    logging.getLogger("a2mim").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    runtime_model.TRACE_SECONDS = SECONDS
    out = args.out.with_suffix(".json")
    known = {row["name"]: row for row in json.loads(out.read_text())["rows"]} if out.is_file() else {}
    for name in args.names:
        row = known[name] = examine(name)
        print(json.dumps(row), flush=True)
        rows = [known[each] for each in NAMES if each in known]
        command = "python -m benchmarks.onnx"
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
        versions = {
            each: version(each) for each in ("torch", "timm", "transformers", "onnx", "onnxscript", "onnxruntime")
        }
        write_json(out, {"command": command, "machine": machine, "versions": versions, "rows": rows})
        with atomic_write(args.out.with_suffix(".md")) as temporary:
            temporary.write_text(table(rows))


if __name__ == "__main__":
    main()
