"""One metric against another: a named point for each row, its intervals, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from edgequant.evaluation.tasks.task import Metric
from edgequant.reporting.charts.axes import Axis, axis, tick_label
from edgequant.reporting.charts.chart import LABEL, TICK, WIDTH, Chart
from edgequant.reporting.charts.labels import Box, Label, Line, place_labels
from edgequant.reporting.charts.marks import Mark, listed, pareto_fronts
from edgequant.reporting.charts.svg import element, line, picture, symbol, text
from edgequant.reporting.charts.text_width import shortened, text_width
from edgequant.reporting.charts.values import Value, reach, shown_values
from edgequant.reporting.columns import Row, is_finite

HEIGHT, TOP, BOTTOM, GAP = 300.0, 26.0, 44.0, 8.0
RADIUS = 6.5
MOST_NAMED = 12  # points; more are called by their numbers
LONGEST = 0.55 * WIDTH  # of a name
ONE_PLACE = 9.0  # points closer than this share a label


class Point(NamedTuple):
    """A row in the picture: its centre, and the values behind it."""

    x: float
    y: float
    across: Value
    up: Value
    mark: Mark


def points(rows: Sequence[Row], x: str, y: str, marks: Sequence[Mark]) -> Chart:
    """A point for each row that has both metrics.

    Args:
        marks: of all rows.

    Points are called by their names where all of these find a place, else by their numbers in the tables.
    """
    kept = [at for at, row in enumerate(rows) if is_finite(row.get(x)) and is_finite(row.get(y))]
    chosen = [rows[at] for at in kept]
    (shown_x, across), (shown_y, up) = shown_values(chosen, x), shown_values(chosen, y)
    scale_x, scale_y = axis(x, reach(across)), axis(y, reach(up))
    area = _area(scale_y)
    drawn = [
        Point(_along(scale_x, value_x.value, area), _up(scale_y, value_y.value, area), value_x, value_y, marks[at])
        for at, value_x, value_y in zip(kept, across, up, strict=True)
    ]
    bars = [bar for point in drawn for bar in _error_bars(point, scale_x, scale_y, area)]
    fronts = [[drawn[at] for at in front] for front in pareto_fronts(chosen, x, y)]
    steps = [Line(a.x, a.y, b.x, b.y) for front in fronts for a, b in pairwise(front)]
    named, unnamed = _names(drawn, [*bars, *steps], area)
    parts = [*_axes(scale_x, scale_y, shown_x, shown_y, area)]
    parts += [line(*each, "front") for each in steps] + [line(*each, "error") for each in bars]
    parts += [_symbol(point, shown_x, shown_y) for point in drawn] + named
    caption = " · ".join(filter(None, (_corner(shown_x, shown_y), "dotted: Pareto front" if steps else "", unnamed)))
    told = "; ".join(f"{point.mark.label}: {point.up.text} at {point.across.text}" for point in drawn)
    title = f"{shown_y.label} against {shown_x.label}"
    return Chart(title, caption, picture(WIDTH, HEIGHT, f"{title}. {told}", parts))


def _area(scale: Axis) -> Box:
    room = max((text_width(tick_label(tick), TICK) for tick in scale.ticks), default=0.0)
    return Box(room + GAP, TOP, WIDTH - 2, HEIGHT - BOTTOM)


def _along(scale: Axis, value: float, area: Box) -> float:
    return area.left + (area.right - area.left) * scale.at(value)


def _up(scale: Axis, value: float, area: Box) -> float:
    return area.bottom - (area.bottom - area.top) * scale.at(value)


def _error_bars(point: Point, scale_x: Axis, scale_y: Axis, area: Box) -> list[Line]:
    found = []
    if point.across.low < point.across.high:
        left, right = (_along(scale_x, end, area) for end in (point.across.low, point.across.high))
        found.append(Line(left, point.y, right, point.y))
    if point.up.low < point.up.high:
        low, high = (_up(scale_y, end, area) for end in (point.up.low, point.up.high))
        found.append(Line(point.x, high, point.x, low))
    return found


def _axes(scale_x: Axis, scale_y: Axis, shown_x: Metric, shown_y: Metric, area: Box) -> list[Markup]:
    parts, free = [], 0.0
    for tick in scale_x.ticks:
        shown, x = tick_label(tick), _along(scale_x, tick, area)
        half = text_width(shown, TICK) / 2
        parts.append(line(x, area.top, x, area.bottom, "grid"))
        if x - half >= free and x + half <= WIDTH:
            parts.append(text(x, area.bottom + TICK + 4, shown, "tick", "middle"))
            free = x + half + 4
    for tick in scale_y.ticks:
        y = _up(scale_y, tick, area)
        parts += [
            line(area.left, y, area.right, y, "grid"),
            text(area.left - 5, y + 4, tick_label(tick), "tick", "end"),
        ]
    parts.append(line(area.left, area.bottom, area.right, area.bottom, "axis"))
    for named, scale, x, y, anchor in (
        (shown_y, scale_y, 0.0, TICK, "start"),
        (shown_x, scale_x, WIDTH, HEIGHT - 6, "end"),
    ):
        label = named.label + (", logarithmic" if scale.is_logarithmic else "")
        parts.append(text(x, y, shortened(label, TICK, WIDTH), "axis-title", anchor))
    return parts


def _symbol(point: Point, shown_x: Metric, shown_y: Metric) -> Markup:
    told = (
        f"{point.mark.number} {point.mark.label}\n{shown_y.label} {point.up.told}\n{shown_x.label} {point.across.told}"
    )
    return element("g", element("title", told) + symbol(point.x, point.y, point.mark.shape, point.mark.color, RADIUS))


def _names(drawn: Sequence[Point], lines: Sequence[Line], area: Box) -> tuple[list[Markup], str]:
    """Names where all find a place, else numbers; and which points have neither, in words."""
    if len(drawn) <= MOST_NAMED:
        names = [shortened(point.mark.label, LABEL, LONGEST) for point in drawn]
        placed = _placed(drawn, names, lines, area, leaders=True)
        if all(placed):
            return _texts(placed, names), ""
    groups = _together(drawn)
    numbers = [listed([point.mark.number for point in group]) for group in groups]
    placed = _placed([group[0] for group in groups], numbers, lines, area, others=drawn)
    left_out = ", ".join(number for number, label in zip(numbers, placed, strict=True) if label is None)
    return _texts(placed, numbers), f"numbers as in the table{f'; no room for {left_out}' if left_out else ''}"


def _placed(
    drawn: Sequence[Point],
    names: Sequence[str],
    lines: Sequence[Line],
    area: Box,
    others: Sequence[Point] = (),
    *,
    leaders: bool = False,
) -> list[Label | None]:
    sizes = [(text_width(name, LABEL), LABEL + 2) for name in names]
    covered = [Box(point.x - RADIUS, point.y - RADIUS, point.x + RADIUS, point.y + RADIUS) for point in others]
    centres = [(point.x, point.y) for point in drawn]
    return place_labels(centres, sizes, lines, area, radius=RADIUS, covered=covered, leaders=leaders)


def _texts(placed: Sequence[Label | None], names: Sequence[str]) -> list[Markup]:
    found = []
    for label, name in zip(placed, names, strict=True):
        if label is not None:
            found += [line(*label.leader, "leader")] if label.leader else []
            anchor = {"right": "start", "left": "end", "center": "middle"}[label.side.split()[1]]
            x = {"start": label.box.left, "end": label.box.right, "middle": (label.box.left + label.box.right) / 2}[
                anchor
            ]
            found.append(text(x, label.box.bottom - 4, name, "label", anchor))
    return found


def _together(drawn: Sequence[Point]) -> list[list[Point]]:
    """Points that lie on each other."""
    groups: list[list[Point]] = []
    for point in drawn:
        near = (
            group for group in groups if max(abs(group[0].x - point.x), abs(group[0].y - point.y)) < ONE_PLACE
        )  # fmt: skip
        if (group := next(near, None)) is not None:
            group.append(point)
        else:
            groups.append([point])
    return groups


def _corner(shown_x: Metric, shown_y: Metric) -> str:
    if not (shown_x.better and shown_y.better):
        return ""
    vertical, horizontal = {"lower": "lower", "higher": "upper"}[shown_y.better], {"lower": "left", "higher": "right"}
    return f"{vertical} {horizontal[shown_x.better]} is better"
