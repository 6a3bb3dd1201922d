"""What a gate decides by: measured values, or the ends of their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from edgequant.evaluation.evidence import lacks_interval
from edgequant.evaluation.statistics.verdicts import difference_of_intervals, side
from edgequant_registry.policy import Gate

UNSHOWN = -math.inf


class Estimate(NamedTuple):
    """A value and, where it is a sample statistic, its confidence interval."""

    value: float
    low: float | None
    high: float | None


def estimate(metrics: Mapping[str, float], name: str) -> Estimate:
    """With the interval, if it is one: of no width it tells of a single item or of equal ones."""
    low, high = (metrics.get(f"{name}_ci_{end}") for end in ("low", "high"))
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        return Estimate(metrics[name], None, None)
    return Estimate(metrics[name], low, high)


def ends(value: Estimate, sign: float) -> tuple[float | None, float | None]:
    """The interval with higher as better."""
    if value.low is None or value.high is None:
        return None, None
    return (value.low, value.high) if sign > 0 else (-value.high, -value.low)


def plus(end: float | None, allowed: float) -> float | None:
    """An end of an interval, moved."""
    return None if end is None else end + allowed


def difference_interval(value: Estimate, reference: Estimate, sign: float) -> tuple[float | None, float | None]:
    """95 % interval of value - reference, higher as better, as if they were independent (`difference_of_intervals`)."""
    (a_low, a_high), (b_low, b_high) = ends(value, sign), ends(reference, sign)
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return None, None
    return difference_of_intervals((sign * reference.value, b_low, b_high), (sign * value.value, a_low, a_high))


def decide(gate: Gate, measured: float, low: float | None, high: float | None) -> tuple[float, str]:
    """The margin that decides (0 or more passes), of the value or of an end of its interval; how it was chosen."""
    if gate.test == "values":
        return measured, ""
    if low is None or high is None:
        if gate.test == "not_worse" and lacks_interval(gate.metric, {}):
            return UNSHOWN, ": an interval is missing, as of a single item, and this gate wants it shown"
        return measured, " (no intervals: the measured values decide)"
    found = side(low, high)
    if gate.test == "not_worse":
        return (low if found != "above" else max(low, 0.0)), ", by the worse end of the 95 % interval"
    return (high if found == "below" else max(high, 0.0)), ", by the better end of the 95 % interval"
