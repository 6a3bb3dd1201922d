"""How every workflow ends: the summary table, the run's URL and the next command. The same rows go to summary.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgequant.commands import runnable
from edgequant.errors import UserError
from edgequant.quantization.scheme import nearest_that_fits, parse_scheme
from edgequant.reporting.console import print_table, summary_console

MOST_COMPARED = 12  # columns of a page
DEFAULT = "w4a8-g32+emb4"  # of `ptq` and `qat`

if TYPE_CHECKING:
    from edgequant.evaluation.harm import Items
    from edgequant.tracking.runs import Run


def print_summary(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    run: Run,
    next_command: str | None,
    *,
    lead: Sequence[str] = (),
    notes: Sequence[str] = (),
    talk: str | None = None,
    shown: Sequence[Mapping[str, Any]] | None = None,
    items: Sequence[Items] = (),
) -> None:
    """Print the summary table and what to do next; file the rows as `summary.json`, and all of it as the run's text.

    Args:
        title: what was compared, e.g. "qat: smollm2-135m, w4a8-g32+emb4".
        rows: one per model; keys `model`, `variant`, `scheme`, metric names with their `_ci_low` and
            `_ci_high`, or any other key, whose value is printed as it is. None and absent values become a dash.
        run: the workflow's run.
        next_command: what a user would type next, or None.
        lead: lines above the table: what it comes to.
        notes: lines below the table: what it does not show, and why.
        talk: the command that talks with what ships, or None.
        shown: what people are shown of the rows, where that is not all of them.
        items: behind each row's metrics, by which it is told which of them is the best.
    """
    from edgequant import tracking
    from edgequant.reporting.description import description
    from edgequant.reporting.findings.best import finding

    if items:
        from edgequant.evaluation.ranking import with_best

        rows = with_best(rows, items)
    tracking.log_summary(rows)
    compare = comparison_page(run)
    following = next_command and runnable(next_command)
    told: dict[str, Any] = {
        "verdict": lead or finding(rows),
        "notes": notes,
        "following": following,
        "compare": compare,
    }
    tracking.describe_run(description(run.asked, rows if shown is None else shown, **told))
    console = summary_console()
    for line in ("", *lead) if lead else ():
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    print_table(title, rows if shown is None else shown, console)
    for line in notes:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"run   {run.url}", soft_wrap=True, markup=False, highlight=False)
    table = tracking.runs_url(run.experiment_id, tracking.VIEW)
    for label, page in (("table", table), ("compare", compare)):
        if page:
            console.print(f"{label} {page}", soft_wrap=True, markup=False, highlight=False)
    for label, command in (("show", tracking.ui_command()), ("talk", talk), ("next", next_command)):
        if command:
            console.print(f"{label}  {runnable(command)}", soft_wrap=True, markup=False, highlight=False)


def comparison_page(run: Run) -> str | None:
    """Where MLflow puts the models that a run measured side by side; None where they are fewer than two, or many."""
    from edgequant import tracking

    children = tracking.find_runs(parent=run.id)
    measured = [child.id for child in reversed(children) if child.tags.get("edgequant.variant") not in (None, "trial")]
    return tracking.compare_url(run.experiment_id, measured) if 2 <= len(measured) <= MOST_COMPARED else None


def fitting_scheme(model: str) -> str:
    """The default scheme of `ptq` and `qat`, or one close to it whose groups divide the model's widths."""
    from edgequant import models

    try:
        return nearest_that_fits(parse_scheme(DEFAULT), models.layer_inputs(model))
    except UserError:  # it is no more where it was
        return DEFAULT


def quantize_next(workflow: str, model: str) -> str:
    """The command that quantises a model next; names a scheme where the default's groups do not fit it."""
    scheme = fitting_scheme(model)
    named = "" if scheme == DEFAULT else f" --scheme {scheme}"
    return f"edgequant {workflow} --model {shlex.quote(model)}{named}"
