"""Tables in Markdown: of model cards, results and benchmarks."""

import re
from collections.abc import Iterable, Sequence


NOT_RECORDED = "not recorded"


def table_cell(value) -> str:
    """A value as text that stays in its cell: in one line, with `|` escaped; `None` as "not recorded"."""
    return re.sub(r"\s+", " ", str(NOT_RECORDED if value is None else value)).replace("|", "\\|")


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable]) -> str:
    """A table in Markdown; without a newline at its end.

    Args:
        columns: their names, which may be empty.
        rows: the values of each row, one for each column (see `table_cell`).
    """
    head = "|".join(f" {table_cell(name)} " if name else " " for name in columns)
    lines = ["| " + " | ".join(map(table_cell, row)) + " |" for row in rows]
    return "\n".join([f"|{head}|", "|---" * len(columns) + "|", *lines])
