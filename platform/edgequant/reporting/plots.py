"""Plotly figures from comparison rows: bars per metric, and one metric against another with the Pareto front.

Colours are those of Okabe and Ito (2008), told apart with every common colour vision; every bar and point carries its
name, so that no legend has to be looked up. Error bars are the confidence intervals beside the metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgequant.evaluation.tasks.task import Metric
from edgequant.reporting.columns import HIGH, IDENTITY, LOW, Row, is_finite, metric, shown_metric, significant
from edgequant.reporting.label_placement import label_positions

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

VARIANT_COLORS = {
    "baseline": "#767676",
    "control": "#56B4E9",
    "ptq": "#E69F00",
    "qat": "#0072B2",
    "finetuned": "#009E73",
}
OTHER_COLORS = ("#CC79A7", "#D55E00", "#009E73", "#56B4E9", "#E69F00")
SINGLE_COLOR = "#0072B2"
INK, GRID = "#4d4d4d", "rgba(128,128,128,0.25)"
LOG_ABOVE = 10.0  # a positive axis whose largest value is more than so many times the smallest is logarithmic


def bars(rows: Sequence[Row], metric_name: str) -> Figure:
    """Horizontal bars of one metric, one per row that has it, in the rows' order, with confidence intervals.

    Args:
        rows: comparison rows: `model`, `variant`, `scheme`, and metrics under edgequant's metric names.
        metric_name: e.g. `domain/perplexity`.
    """
    from plotly import graph_objects

    kept, labels, colors = _kept(rows, metric_name)
    shown = _shown(kept, metric_name)
    values = [row[metric_name] * shown.scale for row in kept]
    bar = graph_objects.Bar(
        x=values,
        y=list(range(len(kept))),
        orientation="h",
        width=0.6,
        marker={"color": colors, "line_width": 0},
        error_x=_error_bars(kept, metric_name, shown),
        text=[significant(value, shown.digits) for value in values],
        textposition="inside" if _has_interval(kept, metric_name) else "outside",
        insidetextanchor="start",
        cliponaxis=False,
        customdata=labels,
        hovertemplate="%{customdata}: %{text}<extra></extra>",
    )
    figure = graph_objects.Figure(bar if kept else None)
    figure.update_layout(_layout(shown.label, _direction(shown), 120 + 44 * max(1, len(kept))))
    figure.update_yaxes(
        tickvals=list(range(len(kept))),
        ticktext=labels,
        autorange="reversed",
        showgrid=False,
        automargin=True,
        ticklabelstandoff=8,
    )
    figure.update_xaxes(title_text="", rangemode="tozero", gridcolor=GRID, zerolinecolor=GRID)
    return figure if kept else _empty(figure, metric_name)


def scatter(rows: Sequence[Row], x: str, y: str) -> Figure:
    """One metric against another: a named point per row, confidence intervals, and the Pareto front as a dotted line.

    Rows that lack either metric are left out. The front is drawn where both metrics have a better end.
    """
    from plotly import graph_objects

    kept, labels, colors = _kept(rows, x, y)
    shown_x, shown_y = _shown(kept, x), _shown(kept, y)
    xs, ys = [row[x] * shown_x.scale for row in kept], [row[y] * shown_y.scale for row in kept]
    points = graph_objects.Scatter(
        x=xs,
        y=ys,
        mode="markers+text",
        marker={"color": colors, "size": 13},
        error_x=_error_bars(kept, x, shown_x),
        error_y=_error_bars(kept, y, shown_y),
        text=labels,
        textposition=label_positions(_placed(xs), _placed(ys), labels),
        cliponaxis=False,
        hovertemplate=f"%{{text}}<br>{shown_x.label} %{{x:.4~g}}<br>{shown_y.label} %{{y:.4~g}}<extra></extra>",
    )
    front = pareto_front(kept, x, y)
    line = graph_objects.Scatter(
        x=[xs[i] for i in front],
        y=[ys[i] for i in front],
        mode="lines",
        line={"color": "#999999", "width": 1.5, "dash": "dot"},
        hoverinfo="skip",
    )
    figure = graph_objects.Figure([line, points] if kept else None)
    figure.update_layout(_layout(f"{shown_y.label} against {shown_x.label}", _corner(shown_x, shown_y), 440))
    for axis, name, shown in ((figure.update_xaxes, x, shown_x), (figure.update_yaxes, y, shown_y)):
        reach = _scale(_reach(kept, name, shown))
        axis(title_text=shown.label, gridcolor=GRID, zeroline=False, automargin=True, **reach)
    return figure if kept else _empty(figure, x, y)


def pareto_front(rows: Sequence[Row], x: str, y: str) -> list[int]:
    """Indices of the rows that no other row beats in both metrics (equal in one, better in the other counts as beaten).

    Returns:
        Indices by increasing x; empty when one of the metrics has no better end.
    """
    signs = [{"lower": 1.0, "higher": -1.0}.get(metric(name).better or "") for name in (x, y)]
    if None in signs:
        return []
    costs = [tuple(float(row[name]) * (sign or 0.0) for name, sign in zip((x, y), signs, strict=True)) for row in rows]
    front = [i for i, cost in enumerate(costs) if not any(_dominates(other, cost) for other in costs)]
    return sorted(front, key=lambda i: float(rows[i][x]))


def row_labels(rows: Sequence[Row]) -> list[str]:
    """What tells the rows apart: those of model, variant and scheme that differ, and the run's name if none does."""
    varying = [key for key in IDENTITY if len({str(row.get(key, "")) for row in rows}) > 1]
    labels = [" ".join(str(row[key]) for key in varying if row.get(key) not in (None, "", "none")) for row in rows]
    plain = [
        label or str(row.get("variant") or row.get("model") or row.get("run") or "")
        for label, row in _pairs(labels, rows)
    ]
    return [
        f"{label} {row['run']}" if plain.count(label) > 1 and row.get("run") else label
        for label, row in _pairs(plain, rows)
    ]


def _pairs(labels: list[str], rows: Sequence[Row]) -> list[tuple[str, Row]]:
    return list(zip(labels, rows, strict=True))


def _kept(rows: Sequence[Row], *names: str) -> tuple[list[Row], list[str], list[str]]:
    """Rows that have all the metrics, with the labels and colours they have among all rows (so that figures agree)."""
    chosen = [
        (row, escape_label(label), color)
        for row, label, color in zip(rows, row_labels(rows), _colors(rows), strict=True)
        if all(is_finite(row.get(name)) for name in names)
    ]
    return [row for row, _, _ in chosen], [label for _, label, _ in chosen], [color for _, _, color in chosen]


def escape_label(text: str) -> str:
    """Plotly reads a little HTML in its texts; names of models and runs come from users and must stay text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _colors(rows: Sequence[Row]) -> list[str]:
    variants = list(dict.fromkeys(str(row.get("variant", "")) for row in rows))
    if len(variants) < 2:
        return [SINGLE_COLOR] * len(rows)
    unknown = [variant for variant in variants if variant not in VARIANT_COLORS]
    given = VARIANT_COLORS | {name: OTHER_COLORS[i % len(OTHER_COLORS)] for i, name in enumerate(unknown)}
    return [given[str(row.get("variant", ""))] for row in rows]


def _shown(rows: Sequence[Row], name: str) -> Metric:
    return shown_metric(name, [float(row[name]) for row in rows])


def _has_interval(rows: Sequence[Row], name: str) -> bool:
    return any(is_finite(row.get(name + LOW)) and is_finite(row.get(name + HIGH)) for row in rows)


def _error_bars(rows: Sequence[Row], name: str, shown: Metric) -> dict[str, Any] | None:
    if not _has_interval(rows, name):
        return None

    def distance(row: Row, bound: str) -> float:
        return abs(row[name + bound] - row[name]) * shown.scale if is_finite(row.get(name + bound)) else 0.0

    above, below = ([distance(row, bound) for row in rows] for bound in (HIGH, LOW))
    return {"type": "data", "array": above, "arrayminus": below, "color": "#888888", "thickness": 1.5, "width": 4}


def _reach(rows: Sequence[Row], name: str, shown: Metric) -> list[float]:
    """The values and the ends of their intervals, as the axis shows them."""
    keys = (name, name + LOW, name + HIGH)
    return [row[key] * shown.scale for row in rows for key in keys if is_finite(row.get(key))]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _scale(values: list[float]) -> dict[str, Any]:
    """Room for the labels at both ends; logarithmic where the values span more than an order of magnitude."""
    placed = _placed(values)
    low, high = min(placed, default=0.0), max(placed, default=1.0)
    margin = 0.18 * (high - low) or 0.1 * abs(high) or 0.5
    axis: dict[str, Any] = {"range": [low - margin, high + margin]}
    if not _is_logarithmic(values):
        return axis | {"type": "linear"}
    ticks = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if low - margin <= math.log10(tick) <= high + margin]
    return axis | {"type": "log", "tickvals": shown, "ticktext": [f"{tick:,.10g}" for tick in shown]}


def _is_logarithmic(values: list[float]) -> bool:
    return min(values, default=0.0) > 0 and max(values) > LOG_ABOVE * min(values)


def _placed(values: list[float]) -> list[float]:
    """Where the values lie along their axis."""
    return [math.log10(value) for value in values] if _is_logarithmic(values) else values


def _direction(shown: Metric) -> str:
    return f"{shown.better} is better" if shown.better else ""


def _corner(shown_x: Metric, shown_y: Metric) -> str:
    if not (shown_x.better and shown_y.better):
        return ""
    vertical, horizontal = {"lower": "lower", "higher": "upper"}[shown_y.better], {"lower": "left", "higher": "right"}
    return f"{vertical} {horizontal[shown_x.better]} is better; dotted: Pareto front"


def _layout(title: str, subtitle: str, height: int) -> dict[str, Any]:
    return {
        "title": {
            "text": escape_label(title),
            "subtitle": {"text": subtitle},
            "x": 0,
            "xanchor": "left",
            "xref": "container",
        },
        "title_font_size": 16,
        "title_pad": {"l": 12},
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        "height": height,
        "margin": {"l": 16, "r": 56, "t": 76, "b": 32},
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "bargap": 0.3,
        "dragmode": False,
    }


def _empty(figure: Figure, *names: str) -> Figure:
    figure.add_annotation(
        text=f"no run has {' and '.join(map(escape_label, names))}",
        showarrow=False,
        xref="paper",
        yref="paper",
        x=0.5,
        y=0.5,
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
