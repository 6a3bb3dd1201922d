"""One HTML file that says what was compared, with what result, and how it was measured; it needs no network to open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgequant.reporting.charts.gallery import gallery
from edgequant.reporting.charts.marks import listed, marks
from edgequant.reporting.columns import columns, is_metric
from edgequant.reporting.comparison import Comparison, Pair
from edgequant.reporting.findings.commands import Command
from edgequant.reporting.findings.domains import breakdowns
from edgequant.reporting.findings.in_words import in_words, is_delivered
from edgequant.reporting.pages.html_tables import (
    DECISIVE,
    Head,
    domains_table,
    everything_table,
    fitting,
    legend,
    paired_table,
    results_table,
    row_heads,
)
from edgequant.reporting.protocols import protocols_for

if TYPE_CHECKING:
    from edgequant.tracking.search import FinishedRun

SHIPPED = "deploy/"


def html_report(
    comparison: Comparison, title: str = "edgequant report", commands: Mapping[str, Command] | None = None
) -> str:
    """The report as one page with everything inside; every text is escaped.

    Args:
        commands: by the id of a workflow run, the command that makes it again.
    """
    rows, pairs, drawn = comparison.rows, comparison.pairs, marks(comparison.rows)
    links = [_anchor(owner) for owner in comparison.owners]
    heads = row_heads(rows, drawn, _badges(comparison), links)
    measured = [column for column in columns(rows) if is_metric(column.key)]
    shown = fitting([column for column in measured if not column.key.startswith(SHIPPED)])
    return _template().render(
        title=title,
        made=f"{_counted(len(rows), 'measurement')} from {_counted(len(comparison.parents), 'MLflow run')}, {_time()}.",
        told=in_words(comparison),
        warnings=comparison.warnings,
        results=results_table(rows, shown, heads),
        left_out=len(measured) - len(shown),
        against_others=_paired([pair for pair in pairs if pair.reference != "baseline"], heads, named=True),
        against_baseline=_paired([pair for pair in pairs if pair.reference == "baseline"], heads, named=False),
        domains=[
            (columns([{found.metric: 1.0}])[0].heading, domains_table(rows, found, heads, _baselines(rows)))
            for found in breakdowns(rows)
        ],
        shipped=_shipped(comparison, heads),
        legend=legend(drawn),
        groups=gallery(rows, drawn),
        runs=[_run(parent, comparison, (commands or {}).get(parent.id, Command(""))) for parent in comparison.parents],
        everything=everything_table(rows, drawn),
        metrics_count=len(measured),
        protocols=protocols_for(key for row in rows for key in row if is_metric(key)),
    )


def _badges(comparison: Comparison) -> dict[int, str]:
    return {at: "delivered" for at in range(len(comparison.rows)) if is_delivered(comparison, at)}


def _paired(pairs: Sequence[Pair], heads: Sequence[Head], *, named: bool) -> Markup:
    return paired_table(pairs, heads, named=named) if any(pair.losses for pair in pairs) else Markup("")


def _shipped(comparison: Comparison, heads: Sequence[Head]) -> Markup:
    """The rows of which something ships, with what was measured of it."""
    kept = [at for at, row in enumerate(comparison.rows) if any(key.startswith(SHIPPED) for key in row)]
    rows = [{key: value for key, value in comparison.rows[at].items() if key.startswith(SHIPPED)} for at in kept]
    shown = fitting(columns(rows), (*DECISIVE, "table"))
    return results_table(rows, shown, [heads[at] for at in kept]) if kept else Markup("")


def _baselines(rows: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """By row, the first baseline of its model."""
    first: dict[str, int] = {}
    for at, row in enumerate(rows):
        if row.get("variant") == "baseline":
            first.setdefault(str(row.get("model")), at)
    return [first.get(str(row.get("model"))) for row in rows]


def _anchor(run: FinishedRun) -> str:
    return f"run-{run.id[:8]}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _run(parent: FinishedRun, comparison: Comparison, command: Command) -> dict[str, Any]:
    when = datetime.fromtimestamp(parent.start_time / 1000, UTC)
    prefix = "cfg."
    given = sorted((key.removeprefix(prefix), value) for key, value in parent.params.items() if key.startswith(prefix))
    commit = parent.tags.get("mlflow.source.git.commit", "unknown")
    dirty = " with uncommitted changes" if parent.tags.get("edgequant.git_dirty") == "true" else ""
    numbers = [at for at, owner in enumerate(comparison.owners, 1) if owner.id == parent.id]
    return {
        "url": parent.url,
        "anchor": _anchor(parent),
        "label": f"{parent.workflow or parent.name} {parent.id[:8]}",
        "rows": f"row{'s' if len(numbers) > 1 else ''} {listed(numbers)}",
        "detail": f"{when:%d %B %Y %H:%M} UTC, {parent.status.lower()}, {parent.name}",
        "command": command,
        "commit": commit[:12] + dirty,
        "machine": _machine(comparison.environments.get(parent.id, {})),
        "configuration": given,
    }


def _machine(environment: dict[str, Any]) -> str:
    if not environment:
        return ""
    packages = environment.get("packages") or {}
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers") if packages.get(name))
    gpus = ", ".join(environment.get("gpus") or []) or "no GPU"
    memory = f"{environment.get('memory_gb', '?')} GB of memory"
    cores, python = environment.get("cpu_count", "?"), environment.get("python", "?")
    return f"{cores} CPU cores, {gpus}, {memory}; Python {python}, {versions}."


def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("report.html.jinja")


def _time() -> str:
    return f"{datetime.now(UTC):%d %B %Y %H:%M} UTC"
