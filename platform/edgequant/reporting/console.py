"""Tables in the terminal, as wide as it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edgequant.reporting.columns import Column

PLAIN_WIDTH = 100  # characters, where output goes to a file or a pipe
MAX_METRICS = 12  # with more, only those that people compare first; summary.json has them all
LONG_TEXT = 40  # longer texts (warnings, hashes) stand below the table
TURNED_ROWS = 5  # up to so many models stand side by side, one line per metric


def summary_console() -> Console:
    """The terminal at its own width; 100 columns where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


def print_table(title: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Rows as a table that fits the console: as it is, turned (few models, many metrics), or cut into several."""
    from edgequant.reporting.columns import columns, core, headline

    console.print()
    if not rows:
        console.print(f"{title}: nothing to show", markup=False)
        return
    everything = columns(rows)
    chosen = headline(everything, MAX_METRICS)
    if len(rows) > TURNED_ROWS and not _fits(_table(chosen, len(rows)), console):
        chosen = core(chosen)
    shown, shared = _without_shared_names(chosen)
    remarks = [column for column in shown if not column.is_number and max(map(len, column.cells)) > LONG_TEXT]
    shown = [column for column in shown if column not in remarks] or shown
    title = f"{title} · {shared}" if shared and shared not in title else title
    for table in _fitting_tables(shown, len(rows), console):
        console.print(title, style="bold", markup=False, highlight=False)
        console.print(table)
    if any(column.best for column in shown):
        console.print("* best of its column or line", style="dim")
    for line in _remark_lines(remarks, shown):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if left_out := len(everything) - len(chosen):
        console.print(f"{left_out} more metrics are in the run and in summary.json", style="dim")


def _remark_lines(remarks: list[Column], shown: list[Column]) -> list[str]:
    """`qat w8a8: warning ...`, named by what tells the row apart."""
    from edgequant.reporting.columns import IDENTITY, MISSING

    names = [column for column in shown if column.key in IDENTITY and len(set(column.cells)) > 1]
    lines = []
    for column in remarks:
        for row, cell in enumerate(column.cells):
            if cell != MISSING:
                owner = " ".join(name.cells[row] for name in names)
                lines.append(f"{owner} {column.heading}: {cell}".strip())
    return lines


def _without_shared_names(shown: list[Column]) -> tuple[list[Column], str]:
    """Leave out the names that all rows share (model, scheme, ...) while one is left; the title says them instead."""
    from edgequant.reporting.columns import IDENTITY

    names = [column for column in shown if column.key in IDENTITY]
    shared = [column for column in names if len(column.cells) > 1 and len(set(column.cells)) == 1]
    if len(shared) == len(names):
        return shown, ""
    return [column for column in shown if column not in shared], ", ".join(column.cells[0] for column in shared)


def _fitting_tables(shown: list[Column], rows: int, console: Console) -> list[Table]:
    whole = _table(shown, rows)
    if _fits(whole, console):
        return [whole]
    turned = _turned(shown, rows)
    if rows <= TURNED_ROWS and _fits(turned, console):
        return [turned]
    return [_table(part, rows) for part in _parts(shown, rows, console)]


def _fits(table: Table, console: Console) -> bool:
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width


def _parts(shown: list[Column], rows: int, console: Console) -> list[list[Column]]:
    """Columns in groups that fit side by side, the names of the rows repeated in each."""
    from edgequant.reporting.columns import IDENTITY

    names = [column for column in shown if column.key in IDENTITY]
    parts: list[list[Column]] = []
    for column in (column for column in shown if column.key not in IDENTITY):
        if parts and _fits(_table([*parts[-1], column], rows), console):
            parts[-1].append(column)
        else:
            parts.append([*names, column])
    return parts or [names]


def _table(shown: list[Column], rows: int) -> Table:
    table = _empty_table()
    for column in shown:
        table.add_column(_plain(column.heading), justify="right" if column.is_number else "left", overflow="fold")
    for row in range(rows):
        table.add_row(*(_cell(column, row) for column in shown))
    return table


def _turned(shown: list[Column], rows: int) -> Table:
    table = _empty_table()
    table.add_column(_plain(shown[0].heading))
    for row in range(rows):
        table.add_column(_plain(shown[0].cells[row]), justify="right", overflow="fold")
    for column in shown[1:]:
        table.add_row(_plain(column.heading), *(_cell(column, row) for row in range(rows)))
    return table


def _empty_table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")


def _cell(column: Column, row: int) -> Any:
    if row in column.best:
        return _plain(f"{column.cells[row]}*", style="bold green")
    return _plain(column.cells[row] + (" " if column.best and column.is_number else ""))


def _plain(text: str, style: str = "") -> Any:
    """Text that rich does not read as markup: names come from users."""
    from rich.text import Text

    return Text(text, style=style)
