"""How every workflow ends: the summary table, the run's URL and the next command. The same rows go to summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgequant.reporting.console import print_table, summary_console

if TYPE_CHECKING:
    from edgequant.tracking.runs import Run


def print_summary(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    run: Run,
    next_command: str | None,
    *,
    lead: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Print the summary table and what to do next, and file the rows as the run's `summary.json`.

    Args:
        title: what was compared, e.g. "qat: smollm2-135m, w4a8-g32+emb4".
        rows: one per model; keys `model`, `variant`, `scheme`, metric names with their `_ci_low` and
            `_ci_high`, or any other key, whose value is printed as it is. None and absent values become a dash.
        run: the workflow's run.
        next_command: what a user would type next, or None.
        lead: lines above the table: what it comes to.
        notes: lines below the table: what it does not show, and why.
    """
    from edgequant import tracking

    tracking.log_summary(rows)
    console = summary_console()
    for line in ("", *lead) if lead else ():
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    print_table(title, rows, console)
    for line in notes:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"run   {run.url}", soft_wrap=True, markup=False, highlight=False)
    for label, command in (("show", tracking.ui_command()), ("next", next_command)):
        if command:
            console.print(f"{label}  {command}", soft_wrap=True, markup=False, highlight=False)
