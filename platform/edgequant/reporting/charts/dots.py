"""One metric as a dot and an interval for each row, under each other: from where values can be, not from 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from edgequant.evaluation.tasks.task import Metric
from edgequant.reporting.charts.axes import Axis, axis, tick_label
from edgequant.reporting.charts.chart import LABEL, TICK, WIDTH, Chart
from edgequant.reporting.charts.marks import Mark
from edgequant.reporting.charts.svg import element, line, picture, symbol, text
from edgequant.reporting.charts.text_width import shortened, text_width
from edgequant.reporting.charts.values import Value, reach, shown_values
from edgequant.reporting.columns import Row, best_rows, counted_on, is_finite

MANY = 12  # rows; more stand closer, their names beside the dots instead of above them
GAP, EDGE, TICKS = 10.0, 8.0, 24.0


class Layout(NamedTuple):
    """Height of a row; from its top to its text and to its dot; room for the name; ends of the axis."""

    row: float
    text: float
    dot: float
    name: float
    left: float
    right: float


def dots(rows: Sequence[Row], key: str, marks: Sequence[Mark]) -> Chart:
    """A dot for each row that has the metric, its interval as a line.

    Args:
        marks: of all rows.
    """
    kept = [at for at, row in enumerate(rows) if is_finite(row.get(key))]
    shown, values = shown_values([rows[at] for at in kept], key)
    floor = _floor([rows[at] for at in kept], shown, reach(values))
    scale = axis(key, [*reach(values), *([floor] if floor is not None else [])])
    layout = _layout(values, len(kept))
    best = best_rows(rows, key)
    parts: list[Markup] = []
    for place, (at, value) in enumerate(zip(kept, values, strict=True)):
        parts += _row(place * layout.row, marks[at], value, scale, layout, floor, is_best=at in best)
    bottom = len(kept) * layout.row
    parts += _ticks(scale, layout, bottom)
    told = "; ".join(f"{marks[at].label} {value.told}" for at, value in zip(kept, values, strict=True))
    direction = f"{shown.better} is better" if shown.better else ""
    dashed = "" if floor is None else f"dashed: a model that knows nothing ({floor:.3g})"
    on = counted_on(rows, key)
    caption = " · ".join(filter(None, (direction, on, "logarithmic" if scale.is_logarithmic else "", dashed)))
    return Chart(shown.label, caption, picture(WIDTH, bottom + TICKS, f"{shown.label}: {told}", parts))


def _layout(values: Sequence[Value], count: int) -> Layout:
    room = max((text_width(value.text, LABEL) for value in values), default=0.0)
    if count <= MANY:
        return Layout(42.0, 14.0, 27.0, WIDTH - room - GAP, EDGE, WIDTH - EDGE)
    return Layout(22.0, 15.0, 10.5, 0.45 * WIDTH - GAP, 0.45 * WIDTH + EDGE, WIDTH - room - GAP - EDGE)


def _row(
    top: float, mark: Mark, value: Value, scale: Axis, layout: Layout, floor: float | None, *, is_best: bool
) -> list[Markup]:
    def across(each: float) -> float:
        return layout.left + (layout.right - layout.left) * scale.at(each)

    y, number = top + layout.dot, f"{mark.number} "
    name = shortened(mark.label, LABEL, layout.name - text_width(number, LABEL))
    parts = [
        element("title", f"{mark.number} {mark.label}: {value.told}"),
        text(0, top + layout.text, number + name, "name"),
        text(WIDTH, top + layout.text, value.text, "value best" if is_best else "value", "end"),
        *(line(across(tick), y - 7, across(tick), y + 7, "grid") for tick in scale.ticks),
        line(layout.left, y, layout.right, y, "grid"),
    ]
    if floor is not None:
        parts.append(line(across(floor), y - 9, across(floor), y + 9, "floor"))
    if value.low < value.high:
        parts.append(line(across(value.low), y, across(value.high), y, "interval-line"))
    return [element("g", Markup("").join([*parts, symbol(across(value.value), y, mark.shape, mark.color, 5.5)]))]


def _ticks(scale: Axis, layout: Layout, bottom: float) -> list[Markup]:
    """Numbers under the axis; one that would touch the one before it is left out."""
    parts, free = [], 0.0
    for tick in scale.ticks:
        shown = tick_label(tick)
        half = text_width(shown, TICK) / 2
        x = min(layout.left + (layout.right - layout.left) * scale.at(tick), WIDTH - half)
        if x - half >= free:
            parts.append(text(x, bottom + TICK + 4, shown, "tick", "middle"))
            free = x + half + 4
    return parts


def _floor(rows: Sequence[Row], shown: Metric, ends: Sequence[float]) -> float | None:
    """What a model scores that knows nothing, where that is the same for all rows and near enough to be looked at."""
    found = {row.get(shown.floor) if isinstance(shown.floor, str) else shown.floor for row in rows}
    value = next(iter(found)) if len(found) == 1 else None
    near = min(ends) - (max(ends) - min(ends))
    return float(value) if is_finite(value) and float(value) >= near else None
