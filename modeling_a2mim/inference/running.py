"""A model over all images, part by part, in one process or several."""

import contextlib
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils.logging import tqdm

from .images import Batch, InferenceImages, collate
from .parts import PartedTable


logger = logging.getLogger("a2mim")

FILE, ERROR = "file", "error"  # columns of every table: where the image is, and why it could not be read
SHOWN = 3  # broken images that are named in the log


def process_state(device: str | None = None) -> PartialState:
    """Which of the processes this is that `accelerate launch` or `torchrun` started; the first call decides. On a
    machine without an accelerator accelerate takes each for the only one, unless it is told that they run on the CPU.

    Args:
        device: what the user wants the model to run on, if anything.
    """
    launched = "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    return PartialState(cpu=launched or device == "cpu")


def run_over(
    images: InferenceImages,
    table: PartedTable,
    run: Callable[[Any, Sequence[int]], dict[str, Any]],
    columns: dict[str, pa.DataType],
    batch_size: int = 64,
    num_workers: int = 0,
    metadata: dict[str, str] | None = None,
    join: Callable[[list], Any] = torch.stack,
) -> bool:
    """Write the parts of a table that are missing: `file`, the columns that `run` gives, and `error`. Started by
    `accelerate launch` or `torchrun`, each process writes its share, and all have theirs when this returns.

    Args:
        images: one row of the table for each.
        table: its parts.
        run: (images, channels, height, width) of images that could be read, and their rows, to the values of each
            column, one for each image; a column without a value for an image has `None` there.
        columns: names and types of those columns.
        batch_size: images in a forward pass.
        num_workers: processes that read images.
        metadata: of the table's schema, which parquet keeps.
        join: as `collate` takes it; what it gives is what `run` gets.

    Returns:
        Whether this process is the one that is to join the parts.

    Raises:
        ValueError: if not one image of the first part, of ten or more, can be read, with the reason of the first.
    """
    state = process_state()
    schema = pa.schema([(FILE, pa.string()), *columns.items(), (ERROR, pa.string())], metadata=metadata)
    missing = table.missing()
    done = table.count - len(missing)
    if done:
        logger.info("%s: %d of %d parts are there already", table.folder.name, done, table.count)
    state.wait_for_everyone()  # all have seen the same parts before the first is written
    own = missing[state.process_index :: state.num_processes]
    batches = [
        list(rows[i : i + batch_size]) for rows in map(table.rows, own) for i in range(0, len(rows), batch_size)
    ]
    loader = DataLoader(
        images, batch_sampler=batches, num_workers=num_workers, collate_fn=functools.partial(collate, join=join)
    )
    broken: list[str] = []
    total = sum(len(table.rows(part)) for part in own)
    with _leaving_nothing(table, state), tqdm(total=total, unit=" images", disable=not state.is_main_process) as bar:
        found: list[pa.Table] = []
        for batch in loader:
            found.append(_rows(images, batch, run, schema))
            broken += [f"{images.name(r)}: {e}" for r, e in zip(batch.rows, batch.errors, strict=True) if e]
            part = batch.rows[0] // table.rows_in_part
            if batch.rows[-1] == table.rows(part)[-1]:
                rows = pa.concat_tables(found)
                # A folder of broken images among others is left to the column of errors.
                if len(rows) >= 10 and rows[ERROR].null_count == 0 and len(table.missing()) == table.count:
                    raise ValueError(f"images: none of {len(rows)} could be read; {broken[-len(rows)]}")
                table.write(part, rows)
                found = []
            bar.update(len(batch.rows))
    if broken:
        shown = "; ".join(broken[:SHOWN]) + ("; ..." if len(broken) > SHOWN else "")
        logger.warning("%d of %d images could not be read (column %r): %s", len(broken), total, ERROR, shown)
    state.wait_for_everyone()
    return state.is_main_process


@contextlib.contextmanager
def _leaving_nothing(table: PartedTable, state: PartialState) -> Iterator[None]:
    """A run that fails before its first part is written leaves no folder that another one would have to go on with."""
    try:
        yield
    except BaseException:
        if state.num_processes == 1 and len(table.missing()) == table.count:
            table.remove()
        raise


def _rows(images: InferenceImages, batch: Batch, run: Callable, schema: pa.Schema) -> pa.Table:
    good = [row for row, is_good in zip(batch.rows, batch.good.tolist(), strict=True) if is_good]
    values = {} if batch.pixel_values is None else run(batch.pixel_values, good)
    place = {row: index for index, row in enumerate(good)}
    columns: dict[str, list] = {FILE: [images.name(row) for row in batch.rows], ERROR: list(batch.errors)}
    for name in schema.names:
        if name not in columns:
            columns[name] = [values[name][place[row]] if row in place else None for row in batch.rows]
    return pa.table(columns, schema=schema)


def fingerprint_of_model(model: nn.Module, names: Collection[str] | None = None) -> str:
    """Tells weights apart: a checksum of all parameters and buffers, with their names; of `names` alone, if given."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if names is not None and name not in names:
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
