"""Comparison rows as Markdown and CSV: the twins of the HTML report, for a README and for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from edgequant.reporting.columns import IDENTITY, Column, Row, columns, headline, is_metric

MAX_METRICS = 12


def markdown_table(rows: Sequence[Row]) -> str:
    """A Markdown table with units in the headings and the best value of each metric in bold."""
    if not rows:
        return "Nothing was measured.\n"
    shown = headline(columns(rows), MAX_METRICS)
    lines = [
        _line([markdown_text(column.heading) for column in shown]),
        _line(["---:" if column.is_number else "---" for column in shown]),
    ]
    for index in range(len(rows)):
        cells = [(markdown_text(column.cells[index]), index in column.best) for column in shown]
        lines.append(_line([f"**{text}**" if best else text for text, best in cells]))
    return "\n".join(lines) + "\n"


def turned_table(shown: Sequence[Column]) -> str:
    """A Markdown table for a narrow page: a line for each metric and a column for each row, headed by its names.

    Args:
        shown: columns of at least one row, names among them.
    """
    names = [column for column in shown if column.key in IDENTITY]
    telling = [name for name in names if len(set(name.cells)) > 1] or names[:1]
    rows = range(len(shown[0].cells))
    heads = [" ".join(name.cells[at] for name in telling if name.cells[at] != "none") for at in rows]
    lines = [_line(["", *map(markdown_text, heads)]), _line(["---", *["---:"] * len(rows)])]
    return "\n".join([*lines, *(_turned_line(column) for column in shown if column not in names)])


def _turned_line(column: Column) -> str:
    cells = [(markdown_text(cell), at in column.best) for at, cell in enumerate(column.cells)]
    return _line([markdown_text(column.heading), *(f"**{text}**" if best else text for text, best in cells)])


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is: names of runs and models come from users."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", one_line).replace("&", "&amp;")


def csv_table(rows: Sequence[Row]) -> str:
    """Every key of every row, metrics in full precision under their own names; absent values are empty."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    ordered = sorted(keys, key=lambda key: (is_metric(key), IDENTITY.index(key) if key in IDENTITY else len(IDENTITY)))
    written = io.StringIO()
    writer = csv.DictWriter(written, ordered, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{key: _csv_value(row.get(key)) for key in ordered} for row in rows])
    return written.getvalue()


def _csv_value(value: Any) -> Any:
    """A text that begins like a formula is quoted, so that no spreadsheet executes a run's name."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return "" if value is None else value


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
