"""A metric's values as a chart shows them: scaled, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgequant.evaluation.tasks.task import Metric
from edgequant.reporting.columns import HIGH, LOW, Row, is_finite, shown_metric, significant


class Value(NamedTuple):
    """Of one row, in the unit that is shown.

    Attributes:
        low, high: ends of the interval; the value itself where there is none.
        text: the value in digits.
        told: with the interval, for a screen reader and under the pointer.
    """

    value: float
    low: float
    high: float
    text: str
    told: str


def shown_values(rows: Sequence[Row], key: str) -> tuple[Metric, list[Value]]:
    """How a metric is shown, and its values in the rows, all of which have a finite one."""
    shown = shown_metric(key, [float(row[key]) for row in rows])
    return shown, [_value(row, key, shown) for row in rows]


def reach(values: Sequence[Value]) -> list[float]:
    """What an axis has to show: the values and the ends of their intervals."""
    return [end for value in values for end in (value.value, value.low, value.high)]


def _value(row: Row, key: str, shown: Metric) -> Value:
    value = float(row[key]) * shown.scale
    text = significant(value, shown.digits)
    ends = [float(end) * shown.scale for end in (row.get(key + LOW), row.get(key + HIGH)) if is_finite(end)]
    if len(ends) < 2:
        return Value(value, value, value, text, text)
    low, high = ends
    return Value(
        value, low, high, text, f"{text} ({significant(low, shown.digits)} to {significant(high, shown.digits)})"
    )
