"""Tables in Markdown: of model cards, results and benchmarks."""

import re
from collections.abc import Iterable, Sequence


NOT_RECORDED = "not recorded"


def table_cell(value) -> str:
    """A value as text that stays in its cell: in one line, with `|` escaped; `None` as "not recorded"."""
    return re.sub(r"\s+", " ", str(NOT_RECORDED if value is None else value)).replace("|", "\\|")


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable], spaced: bool = False) -> str:
    """A table in Markdown; without a newline at its end.

    Args:
        columns: their names, which may be empty.
        rows: the values of each row, one for each column (see `table_cell`).
        spaced: whether the line beneath the names is `| --- |`, as results have always had it, and not `|---|`.
    """
    head = "|".join(f" {table_cell(name)} " if name else " " for name in columns)
    lines = ["| " + " | ".join(map(table_cell, row)) + " |" for row in rows]
    rule = "| --- " if spaced else "|---"
    return "\n".join([f"|{head}|", rule * len(columns) + "|", *lines])
