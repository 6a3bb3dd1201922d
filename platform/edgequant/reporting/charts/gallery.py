"""The charts of a report: each quality by itself, against size and against latency, then size and speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgequant.reporting.charts.chart import Chart
from edgequant.reporting.charts.dots import dots
from edgequant.reporting.charts.marks import Mark
from edgequant.reporting.charts.points import points
from edgequant.reporting.columns import Row, figure_metrics, is_finite, metric

SIZE, DECODE = "size/checkpoint_gb", "latency/decode_ms_per_token"


class Group(NamedTuple):
    """Charts that stand side by side."""

    title: str
    charts: list[Chart]


def gallery(rows: Sequence[Row], marks: Sequence[Mark]) -> list[Group]:
    """Charts for the metrics that at least two rows have.

    Args:
        marks: of these rows.
    """
    quality = [name for name in figure_metrics() if name not in (SIZE, DECODE) and _is_shared(rows, name)]
    groups = [
        Group(
            metric(name).heading,
            [
                dots(rows, name, marks),
                *(points(rows, x, name, marks) for x in (SIZE, DECODE) if _is_shared(rows, x, name)),
            ],
        )
        for name in quality
    ]
    costs = [dots(rows, name, marks) for name in (SIZE, DECODE) if _is_shared(rows, name)]
    costs += [points(rows, SIZE, DECODE, marks)] if _is_shared(rows, SIZE, DECODE) else []
    return [*groups, *([Group("Size and speed", costs)] if costs else [])]


def _is_shared(rows: Sequence[Row], *names: str) -> bool:
    return sum(all(is_finite(row.get(name)) for name in names) for row in rows) > 1
