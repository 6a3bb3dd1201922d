"""How sure the mean of paired differences is, whose items hang together in clusters: intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import norm, t

from edgequant.evaluation.statistics.batch_means import SPREAD_OF_ROUNDING, cluster_sums, design_effect, standard_error
from edgequant.evaluation.statistics.intervals import ENOUGH_TO_RESAMPLE, ENOUGH_UNLIKE, Bootstrap, ratio, unlike
from edgequant.evaluation.statistics.proportions import PairedShares


class Effect(Protocol):
    """What the items tell of a difference."""

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided."""

    def p_value(self, bound: float) -> float:
        """Two-sided p-value of "the difference is `bound`"; below 1 - confidence where the interval leaves it out."""


@dataclass(frozen=True)
class Student:
    """A center with its standard error; of infinite degrees of freedom, the normal distribution."""

    center: float
    error: float
    freedom: float
    limits: tuple[float, float] = (-math.inf, math.inf)

    def interval(self, confidence: float) -> tuple[float, float]:
        half = float(t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return max(self.limits[0], self.center - half), min(self.limits[1], self.center + half)

    def p_value(self, bound: float) -> float:
        return min(1.0, 2 * float(t.sf(abs(self.center - bound) / self.error, self.freedom)))


@dataclass(frozen=True, eq=False)
class Resampled:
    """The statistic of resampled clusters: percentiles, widened as Student's are for so few of them.

    Percentiles alone are too narrow by what the normal distribution is narrower than Student's, and by the bootstrap's
    dividing by n instead of n - 1 (Hesterberg 2015, The American Statistician 69, section 4.2: expanded percentiles).

    Attributes:
        values: [resamples].
        clusters: how many were drawn from.
    """

    values: np.ndarray
    clusters: int

    def interval(self, confidence: float) -> tuple[float, float]:
        reach = float(t.ppf((1 + confidence) / 2, self.clusters - 1)) / self._shrinking
        low, high = np.percentile(self.values, [100 * norm.cdf(-reach), 100 * norm.cdf(reach)])
        return float(low), float(high)

    def p_value(self, bound: float) -> float:
        # The +1 keeps a resampled p-value from being zero (Davison and Hinkley 1997, section 4.2).
        beyond = min(int((self.values <= bound).sum()), int((self.values >= bound).sum()))
        tail = min(0.5, (1 + beyond) / (1 + len(self.values)))
        return min(1.0, 2 * float(t.cdf(float(norm.ppf(tail)) * self._shrinking, self.clusters - 1)))

    @property
    def _shrinking(self) -> float:
        return math.sqrt((self.clusters - 1) / self.clusters)


def paired_effect(
    changes: np.ndarray,
    weights: np.ndarray,
    clusters: Sequence[Hashable],
    bootstrap: Bootstrap,
    *,
    shares: bool = False,
    right_or_wrong: bool = False,
) -> Effect | None:
    """What paired items tell of sum(changes) / sum(weights), as clusters drawn anew would have it.

    From 20 clusters on, clusters are resampled (Cameron, Gelbach and Miller 2008 call it the pairs cluster bootstrap).
    Below, resampling is too narrow, and the clusters' totals have Student's interval (Cochran 1977, equation 6.9).
    Shares of which few moved have Bonett and Price's, on as many items as the clusters are worth.

    Args:
        changes, weights: [items] summed differences, and what they are summed over (1, tokens), above 0.
        clusters: of each item.
        shares: changes lie within -1 and 1, weights are 1.
        right_or_wrong: changes are -1, 0 or 1.

    Returns:
        None where the items tell of no spread: below two clusters, all alike, or one that is no number.
    """
    sums = cluster_sums(changes, weights, clusters)
    if len(sums) < 2 or not np.isfinite(sums).all():
        return None
    few = len(sums) < ENOUGH_TO_RESAMPLE
    if shares and (unlike(sums[:, 0]) < ENOUGH_UNLIKE or (right_or_wrong and few)):
        return _of_shares(changes, sums)
    error = standard_error(sums)
    if not SPREAD_OF_ROUNDING < error < math.inf:
        return None
    if few:
        return Student(float(ratio(sums.sum(axis=0))), error, len(sums) - 1)
    return Resampled(ratio(bootstrap.sums(sums)), len(sums))


def _of_shares(changes: np.ndarray, sums: np.ndarray) -> Effect:
    """Bonett and Price's, on the effective number of items: fewer where clusters moved as one (Kish 1965)."""
    items, worth = len(changes), design_effect(changes, sums)
    lost, gained = float(-changes.clip(max=0).sum()), float(changes.clip(min=0).sum())
    pairs = PairedShares(lost / worth, gained / worth, items / worth)
    freedom = math.inf if len(sums) == items else len(sums) - 1
    return Student(pairs.center, pairs.spread, freedom, (-1.0, 1.0))
