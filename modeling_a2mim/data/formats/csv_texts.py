"""What the cells of CSV files say, where it is not what the numbers say that they are read as."""

import logging
import math
import re
from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features, Value

from ..reading import open_file
from ..sources import fingerprint_of


logger = logging.getLogger("a2mim")

WHOLE = re.compile(r"[+-]?[0-9]+")


def keep_texts(
    parts: Sequence[Dataset], files: Sequence[str], separators: Sequence[str], token: str | None = None
) -> list[Dataset]:
    """The rows of CSV files as they were read, but columns of whole numbers as text that say more so, which is logged:
    "01" would become 1, "1e3" and "1000" would become the same, and so would large numbers that are read as float64.

    Args:
        parts: the rows of each file.
        files: paths or URLs.
        separators: between the columns of each.
        token: of the Hub.
    """
    texts = [
        _texts(file, separator, token) if _numbers(rows) else {}
        for rows, file, separator in zip(parts, files, separators, strict=True)
    ]
    lost: set[str] = set()
    for rows, own, file in zip(parts, texts, files, strict=True):
        for column in _numbers(rows):
            if column in lost or column not in own:  # pandas makes an index of cells before the first header
                continue
            if (found := _differing(own[column], rows.data[column].to_pylist())) is not None:
                lost.add(column)
                text, other, occurs = found
                why = f"{text!r} as a number would be {other!r}"
                if occurs:
                    why = f"{text!r} and {other!r} are the same number; write them alike if they mean the same"
                level = logging.WARNING if occurs else logging.INFO
                logger.log(level, "%s: column %r is kept as text, as %s", file, column, why)
    return [_with(rows, own, lost) for rows, own in zip(parts, texts, strict=True)]


def _numbers(rows: Dataset) -> list[str]:
    kinds = ("int", "uint", "float", "bool")
    return [c for c, kind in rows.features.items() if isinstance(kind, Value) and kind.dtype.startswith(kinds)]


def _texts(file: str, sep: str, token: str | None) -> dict[str, list[str | None]]:
    """The cells of each column, stripped; `None` for what is taken for missing, as where numbers are read."""
    options = {"token": token} if token and file.startswith("hf://") else {}
    with open_file(file, options) as stream:
        table = pd.read_csv(stream, dtype=str, sep=sep)
    return {
        str(column): [cell.strip() if isinstance(cell, str) else None for cell in table[column]] for column in table
    }


def _differing(texts: Sequence[str | None], numbers: Sequence[float | None]) -> tuple[str, str, bool] | None:
    """A text, what its number would be written as, and whether that occurs as well; the latter is looked for first.
    `None` if all texts are told apart by their numbers, or numbers are no classes but fractions."""
    cells = sorted({(t, n) for t, n in zip(texts, numbers, strict=True) if t is not None and n is not None})
    cells = [(text, number) for text, number in cells if math.isfinite(number)]
    if not all(float(number).is_integer() for _, number in cells):
        return None
    first: dict[float, str] = {}
    for text, number in cells:
        if first.setdefault(number, text) != text:
            return first[number], text, True
    for text, number in cells:
        if WHOLE.fullmatch(text) and text.removeprefix("+") != str(int(number)):
            return text, str(int(number)), False
    return None


def _with(rows: Dataset, texts: dict[str, list[str | None]], columns: set[str]) -> Dataset:
    chosen = [column for column in _numbers(rows) if column in columns and column in texts]
    if not chosen:
        return rows
    table, kinds = rows.data.table, dict(rows.features)
    for column in chosen:
        kinds[column] = Value("string")
        table = table.set_column(rows.column_names.index(column), column, pa.array(texts[column], pa.string()))
    features = Features(kinds)
    return Dataset(table.cast(features.arrow_schema), fingerprint=f"{fingerprint_of(rows)[:59]}-text")
