"""A table with a row for each image, written in parts, so that a run that was killed goes on where it was."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..utils.files import atomic_write, is_there, sync, write_json


MANIFEST = "manifest.json"
ROWS_IN_PART = 1000


class PartedTable:
    """Parts of a table in a folder beside the file that they will become, `OUT.parts/`. Parts are whole or not there;
    several processes can write theirs at once.

    Args:
        path: of the table, whose suffix says the format: `.csv` or `.parquet`, and more that the caller writes itself
            (`formats`).
        num_rows: of the whole table.
        identity: what the rows depend on (model, images, options), as JSON. Parts of another identity are not used.
        rows_in_part: so many rows are lost at most when a run is killed, of each process.
        overwrite: replace the file at `path`, and parts of another identity.
        formats: suffixes that are allowed.

    Raises:
        ValueError: naming `out`, if the suffix is none of `formats`, the file is there, or its parts are of something
            else and not to be overwritten.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        num_rows: int,
        identity: dict,
        rows_in_part: int = ROWS_IN_PART,
        overwrite: bool = False,
        formats: tuple[str, ...] = (".csv", ".parquet"),
    ):
        self.path, self.num_rows, self.rows_in_part = Path(path), num_rows, rows_in_part
        check_out(self.path, formats, overwrite)
        self.folder = parts_of(self.path)
        self.identity = json.loads(json.dumps({**identity, "rows": num_rows, "rows_in_part": rows_in_part}))
        manifest = self.folder / MANIFEST
        if manifest.exists():
            before = json.loads(manifest.read_text(encoding="utf-8"))
            if differing := sorted(k for k in self.identity | before if self.identity.get(k) != before.get(k)):
                if not overwrite:
                    raise ValueError(
                        f"out: {self.folder} holds parts of another run (other {', '.join(differing)}); continue that "
                        "one with the same arguments, or give --overwrite, which discards them"
                    )
                shutil.rmtree(self.folder)
        if self.path.exists() and not overwrite and self.missing():  # else a run was killed while it joined them
            raise is_there(self.path)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(manifest, self.identity)

    @property
    def count(self) -> int:
        """How many parts there will be."""
        return -(-self.num_rows // self.rows_in_part)

    def rows(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.rows_in_part, min((part + 1) * self.rows_in_part, self.num_rows))

    def missing(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """The parts that are not written yet; of several processes, those that this one is to write."""
        return [part for part in range(self.count) if not self._file(part).exists()][rank::world_size]

    def _file(self, part: int) -> Path:
        return self.folder / f"{part:06d}.part"  # parquet, which no run over images beside it takes for shards

    def write(self, part: int, table: pa.Table):
        """Write a part: one row for each of `rows(part)`."""
        assert len(table) == len(self.rows(part))
        with atomic_write(self._file(part)) as temporary:
            pq.write_table(table, temporary)

    def __iter__(self) -> Iterator[pa.Table]:
        """The parts in order, one at a time."""
        for part in range(self.count):
            yield pq.read_table(self._file(part))

    def finish(self) -> Path:
        """Join the parts to the file at `path`, and remove them."""
        writer = None
        for table in self:
            if writer is None:
                kind = pyarrow.csv.CSVWriter if self.path.suffix == ".csv" else pq.ParquetWriter
                writer = kind(str(self.joined), table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
        return self.publish()

    @property
    def joined(self) -> Path:
        """Where the whole is to be written before it is put in its place; a kill leaves nothing beside it."""
        return self.folder / "joined"

    def publish(self) -> Path:
        """Put what was written to `joined` at `path`, and remove the parts."""
        sync(self.joined)
        os.replace(self.joined, self.path)
        self.remove()
        return self.path

    def remove(self):
        """Remove the parts."""
        shutil.rmtree(self.folder)


def check_out(path: Path, formats: tuple[str, ...], overwrite: bool):
    """Refuse a file that cannot be written.

    Raises:
        ValueError: naming `out`, as `PartedTable`.
    """
    if path.suffix not in formats:
        raise ValueError(f"out: {path} must end in {' or '.join(formats)}")
    if path.is_dir():
        raise ValueError(f"out: {path} is a folder")
    if path.exists() and not overwrite and not parts_of(path).exists():
        raise is_there(path)


def parts_of(path: Path) -> Path:
    """The folder of the parts of a table."""
    return path.with_name(f"{path.name}.parts")


def rows_in_part(num_rows: int, most: int = ROWS_IN_PART) -> int:
    """How many rows a part is to have so that several processes have some each, and a kill costs little: a multiple
    of 64, which most batches divide."""
    return min(most, max(64, 64 * round(num_rows / 64 / 64)))
