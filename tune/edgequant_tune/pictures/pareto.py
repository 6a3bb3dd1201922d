"""Two metrics of all finished trials: the front, what constraints forbid, the untuned recipe and the best trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgequant.reporting import plots
from edgequant.reporting.columns import shown_metric
from edgequant_tune.objectives import Constraint
from edgequant_tune.trial_records import RECIPE, TrialRecord, broken

FORBIDDEN = "#b2182b"
GRAY = "#999999"


def pareto(finished: Sequence[TrialRecord], x: str, y: str, constraints: Sequence[Constraint]) -> Any:
    """Scatter plot of trials; those that break a constraint are crosses, and no part of the front.

    Args:
        finished: best first.
        constraints: drawn where they bound one of the two metrics.
    """
    kept = [record for record in finished if not broken(record)] or list(finished)
    figure = plots.scatter([_point(record, finished[0]) for record in kept], x, y)
    scales = _scales([record.metrics for record in kept], x, y)
    _add_broken(figure, [record for record in finished if record not in kept], scales)
    _add_bounds(figure, constraints, scales)
    return figure


def on_test_data(rows: Sequence[Mapping[str, Any]], x: str, y: str, constraints: Sequence[Constraint]) -> Any:
    """The front as it was measured in full, with confidence intervals, beside the untuned recipe and the model."""
    figure = plots.scatter([{**row, "variant": _NAMES.get(row["variant"], row["variant"])} for row in rows], x, y)
    _add_bounds(figure, constraints, _scales(rows, x, y))
    return figure


_NAMES = {"recipe": "untuned recipe", "tuned": "best trial"}


def _point(record: TrialRecord, best: TrialRecord) -> dict[str, Any]:
    names = [record.name]
    names += ["best"] if record is best else []
    names += ["untuned recipe"] if record.number == RECIPE else []
    return {"variant": ", ".join(names), "scheme": record.values.get("scheme", "")} | record.metrics


def _scales(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[str, float]:
    """By what a metric is multiplied where it is shown; horizontal first."""
    return {name: shown_metric(name, [row[name] for row in rows if name in row]).scale for name in (x, y)}


def _add_broken(figure: Any, records: Sequence[TrialRecord], scales: Mapping[str, float]) -> None:
    from plotly.graph_objects import Scatter

    if not records:
        return
    xs, ys = ([record.metrics[name] * scale for record in records] for name, scale in scales.items())
    figure.add_trace(
        Scatter(
            x=xs, y=ys, mode="markers", marker={"symbol": "x", "color": GRAY, "size": 7},
            customdata=[record.name for record in records],
            hovertemplate="%{customdata} breaks a constraint<br>%{x:.4~g}, %{y:.4~g}<extra></extra>",
        )
    )  # fmt: skip
    for axis, values in ((figure.layout.xaxis, xs), (figure.layout.yaxis, ys)):
        _reach(axis, *values)


def _add_bounds(figure: Any, constraints: Sequence[Constraint], scales: Mapping[str, float]) -> None:
    """A line for each constraint on one of the two metrics."""
    x, _ = scales
    for constraint in (one for one in constraints if one.metric in scales):
        bound = constraint.bound * scales[constraint.metric]
        draw = _upright if constraint.metric == x else _level
        draw(figure, bound, str(constraint).replace("<", "&lt;").replace(">", "&gt;"))


def _upright(figure: Any, bound: float, said: str) -> None:
    _reach(figure.layout.xaxis, bound)
    _line(figure, [bound, bound], _ends(figure.layout.yaxis), said)
    place = _placed(figure.layout.xaxis, bound)
    figure.add_annotation(x=place, y=1, xref="x", yref="paper", text=said, xanchor="left", yanchor="top", **_NOTE)


def _level(figure: Any, bound: float, said: str) -> None:
    _reach(figure.layout.yaxis, bound)
    _line(figure, _ends(figure.layout.xaxis), [bound, bound], said)
    place = _placed(figure.layout.yaxis, bound)
    figure.add_annotation(x=1, y=place, xref="paper", yref="y", text=said, xanchor="right", yanchor="bottom", **_NOTE)


_NOTE: dict[str, Any] = {"showarrow": False, "font": {"color": FORBIDDEN, "size": 11}}


def _line(figure: Any, xs: list[float], ys: list[float], said: str) -> None:
    from plotly.graph_objects import Scatter

    line = {"color": FORBIDDEN, "dash": "dash", "width": 1.5}
    figure.add_trace(Scatter(x=xs, y=ys, mode="lines", line=line, hovertemplate=f"{said}<extra></extra>"))


def _placed(axis: Any, value: float) -> float:
    return math.log10(value) if axis.type == "log" else value


def _ends(axis: Any) -> list[float]:
    low, high = axis.range or (0.0, 1.0)
    return [10**low, 10**high] if axis.type == "log" else [low, high]


def _reach(axis: Any, *values: float) -> None:
    """Let an axis show values too."""
    if axis.range is None:
        return
    placed = [math.log10(value) if axis.type == "log" else value for value in values if axis.type != "log" or value > 0]
    low, high = axis.range
    room = 0.05 * (high - low)
    if placed:
        axis.range = [min(low, min(placed) - room), max(high, max(placed) + room)]
