"""Tables in the terminal, as wide as it is."""

from __future__ import annotations

import sys
import textwrap
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
NARROWEST = 10  # of a heading that takes several lines
LEAST_WRAPPED = 36  # characters in which a long text of every row, such as a reason, is still read


def summary_console() -> Console:
    """The terminal at its own width; 100 columns where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


def print_table(title: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Rows as a table that fits the console: as it is, turned (few models, many metrics), or cut into several.

    A long text that every row has, such as a verdict's reason, is wrapped in the last column where there is room; long
    texts of some rows stand below.
    """
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
    explained = len(remarks) == 1 and _explains(shown, remarks[0], len(rows), console)
    tables = [_table([*shown, *remarks], len(rows))] if explained else _fitting_tables(shown, len(rows), console)
    title = f"{title} · {shared}" if shared and shared not in title else title
    console.print(title, style="bold", markup=False, highlight=False, soft_wrap=True)
    for table in tables:
        console.print(table)
    if any(column.best for column in shown):
        console.print("* best of its column or line", style="dim")
    for line in [] if explained else _remark_lines(remarks, shown):
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
    for folded in (False, True):
        turned = _turned(shown, range(rows), folded=folded)
        if rows <= TURNED_ROWS and _fits(turned, console):
            return [turned]
    alone, owner = _of_one_row(shown, rows)
    kept = [column for column in shown if column not in alone]
    rest = [_turned([shown[0], *alone], [owner])] if alone else []
    return [*(_table(part, rows, folded=True) for part in _parts(kept, rows, console)), *rest]


def _of_one_row(shown: list[Column], rows: int) -> tuple[list[Column], int]:
    """Columns that one and the same row of several has, such as those of what ships, and which it is."""
    from edgequant.reporting.columns import IDENTITY, MISSING

    having = {
        column.key: [at for at, cell in enumerate(column.cells) if cell != MISSING]
        for column in shown
        if column.key not in IDENTITY
    }
    found = [column for column in shown if len(having.get(column.key, ())) == 1]
    owners = {having[column.key][0] for column in found}
    return (found, owners.pop()) if rows > 1 and len(owners) == 1 and len(found) > 1 else ([], 0)


def _explains(shown: list[Column], texts: Column, rows: int, console: Console) -> bool:
    """Whether each of several rows has a text, and there is room for it beside the other columns."""
    from edgequant.reporting.columns import MISSING

    room = console.width - _width(_table(shown, rows), console)
    return rows > 1 and MISSING not in texts.cells and room >= LEAST_WRAPPED


def _fits(table: Table, console: Console) -> bool:
    return _width(table, console) <= console.width


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum


def _parts(shown: list[Column], rows: int, console: Console) -> list[list[Column]]:
    """Columns in groups that fit side by side; the names that tell the rows apart are repeated in each."""
    from edgequant.reporting.columns import IDENTITY

    names = [column for column in shown if column.key in IDENTITY]
    telling = [name for name in names if len(set(name.cells)) == rows][:1] or names
    parts: list[list[Column]] = []
    for column in (column for column in shown if column.key not in IDENTITY):
        if parts and _fits(_table([*parts[-1], column], rows, folded=True), console):
            parts[-1].append(column)
        else:
            parts.append([*(telling if parts else names), column])
    return parts or [names]


def _table(shown: list[Column], rows: int, *, folded: bool = False) -> Table:
    """`folded`: headings take as many lines as keep them as narrow as their column."""
    table = _empty_table()
    for column in shown:
        heading = _folded(column) if folded else column.heading
        table.add_column(_plain(heading), justify="right" if column.is_number else "left", overflow="fold")
    for row in range(rows):
        table.add_row(*(_cell(column, row) for column in shown))
    return table


def _folded(column: Column) -> str:
    width = max(NARROWEST, *(len(cell) + 1 for cell in column.cells))
    return "\n".join(textwrap.wrap(column.heading, width, break_long_words=False))


def _turned(shown: list[Column], rows: Sequence[int], *, folded: bool = False) -> Table:
    """`folded`: what a line stands on is under its heading instead of behind it."""
    table = _empty_table()
    table.add_column(_plain(shown[0].heading))
    for row in rows:
        table.add_column(_plain(shown[0].cells[row]), justify="right", overflow="fold")
    for column in shown[1:]:
        heading = column.heading.removesuffix(f", {column.counted}") if folded and column.counted else column.heading
        under = f"\n  {column.counted}" if heading != column.heading else ""
        table.add_row(_plain(heading + under), *(_cell(column, row) for row in rows))
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
