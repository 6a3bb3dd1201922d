"""Means and rates of items that depend on each other: intervals by clusters, or by blocks of neighbouring windows."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

MOST_BLOCKS, LEAST_BLOCKS, WINDOWS_IN_A_BLOCK = 30, 4, 3
SPREAD_OF_ROUNDING = 1e-6  # nats a token: float32 sums of equal windows differ by so much


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
    sums = cluster_sums(numerators, denominators, blocks)
    count = len(sums)
    if count < 2 or not math.isfinite(value):
        return Rate(value, None, None)
    error = standard_error(sums)
    if not SPREAD_OF_ROUNDING < error < math.inf:
        return Rate(value, None, None)
    half = student_quantile(count - 1, confidence) * error
    return Rate(value, value - half, value + half)


def design_effect(values: np.ndarray, sums: np.ndarray) -> float:
    """By how much clusters make the variance of a mean greater than as many independent items would; 1 at least.

    Args:
        values: [items].
        sums: [clusters, 2] of these and of ones.
    """
    alone = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
    return max(1.0, standard_error(sums) ** 2 / alone) if alone and len(sums) > 1 else 1.0


def effective_items(values: np.ndarray, clusters: Sequence[Hashable], confidence: float) -> float:
    """How many independent items these are worth for Wilson's interval, whose normal quantile knows no few clusters.

    Kish's design effect (1965), and Korn and Graubard's degrees of freedom (1998, Survey Methodology 24).
    """
    sums = cluster_sums(values, np.ones_like(values), clusters)
    if not 1 < len(sums) < len(values):
        return float(len(values))
    fewer = student_quantile(len(values) - 1, confidence) / student_quantile(len(sums) - 1, confidence)
    return len(values) / design_effect(values, sums) * fewer**2


def standard_error(sums: np.ndarray) -> float:
    """Of the ratio of two totals over clusters [clusters, 2], linearised (Cochran 1977, equation 6.9)."""
    count, value = len(sums), sums[:, 0].sum() / sums[:, 1].sum()
    residuals = (sums[:, 0] - value * sums[:, 1]) / sums[:, 1].mean()
    return math.sqrt(float(np.square(residuals).sum()) / (count - 1) / count)


def student_quantile(freedom: int, confidence: float) -> float:
    """How many standard errors Student's interval reaches to either side."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))


def cluster_sums(numerators: np.ndarray, denominators: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """[clusters, 2] sums over the rows of each cluster, in the order in which these first occur."""
    places: dict[Hashable, int] = {}
    rows = np.array([places.setdefault(cluster, len(places)) for cluster in clusters], dtype=np.int64)
    return np.stack([np.bincount(rows, column, len(places)) for column in (numerators, denominators)], axis=1)
