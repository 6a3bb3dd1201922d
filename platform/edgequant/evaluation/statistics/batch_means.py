"""Rates per token of windows that depend on their neighbours: intervals by blocks (batch means, Schmeiser 1982)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

MOST_BLOCKS, LEAST_BLOCKS, WINDOWS_IN_A_BLOCK = 30, 4, 3
_SPREAD_OF_ROUNDING = 1e-6  # nats a token: float32 sums of equal windows differ by so much


def block_of(index: int, windows: int) -> int:
    """Which block of a text the window `index` of so many is in: at most 30 blocks, of three windows or more each
    where that leaves four.

    Schmeiser (1982, Operations Research 30) finds nothing gained beyond 30. Below 12 windows blocks grow shorter
    rather than fewer, and what neighbours share shows less.
    """
    blocks = max(min(windows, LEAST_BLOCKS), min(MOST_BLOCKS, windows // WINDOWS_IN_A_BLOCK))
    return index * blocks // windows


class Rate(NamedTuple):
    """Sums over sums, such as nats a token; `low` and `high` are None where the blocks tell of no spread."""

    value: float
    low: float | None
    high: float | None


def rate(
    numerators: np.ndarray, denominators: np.ndarray, blocks: Sequence[Hashable], confidence: float = 0.95
) -> Rate:
    """Rate of all rows, with Student's interval over the blocks' rates (linearised: Cochran 1977, equation 6.9).

    Args:
        numerators, denominators: [rows], the latter above 0.
        blocks: of each row; what is in different ones is taken as independent.

    Returns:
        No interval below two blocks, and none where blocks agree to the rounding of their sums: copies of one text.
    """
    value = float(numerators.sum() / denominators.sum())
    sums = np.array([_sums(numerators, denominators, rows) for rows in _rows_of(blocks)])
    count = len(sums)
    if count < 2 or not math.isfinite(value):
        return Rate(value, None, None)
    residuals = (sums[:, 0] - value * sums[:, 1]) / sums[:, 1].mean()
    error = math.sqrt(float(np.square(residuals).sum()) / (count - 1) / count)
    if not _SPREAD_OF_ROUNDING < error < math.inf:
        return Rate(value, None, None)
    half = student_quantile(count - 1, confidence) * error
    return Rate(value, value - half, value + half)


def student_quantile(freedom: int, confidence: float) -> float:
    """How many standard errors Student's interval reaches to either side."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))


def _rows_of(blocks: Sequence[Hashable]) -> list[list[int]]:
    found: dict[Hashable, list[int]] = {}
    for row, block in enumerate(blocks):
        found.setdefault(block, []).append(row)
    return list(found.values())


def _sums(numerators: np.ndarray, denominators: np.ndarray, rows: list[int]) -> tuple[float, float]:
    return float(numerators[rows].sum()), float(denominators[rows].sum())
