"""What the cells of CSV files say, where it is not what they are read as: a number, or nothing."""

import logging
import math
import re
from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features, Value

from ..decoding import is_image_file
from ..labels import as_numbers
from ..reading import open_file
from ..sources import fingerprint_of


logger = logging.getLogger("a2mim")

WHOLE = re.compile(r"[+-]?[0-9]+")


def keep_texts(
    parts: Sequence[Dataset], files: Sequence[str], separators: Sequence[str], token: str | None = None
) -> list[Dataset]:
    """The rows of CSV files as they were read, but with what pandas takes from texts: columns of whole numbers as text
    that say more so, which is logged ("01" would become 1, "1e3" and "1000" would become the same, and so would large
    numbers that are read as float64), and words that it takes for missing ("None", "NA") in columns of words.

    Args:
        parts: the rows of each file.
        files: paths or URLs.
        separators: between the columns of each.
        token: of the Hub.
    """
    texts = [
        _texts(file, separator, token) if _numbers(rows) or _gaps(rows) else {}
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
    worded = _worded(parts)
    return [_with(rows, own, lost, worded) for rows, own in zip(parts, texts, strict=True)]


def _numbers(rows: Dataset) -> list[str]:
    kinds = ("int", "uint", "float", "bool")
    return [c for c, kind in rows.features.items() if isinstance(kind, Value) and kind.dtype.startswith(kinds)]


def _strings(rows: Dataset) -> list[str]:
    return [c for c, kind in rows.features.items() if isinstance(kind, Value) and "string" in kind.dtype]


def _gaps(rows: Dataset) -> list[str]:
    return [column for column in _strings(rows) if rows.data[column].null_count]


def names_images(values: Sequence[str | None]) -> bool:
    """Whether texts are names of files of images, as far as they are there."""
    values = [value for value in values if value]
    return bool(values) and all(is_image_file(value.split("?")[0]) for value in values)


def _worded(parts: Sequence[Dataset]) -> dict[str, Value]:
    """The columns of words, in which "None" is one, too; beside numbers, files or JSON it says that there is none."""
    kinds = {column: rows.features[column] for rows in parts for column in _strings(rows)}
    for column in list(kinds):
        cells = {cell for rows in parts if column in _strings(rows) for cell in rows.data[column].unique().to_pylist()}
        json = any(cell is not None and cell.lstrip().startswith(("[", "{")) for cell in cells)
        if json or as_numbers(list(cells)) is not None or names_images(list(cells)):
            del kinds[column]
    return kinds


def _texts(file: str, sep: str, token: str | None) -> dict[str, list[str | None]]:
    """The cells of each column; `None` for empty ones."""
    options = {"token": token} if token and file.startswith("hf://") else {}
    with open_file(file, options) as stream:
        table = pd.read_csv(stream, dtype=str, sep=sep, keep_default_na=False, na_values=[""])
    return {str(column): [cell if isinstance(cell, str) else None for cell in table[column]] for column in table}


def _differing(texts: Sequence[str | None], numbers: Sequence[float | None]) -> tuple[str, str, bool] | None:
    """A text, what its number would be written as, and whether that occurs as well; the latter is looked for first.
    `None` if all texts are told apart by their numbers, or numbers are no classes but fractions."""
    cells = sorted({(t.strip(), n) for t, n in zip(texts, numbers, strict=True) if t is not None and n is not None})
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


def _with(rows: Dataset, texts: dict[str, list[str | None]], lost: set[str], worded: dict[str, Value]) -> Dataset:
    table, kinds = rows.data.table, dict(rows.features)
    for column in [c for c in rows.column_names if c in texts]:
        cells, read = texts[column], rows.data[column].to_pylist()
        if column in lost and column in _numbers(rows):
            kinds[column] = Value("string")
            read = [None if value is None else cell.strip() for cell, value in zip(cells, read, strict=True)]
        # A file may be of one class alone, "None", beside files of other words.
        elif column in worded and (column in _strings(rows) or all(value is None for value in read)):
            kinds[column] = worded[column]
            read = [cell if value is None else value for cell, value in zip(cells, read, strict=True)]
        else:
            continue
        values = pa.array(read, kinds[column].pa_type)
        table = table.set_column(rows.column_names.index(column), column, values)
    features = Features(kinds)
    table = table.cast(features.arrow_schema)
    if table.equals(rows.data.table):
        return rows
    return Dataset(table, fingerprint=f"{fingerprint_of(rows)[:59]}-text")
