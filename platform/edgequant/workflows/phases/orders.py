"""The orders of adapting and quantising in one table, with paired differences from the base and the adapted model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgequant.evaluation.evidence import floor_of
from edgequant.evaluation.evidence_file import kept_items
from edgequant.evaluation.harm import Loss, losses
from edgequant.evaluation.tasks.task import Metric
from edgequant.files import write_atomically
from edgequant.reporting.columns import metric, shown_metric, summary_metrics
from edgequant.workflows.phases.plan import Plan
from edgequant.workflows.shipping import TimingPlan, deploy_folder
from edgequant.workflows.steps.measure import measure_items, quality_only

BASE, ADAPTED, QUANTIZED = "base", "adapted", "quantised"
ORDER_NAMES = {"before": "adapted->quantised", "after": "quantised->adapted", "joint": "joint"}
HEADLINE = "domain/perplexity"
FILE = "orders.md"


class Row(NamedTuple):
    """One model of the table.

    Attributes:
        name: of the row.
        scheme: `none` in floating point.
        metrics: measured on it, and what ships.
        items: rows behind the metrics by table.
    """

    name: str
    scheme: str
    metrics: dict[str, float]
    items: dict[str, list[dict[str, Any]]]


def places(plan: Plan) -> dict[str, tuple[str, str]]:
    """Model and scheme of each row whose model is there."""
    rows = {
        BASE: (plan.model, "none"),
        ADAPTED: (str(plan.adapted), "none"),
        QUANTIZED: (str(plan.quantized), plan.scheme),
    }
    rows |= {ORDER_NAMES[order]: (str(plan.ordered(order)), plan.scheme) for order in plan.adapt}
    return {name: place for name, place in rows.items() if name == BASE or Path(place[0]).is_dir()}


def measure_orders(plan: Plan, name: str, timing: TimingPlan) -> list[Row]:
    """Every row on the same items, in a nested run of the active one; what was scored before is read from the cache."""
    from edgequant import models, tracking
    from edgequant.workflows.steps.data import evaluation_data

    data, found = evaluation_data(plan.evaluation.tasks, plan.run.data_dir, plan.dataset), []
    for row, (place, scheme) in places(plan).items():
        with tracking.variant_run(row, model=name, scheme=scheme, phase="compare"):
            loaded = models.load(place, dtype=plan.run.dtype, device=plan.run.device)
            checkpoint = Path(place) if scheme != "none" else None
            measured = measure_items(
                loaded.model, loaded.tokenizer, data, quality_only(plan.evaluation), checkpoint=loaded.stored
            )
            ships = deploy_folder(checkpoint, None, timing).metrics if checkpoint is not None else {}
            tracking.log_metrics(ships)
            found.append(Row(row, scheme, measured.metrics | ships, kept_items(measured.items)))
    return found


def paired_with(reference: str, rows: list[Row]) -> dict[str, list[Loss]]:
    """Every other row's losses against a row, by the row's name; empty where there is no such row."""
    against = next((row for row in rows if row.name == reference), None)
    if against is None:
        return {}
    others = [row for row in rows if row.name not in (BASE, reference)]
    return {row.name: losses(against.items, row.items, perplexity_margin=0.0, task_margin=0.0) for row in others}


def verdict(rows: list[Row]) -> str:
    """Which order wins on domain text, by how much; or from which ones it is not told."""
    ordered = [row for row in rows if row.name in ORDER_NAMES.values() and HEADLINE in row.metrics]
    if len(ordered) < 2:
        return ""
    best, *others = sorted(ordered, key=lambda row: row.metrics[HEADLINE])
    compared = {
        other.name: loss
        for other in others
        for loss in losses(best.items, other.items, perplexity_margin=0.0, task_margin=0.0)
        if loss.metric == HEADLINE
    }
    tied = [name for name, loss in compared.items() if not loss.shown]
    first = f"{best.name} has the lowest domain perplexity"
    if tied:
        first = f"{best.name} is not told from {' and '.join(tied)}"
    if len(tied) == len(compared):
        first = "no order is told from the best"
    told = [f"{name} {_told(loss)} {'above' if loss.shown else 'above, undecided'}" for name, loss in compared.items()]
    return f"{first}: {best.name} {best.metrics[HEADLINE]:.4g}; {'; '.join(told)}"


def table(rows: list[Row]) -> str:
    """The table and its paired differences as Markdown."""
    wanted = dict.fromkeys((*summary_metrics(), "deploy/size_gb", "deploy/decode_ms_per_token"))
    names = [name for name in wanted if any(name in row.metrics for row in rows)]
    shown = {name: shown_metric(name, [row.metrics[name] for row in rows if name in row.metrics]) for name in names}
    heads = [_heading(rows, name, shown[name]) for name in names]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row.name} | " + " | ".join(_cell(row.metrics, name, shown[name]) for name in names) + " |")
    for reference, title in ((BASE, "the base"), (ADAPTED, "the floating-point adapted model")):
        lines += _paired_lines(
            paired_with(reference, rows), f"Against {title}, paired item by item; + is worse; verdicts after Holm:"
        )
    if said := verdict(rows):
        lines += ["", said]
    return "\n".join(lines) + "\n"


def write_table(rows: list[Row], folder: Path) -> Path:
    """`orders.md`, and the figures behind it as orders.json; returns the former."""
    figures = [{"row": row.name, "scheme": row.scheme, **row.metrics} for row in rows]
    write_atomically(folder / "orders.json", json.dumps(figures, indent=1))
    return write_atomically(folder / FILE, table(rows))


def _paired_lines(found: Mapping[str, list[Loss]], title: str) -> list[str]:
    names = list(dict.fromkeys(loss.metric for each in found.values() for loss in each))
    if not names:
        return []
    lines = [
        "",
        title,
        "",
        "| | " + " | ".join(metric(name).heading for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row, each in found.items():
        cells = {loss.metric: _told(loss, outcome=True) for loss in each}
        lines.append(f"| {row} | " + " | ".join(cells.get(name, "—") for name in names) + " |")
    return lines


def _heading(rows: list[Row], name: str, shown: Metric) -> str:
    """With what all rows, which are measured on the same items, stand on."""
    on = next(metric(name).counted(row.metrics) for row in rows if name in row.metrics)
    return f"{shown.label}, {on}" if on else shown.label


def _cell(metrics: Mapping[str, float], name: str, shown: Metric) -> str:
    if name not in metrics:
        return "—"
    chance = floor_of(name, metrics)
    return f"{metrics[name] * shown.scale:.{shown.digits}g}{', ' + chance if chance else ''}"


def _told(loss: Loss, *, outcome: bool = False) -> str:
    unit = f" {loss.unit}"
    digits = 3 if loss.unit == "nats" else 1
    return f"{loss.loss:+.{digits}f}{unit} ({loss.interval}){': ' + loss.outcome if outcome else ''}"
