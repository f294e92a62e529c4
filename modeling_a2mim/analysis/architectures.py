"""Which timm encoders pre-train, and how: `a2mim encoders` looks at every name of timm's list.

Each encoder is pre-trained for one step on the meta device (all shapes and all gradients, no values). Those up to
`--max_parameters` are built with values as well, to see whether the cells of the token's site lie where the image's
do; the table says of the others that this was not tried.
"""

import fnmatch
import json
import math
import multiprocessing
import os
import platform
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
import transformers
from tqdm.auto import tqdm

from ..configuration_a2mim import A2MIMConfig
from ..encoders.meta import NoValues
from ..encoders.plan import plan_encoder
from ..mask_site import choose_site
from ..modeling_a2mim import A2MIMForPreTraining
from ..utils.tables import markdown_table


@dataclass
class Row:
    """What is known of one encoder. Sizes in pixels, `stride` in pixels per cell of what is decoded."""

    name: str
    family: str  # timm's module
    status: str = "pre-trains"  # or "error: ..." (refused by name) or "other: ..." (a fault of ours)
    parameters: int | None = None
    image_size: list[int] | None = None
    site: str | None = None
    site_kind: str | None = None  # layout of the tensor: NCHW, NHWC, NLC or NCL
    site_prefix: int | None = None  # tokens before the map's
    site_grid: list[int] | None = None  # rows, columns
    channels: int | None = None
    map_kind: str | None = None
    map_grid: list[int] | None = None
    stride: int | None = None
    isotropic: bool | None = None
    alignment: float | None = None  # of the site with the image, 0 to 1, see alignment.py; None: not tried


def examine(name: str, max_parameters: float = math.inf) -> Row:
    """Pre-train an encoder for one step without values, and look at the mask token's site.

    Never raises: what went wrong is the row's `status`.
    """
    row = Row(name, timm.model_entrypoint(name).__module__.rpartition(".")[2])
    try:
        _examine(row, max_parameters)
    except ValueError as error:
        row.status = f"error: {error}"
    except Exception as error:  # shown as a fault of ours
        row.status = f"other: {type(error).__name__}: {error}"
    return row


def _examine(row: Row, max_parameters: float):
    config = A2MIMConfig.for_architecture(row.name)
    plan = plan_encoder(config)
    row.image_size, row.isotropic, row.stride = list(config.input_size), plan.isotropic, plan.stride
    row.map_kind, row.map_grid = plan.map_layout.kind, list(plan.map_layout.grid)
    model = _meta_model(config)
    row.parameters = sum(parameter.numel() for parameter in model.a2mim.encoder.parameters())
    if row.parameters <= max_parameters:
        torch.manual_seed(0)
        site, score = choose_site(plan.create(), plan, config)
        row.alignment = None if math.isnan(score) else round(score, 3)
        if site != plan.sites[0]:
            config.mask_site = site.module
            model = _meta_model(config)
    site, token = model.a2mim.site, model.a2mim.mask_token.token
    row.site, row.site_kind, row.site_prefix = site.module, site.layout.kind, site.layout.prefix
    row.site_grid, row.channels = list(site.layout.grid), site.layout.channels
    model.requires_grad_(False)
    token.requires_grad_(True)
    with torch.device("meta"):
        images = torch.empty(2, config.num_channels, *config.input_size)
        output = model(images)
        output.loss.backward()
    if token.grad is None:
        raise RuntimeError("the mask token gets no gradient")
    if output.reconstruction.shape != images.shape:
        raise RuntimeError(f"the reconstruction is {tuple(output.reconstruction.shape)}")


def _meta_model(config: A2MIMConfig) -> A2MIMForPreTraining:
    with torch.device("meta"), NoValues():
        return A2MIMForPreTraining(config)


def examine_all(names: Iterable[str], max_parameters: float, jobs: int | None = None) -> Iterator[Row]:
    """Rows of many encoders, in the order of `names`, with a progress bar."""
    names = list(names)
    jobs, bar = min(jobs or os.cpu_count() or 1, len(names)), {"total": len(names), "unit": "encoder"}
    if jobs == 1:
        yield from tqdm((examine(name, max_parameters) for name in names), **bar)
        return
    context = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from tqdm(pool.map(examine, names, [max_parameters] * len(names)), **bar)


def summary(rows: list[Row]) -> str:
    """One line for each family of encoders, as a Markdown table."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    lines = []
    for family, members in sorted(families.items()):
        good = [row for row in members if row.status == "pre-trains"]
        sites = Counter(f"{row.site_kind} {row.site_grid[0]}x{row.site_grid[1]}" for row in good)
        maps = Counter(f"{row.map_kind} {row.map_grid[0]}x{row.map_grid[1]}" for row in good)
        shown = [", ".join(key for key, _ in counter.most_common(3)) for counter in (sites, maps)]
        lines.append([family, len(members), len(good), *shown])
    return markdown_table(("family", "encoders", "pre-train", "mask token enters", "decoded"), lines)


def counts(rows: list[Row]) -> str:
    """`N pre-train, M named errors, K other`."""
    kinds = Counter(row.status.partition(":")[0] for row in rows)
    return f"{kinds['pre-trains']} pre-train, {kinds['error']} named errors, {kinds['other']} other"


def write(rows: list[Row], folder: Path, seconds: float):
    """The table as JSON with one line for each encoder, and as Markdown. Encoders of a table that is there already and
    that were not looked at now keep their rows."""
    path, runs, looked_at = folder / "architectures.json", [], len(rows)
    if path.exists():
        old = json.loads(path.read_text())
        kept = {row["name"]: Row(**row) for row in old["rows"]}
        if {row.name for row in rows} < kept.keys():
            rows, runs = list((kept | {row.name: row for row in rows}).values()), old["runs"]
    run = {
        "command": textwrap.shorten(" ".join(["a2mim encoders", *sys.argv[1:]]), 200),
        "encoders": looked_at,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {module.__name__: module.__version__ for module in (torch, timm, transformers)},
        "seconds": round(seconds),
    }
    encoders = ",\n".join("  " + json.dumps(asdict(row)) for row in rows)
    head = json.dumps({"summary": counts(rows), "runs": [*runs, run]}, indent=1).removesuffix("\n}")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "rows": [\n{encoders}\n ]\n}}\n')
    columns = ["name", "parameters", "image_size", "site", "site_kind", "site_grid", "channels", "stride", "alignment"]
    lines = []
    for row in rows:
        cells = [getattr(row, column) for column in columns]
        cells = ["" if c is None else "x".join(map(str, c)) if isinstance(c, list) else str(c) for c in cells]
        lines.append([*cells, row.status.replace("|", "/")])
    parts = [f"# timm {timm.__version__}: {counts(rows)}", summary(rows), markdown_table([*columns, "status"], lines)]
    (folder / "architectures.md").write_text("\n\n".join(parts) + "\n")


def sweep(patterns: Sequence[str], max_parameters: float, jobs: int | None, output: str | None) -> list[Row]:
    """Look at encoders, print the table of them, and return its rows.

    Args:
        patterns: names, or patterns like `resnet*`; all of timm, if there are none.
        max_parameters: encoders up to this size are built with values, to try out their sites.
        jobs: processes; one for each core, if not given.
        output: folder to write the table to.

    Raises:
        ValueError: naming `names`, if timm has no such encoder.
    """
    known = timm.list_models()
    if nothing := [pattern for pattern in patterns if not fnmatch.filter(known, pattern)]:
        raise ValueError(
            f"names: no timm encoder is called {' or '.join(nothing)} (names come without a tag of weights, as in "
            "timm.list_models())"
        )
    names = [name for name in known if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]
    start = time.time()
    rows = list(examine_all(names, max_parameters, jobs))
    print(summary(rows))
    for row in rows:
        if row.status != "pre-trains":
            print(f"{row.name}: {row.status}")
    untried = sum(row.alignment is None for row in rows if row.status == "pre-trains")
    print(f"\n{counts(rows)} ({untried} too large to try out their site; {time.time() - start:.0f} s)")
    if output:
        write(rows, Path(output), time.time() - start)
    return rows
