"""One HTML file that says what was compared, with what result, and how it was measured; it needs no network to open."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from edgequant.reporting.columns import (
    Column,
    Row,
    columns,
    figure_metrics,
    headline,
    is_bound,
    is_finite,
    is_metric,
    metric,
)
from edgequant.reporting.comparison import Comparison
from edgequant.reporting.plots import bars, scatter
from edgequant.reporting.protocols import protocols_for
from edgequant.reporting.tables import MAX_METRICS, markdown_table, markdown_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from edgequant.tracking.search import FinishedRun

SIZE, DECODE = "size/checkpoint_gb", "latency/decode_ms_per_token"
MORE_PAIRS = ((SIZE, DECODE), ("domain/perplexity", "squad/f1"))


def html_report(comparison: Comparison, title: str = "edgequant report") -> str:
    """The report as one self-contained page: plotly.js is inside, once; every text is escaped."""
    from plotly.offline import get_plotlyjs

    named = figures(comparison.rows)
    everything = sorted(columns(comparison.rows), key=lambda column: column.key == "run")  # links last: figures first
    shown = headline(everything, MAX_METRICS)
    links = {row["run"]: run.url for row, run in zip(comparison.rows, comparison.runs, strict=True) if "run" in row}
    return _template().render(
        title=title,
        made=f"Made {_time()} from {len(comparison.parents)} MLflow runs.",
        summary=summary(comparison),
        runs=[_run(parent, comparison.environments.get(parent.id, {})) for parent in comparison.parents],
        warnings=comparison.warnings,
        results=_table(shown, len(comparison.rows), links),
        left_out=len(everything) - len(shown),
        everything=_table(everything, len(comparison.rows), links),
        figures=[{"label": figure.layout.title.text, "wide": "-against-" in name} for name, figure in named.items()],
        figures_json=_script_json([json.loads(figure.to_json()) for figure in named.values()]),
        plotly_js=Markup(get_plotlyjs()),
        protocols=protocols_for(key for row in comparison.rows for key in row if is_metric(key)),
    )


def markdown_report(comparison: Comparison, title: str = "edgequant report") -> str:
    """The same in Markdown, without plots."""
    lines = [f"# {markdown_text(title)}", "", markdown_text(summary(comparison)), "", markdown_table(comparison.rows)]
    if comparison.warnings:
        lines += ["## Before you compare", "", *(f"- {markdown_text(text)}" for text in comparison.warnings), ""]
    lines += ["## How it was measured", ""]
    names = [key for row in comparison.rows for key in row if is_metric(key)]
    lines += [f"- **{group}**: {markdown_text(text)}" for group, text in protocols_for(names).items()]
    lines += ["", "## Runs", ""]
    for parent in comparison.parents:
        details = _run(parent, comparison.environments.get(parent.id, {}))
        lines.append(f"- [{markdown_text(details['label'])}](<{parent.url}>), commit `{details['commit']}`")
    return "\n".join(lines) + "\n"


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Plots for the metrics that at least two rows have: trade-offs first, then bars; by a name fit for a file."""
    found = {}
    for x, y in (*((SIZE, quality) for quality in _quality()), *MORE_PAIRS):
        if sum(is_finite(row.get(x)) and is_finite(row.get(y)) for row in rows) > 1:
            found[f"{_file_name(y)}-against-{_file_name(x)}"] = scatter(rows, x, y)
    for name in figure_metrics():
        if sum(is_finite(row.get(name)) for row in rows) > 1:
            found[_file_name(name)] = bars(rows, name)
    return found


def _quality() -> list[str]:
    return [name for name in figure_metrics() if name not in (SIZE, DECODE)]


def summary(comparison: Comparison) -> str:
    """One or two sentences: what is compared, and the smallest and the best of it."""
    rows = comparison.rows
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    counted = f"{len(rows)} measurement{'s' if len(rows) != 1 else ''} of {', '.join(models)}."
    return " ".join([counted, *finding(rows)])


def finding(rows: Sequence[Row]) -> list[str]:
    """How the best quantised model stands against the baseline that it was made of, if both are there."""
    quality = next((name for name in _quality() if sum(is_finite(row.get(name)) for row in rows) > 1), None)
    candidates = [row for row in rows if not str(row.get("variant")).startswith(("baseline", "control"))]
    small = [row for row in candidates if is_finite(row.get(SIZE)) and row.get("scheme") not in (None, "", "none")]
    if quality is None or not small:
        return []
    best = min((row for row in small if is_finite(row.get(quality))), key=lambda row: _cost(row, quality), default=None)
    plain = [row for row in rows if row.get("variant") == "baseline" and row.get("scheme") in (None, "", "none")]
    baseline = next((row for row in plain if best and row["model"] == best["model"]), None)
    if best is None or baseline is None or not is_finite(baseline.get(quality)):
        return []
    pair = {column.key: column for column in columns([baseline, best])}
    before, after = pair[quality].cells
    size = (
        f", {pair['size/reduction_vs_fp16'].cells[1]} % smaller than fp16" if "size/reduction_vs_fp16" in pair else ""
    )
    label = f"{best['variant']} {best['scheme']}{size}"
    return [f"Best quantised: {label}; {pair[quality].heading} {after} (baseline {before})."]


def _cost(row: Row, name: str) -> float:
    return float(row[name]) * (-1 if metric(name).better == "higher" else 1)


def _run(parent: FinishedRun, environment: dict[str, Any]) -> dict[str, Any]:
    when = datetime.fromtimestamp(parent.start_time / 1000, UTC)
    prefix = "cfg."
    given = sorted((key.removeprefix(prefix), value) for key, value in parent.params.items() if key.startswith(prefix))
    commit = parent.tags.get("mlflow.source.git.commit", "unknown")
    dirty = " with uncommitted changes" if parent.tags.get("edgequant.git_dirty") == "true" else ""
    return {
        "url": parent.url,
        "label": f"{parent.workflow or parent.name} {parent.id[:8]}",
        "detail": f"{when:%d %B %Y %H:%M} UTC, {parent.status.lower()}, {parent.name}",
        "commit": commit[:12] + dirty,
        "machine": _machine(environment),
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


def _table(shown: list[Column], rows: int, links: dict[str, str]) -> Markup:
    heads = Markup("").join(Markup('<th class="{}">{}</th>').format(_class(column), column.heading) for column in shown)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_cell(column, row, links) for column in shown))
        for row in range(rows)
    )
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        heads, body
    )


def _class(column: Column) -> str:
    return "number" if column.is_number else "name"


def _cell(column: Column, row: int, links: dict[str, str]) -> Markup:
    text = column.cells[row]
    value, _, interval = text.partition(" (") if is_metric(column.key) and not is_bound(column.key) else (text, "", "")
    content = Markup('<a href="{}">{}</a>').format(links[text], text) if column.key == "run" else escape(value)
    best = " best" if row in column.best else ""
    small = Markup('<span class="interval">{}</span>').format(interval.rstrip(")")) if interval else ""
    return Markup('<td class="{}"><span class="{}">{}</span>{}</td>').format(
        _class(column), best.strip(), content, small
    )


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(value)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _file_name(name: str) -> str:
    return name.replace("/", "-").replace("_", "-")


def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("report.html.jinja")


def _time() -> str:
    return f"{datetime.now(UTC):%d %B %Y %H:%M} UTC"
