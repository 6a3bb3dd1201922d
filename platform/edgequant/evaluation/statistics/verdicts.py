"""Which side of a bound a measured difference is shown to lie on: behind every better, worse, star and gate.

Light: no numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Side = Literal["above", "below", "undecided", "no interval"]
BETTER, WORSE, UNDECIDED, SAME, UNKNOWN = "better", "worse", "undecided", "the same", "no interval"
AT_CHANCE, AT_FLOOR = "at chance", "at the floor"


def side(
    low: float | None, high: float | None, bound: float = 0.0, *, p: float | None = None, confidence: float = 0.95
) -> Side:
    """Where a difference lies: on one side only where its whole interval does, and where its p-value says so too.

    Args:
        low, high: its interval, paired where both models answered the same items; None: the items tell of no spread.
        p: two-sided p-value of "the difference is the bound", adjusted for the other comparisons of its table
            (`holm`); None: it is the only one.
    """
    if low is None or high is None:
        return "no interval"
    if p is not None and p >= 1 - confidence:
        return "undecided"
    return "above" if low > bound else "below" if high < bound else "undecided"


def word(found: Side, difference: float, *, higher_is_better: bool) -> str:
    """For people: `better`, `worse`, `undecided`; `the same` or `no interval` where there is none."""
    if found == "no interval":
        return SAME if difference == 0 else UNKNOWN
    if found == "undecided":
        return UNDECIDED
    return BETTER if (found == "above") == higher_is_better else WORSE


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p-values of one family (Holm 1979, Scandinavian Journal of Statistics 6).

    Rejecting what is below 0.05 rejects any true hypothesis of the family in at most 5 % of all families.
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return adjusted


def difference_of_intervals(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float]:
    """Interval of b - a from the interval of each (MOVER: Zou and Donner 2008), as if they were independent.

    Models measured on the same items are not, so it is wider than a paired interval: it never claims more than the
    data show.

    Args:
        a, b: value, low, high.
    """
    (x, x_low, x_high), (y, y_low, y_high) = a, b
    below = ((y - y_low) ** 2 + (x_high - x) ** 2) ** 0.5
    above = ((y_high - y) ** 2 + (x - x_low) ** 2) ** 0.5
    return y - x - below, y - x + above
