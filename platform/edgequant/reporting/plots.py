"""Plotly figures from comparison rows: bars per metric, and one metric against another with the Pareto front.

Colours are those of Okabe and Ito (2008), told apart with every common colour vision; every bar and point carries its
name, so that no legend has to be looked up. Error bars are the confidence intervals beside the metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgequant.evaluation.tasks.task import Metric
from edgequant.reporting.charts.axes import Axis, axis, tick_label
from edgequant.reporting.charts.labels import Box, Label, Line, place_labels
from edgequant.reporting.charts.marks import colors, pareto_fronts, row_labels
from edgequant.reporting.charts.text_width import text_width
from edgequant.reporting.columns import HIGH, LOW, Row, figure_metrics, is_finite, shown_metric, significant

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK, GRID = "#4d4d4d", "rgba(128,128,128,0.25)"
SIZE, DECODE = "size/checkpoint_gb", "latency/decode_ms_per_token"
AREA, FONT, RADIUS = (860.0, 300.0), 13.0, 6.5  # pixels, where a page or picture is about 1000 wide


def bars(rows: Sequence[Row], metric_name: str) -> Figure:
    """Horizontal bars of one metric, one per row that has it, in the rows' order, with confidence intervals.

    Args:
        rows: comparison rows: `model`, `variant`, `scheme`, and metrics under edgequant's metric names.
        metric_name: e.g. `domain/perplexity`.
    """
    from plotly import graph_objects

    kept, _, labels, drawn = _kept(rows, metric_name)
    shown = _shown(kept, metric_name)
    values = [row[metric_name] * shown.scale for row in kept]
    bar = graph_objects.Bar(
        x=values,
        y=list(range(len(kept))),
        orientation="h",
        width=0.6,
        marker={"color": drawn, "line_width": 0},
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

    kept, numbers, labels, drawn = _kept(rows, x, y)
    shown_x, shown_y = _shown(kept, x), _shown(kept, y)
    xs, ys = [row[x] * shown_x.scale for row in kept], [row[y] * shown_y.scale for row in kept]
    scales = axis(x, _reach(kept, x, shown_x)), axis(y, _reach(kept, y, shown_y))
    centres = [_placed(scales, *point) for point in zip(xs, ys, strict=True)]
    names, sides, key = _names(centres, _bars(kept, (x, shown_x), (y, shown_y), scales), numbers, labels)
    points = graph_objects.Scatter(
        x=xs,
        y=ys,
        mode="markers+text",
        marker={"color": drawn, "size": 2 * RADIUS},
        error_x=_error_bars(kept, x, shown_x),
        error_y=_error_bars(kept, y, shown_y),
        text=names,
        textposition=sides,
        customdata=labels,
        cliponaxis=False,
        hovertemplate=f"%{{customdata}}<br>{shown_x.label} %{{x:.4~g}}<br>{shown_y.label} %{{y:.4~g}}<extra></extra>",
    )
    lines = [_front([(xs[i], ys[i]) for i in front]) for front in pareto_fronts(kept, x, y) if len(front) > 1]
    figure = graph_objects.Figure([*lines, points] if kept else None)
    corner = _corner(shown_x, shown_y) + ("; dotted: Pareto front" if lines else "")
    figure.update_layout(_layout(f"{shown_y.label} against {shown_x.label}", corner, 440 + 20 * len(key)))
    for update, scale, shown in ((figure.update_xaxes, scales[0], shown_x), (figure.update_yaxes, scales[1], shown_y)):
        update(title_text=shown.label, gridcolor=GRID, zeroline=False, automargin=True, **_range(scale))
    if key:
        figure.update_layout(margin_b=60 + 20 * len(key))
        place: dict[str, Any] = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "xanchor": "left"}
        figure.add_annotation(text="<br>".join(key), showarrow=False, align="left", yshift=-48, yanchor="top", **place)
    return figure if kept else _empty(figure, x, y)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """Plots for the metrics that at least two rows have: trade-offs first, then bars; by a name fit for a file."""
    found = {}
    quality = [name for name in figure_metrics() if name not in (SIZE, DECODE)]
    for x, y in (*((cost, name) for name in quality for cost in (SIZE, DECODE)), (SIZE, DECODE)):
        if sum(is_finite(row.get(x)) and is_finite(row.get(y)) for row in rows) > 1:
            found[f"{_file_name(y)}-against-{_file_name(x)}"] = scatter(rows, x, y)
    for name in figure_metrics():
        if sum(is_finite(row.get(name)) for row in rows) > 1:
            found[_file_name(name)] = bars(rows, name)
    return found


def _file_name(name: str) -> str:
    return name.replace("/", "-").replace("_", "-")


def _front(points: list[tuple[float, float]]) -> Any:
    from plotly.graph_objects import Scatter

    xs, ys = zip(*points, strict=True)
    line = {"color": "#999999", "width": 1.5, "dash": "dot"}
    return Scatter(x=list(xs), y=list(ys), mode="lines", line=line, hoverinfo="skip")


def _placed(scales: tuple[Axis, Axis], x: float, y: float) -> tuple[float, float]:
    """Where a point lies on a page, about."""
    return AREA[0] * scales[0].at(x), AREA[1] * (1 - scales[1].at(y))


def _bars(
    rows: Sequence[Row], along: tuple[str, Metric], up: tuple[str, Metric], scales: tuple[Axis, Axis]
) -> list[Line]:
    """Where the intervals lie."""
    found = []
    for row in rows:
        (left, x, right), (low, y, high) = (
            [
                float(row[end]) * shown.scale if is_finite(row.get(end)) else float(row[key]) * shown.scale
                for end in ends
            ]
            for key, shown in (along, up)
            for ends in [(key + LOW, key, key + HIGH)]
        )
        ends = [(left, y), (right, y), (x, low), (x, high)]
        a, b, c, d = (_placed(scales, *end) for end in ends)
        found += [Line(*a, *b), Line(*c, *d)]
    return found


def _names(
    centres: list[tuple[float, float]], bars: list[Line], numbers: list[int], labels: list[str]
) -> tuple[list[str], list[str], list[str]]:
    """What stands beside each point, on which side, and a key's lines: names where all find a place, else numbers."""
    width, height = AREA
    area = Box(-20.0, -20.0, width + 40.0, height + 20.0)

    def placed(names: list[str]) -> list[Label | None]:
        sizes = [(text_width(name, FONT) + 4, FONT + 5.0) for name in names]
        return place_labels(centres, sizes, bars, area, radius=RADIUS + 4)

    found = placed(labels)
    if all(found):
        return labels, [label.side for label in found if label], []
    found = placed([str(number) for number in numbers])
    names = [str(number) if label else "" for number, label in zip(numbers, found, strict=True)]
    told = [f"{number} {label}" for number, label in zip(numbers, labels, strict=True)]
    return names, [label.side if label else "top center" for label in found], _wrapped(told)


def _wrapped(parts: list[str]) -> list[str]:
    lines: list[str] = []
    for part in parts:
        if lines and text_width(f"{lines[-1]} · {part}", FONT) <= AREA[0]:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def _kept(rows: Sequence[Row], *names: str) -> tuple[list[Row], list[int], list[str], list[str]]:
    """Rows that have all the metrics, with the numbers, labels and colours that they have among all rows."""
    kept = [at for at, row in enumerate(rows) if all(is_finite(row.get(name)) for name in names)]
    labels, drawn = [escape_label(label) for label in row_labels(rows)], colors(rows)
    return [rows[at] for at in kept], [at + 1 for at in kept], [labels[at] for at in kept], [drawn[at] for at in kept]


def escape_label(text: str) -> str:
    """Plotly reads a little HTML in its texts; names of models and runs come from users and must stay text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


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


def _range(scale: Axis) -> dict[str, Any]:
    """As plotly takes an axis."""
    if not scale.is_logarithmic:
        return {"type": "linear", "range": [scale.low, scale.high]}
    ends = [math.log10(scale.low), math.log10(scale.high)]
    texts = [tick_label(tick) for tick in scale.ticks]
    return {"type": "log", "range": ends, "tickvals": scale.ticks, "ticktext": texts}


def _direction(shown: Metric) -> str:
    return f"{shown.better} is better" if shown.better else ""


def _corner(shown_x: Metric, shown_y: Metric) -> str:
    if not (shown_x.better and shown_y.better):
        return ""
    vertical, horizontal = {"lower": "lower", "higher": "upper"}[shown_y.better], {"lower": "left", "higher": "right"}
    return f"{vertical} {horizontal[shown_x.better]} is better"


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
