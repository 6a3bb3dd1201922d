"""Intervals of a median by order statistics, which suppose no distribution (Conover 1999, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

FEWEST = 5


def median_bounds(values: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """The narrowest pair of order statistics, as far from either end, that covers the median `confidence` of the time.

    Of five values the widest pair, their range, covers it 93.75 % of the time, which stands where more was asked for;
    fewer than five have no interval.
    """
    if len(values) < FEWEST:
        return None
    ordered, rank = sorted(values), 0
    while rank + 1 < len(ordered) // 2 and _coverage(len(ordered), rank + 1) >= confidence:
        rank += 1
    return ordered[rank], ordered[-1 - rank]


def _coverage(count: int, rank: int) -> float:
    """Of the pair that leaves `rank` values on either side: 1 - 2 P(at most `rank` of `count` lie below the median)."""
    return 1 - 2 * sum(comb(count, below) for below in range(rank + 1)) / 2**count
