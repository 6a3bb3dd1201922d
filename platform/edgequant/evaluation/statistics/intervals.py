"""Confidence intervals of sample statistics: by resampling where there is enough to resample, by formula where not.

None has zero width: where items say nothing of their spread (fewer than two, or all alike), there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from edgequant.evaluation.scoring_settings import ScoringSettings
from edgequant.evaluation.statistics.batch_means import cluster_sums, effective_items, rate
from edgequant.evaluation.statistics.proportions import Share, wilson

Statistic = Callable[[np.ndarray], np.ndarray]
ENOUGH_TO_RESAMPLE = 20
ENOUGH_UNLIKE = 10
_CELLS_AT_ONCE = 20_000_000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: resamples (Efron and Tibshirani 1993, chapter 13: percentiles), coverage and seed."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    @classmethod
    def of(cls, settings: ScoringSettings) -> Bootstrap:
        """As an evaluation's settings have it."""
        return cls(settings.bootstrap_resamples, settings.confidence, settings.seed)

    def sums(self, columns: np.ndarray) -> np.ndarray:
        """Column sums of resampled rows: [items, columns] -> [resamples, columns]. Items are drawn with replacement."""
        generator = np.random.default_rng(self.seed)
        count = len(columns)
        at_once = max(1, _CELLS_AT_ONCE // count)
        parts = []
        for start in range(0, self.resamples, at_once):
            drawn = generator.integers(0, count, (min(at_once, self.resamples - start), count))
            weights = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
            parts.append(weights @ columns)
        return np.concatenate(parts)

    def bounds(self, values: np.ndarray) -> tuple[float, float]:
        """The central `confidence` share of resampled statistics; NaN resamples (an empty class) are left out."""
        if np.isnan(values).all():
            return float("nan"), float("nan")
        tail = 50 * (1 - self.confidence)
        low, high = np.nanpercentile(values, [tail, 100 - tail])
        return float(low), float(high)

    def interval(self, columns: np.ndarray, statistic: Statistic) -> tuple[float, float]:
        """Interval of a statistic that is a function of column sums.

        Args:
            columns: [items, k] values per item.
            statistic: maps sums [..., k] to values [...]; a mean is `lambda s: s[..., 0] / s[..., 1]` over (value, 1).
        """
        return self.bounds(statistic(self.sums(np.asarray(columns, dtype=np.float64))))

    def measured(self, name: str, columns: np.ndarray, statistic: Statistic) -> dict[str, float]:
        """The statistic and its bounds under `name`, `name_ci_low` and `name_ci_high`; empty without items."""
        columns = np.asarray(columns, dtype=np.float64)
        if not len(columns):
            return {}
        ends = self.interval(columns, statistic) if len(columns) > 1 else None
        return with_bounds(name, float(statistic(columns.sum(axis=0))), ends)

    def mean(self, name: str, values: ArrayLike, clusters: Sequence[Hashable] | None = None) -> dict[str, float]:
        """Mean of the items' values with its bounds; those of `share` where all values are 0 or 100.

        Clusters are resampled; fewer than 20 are too few for that (percentiles come out too narrow), and get Student's
        interval.

        Args:
            clusters: of each item; None: all are independent.
        """
        column = np.asarray(values, dtype=np.float64)
        if len(column) and np.isin(column, (0.0, 100.0)).all():
            return self.share(name, column, clusters)
        return self._mean(name, column, range(len(column)) if clusters is None else clusters)

    def share(self, name: str, per_cents: ArrayLike, clusters: Sequence[Hashable] | None = None) -> dict[str, float]:
        """Mean of the items' values from 0 to 100 with its bounds: of right or wrong ones a rate, with Wilson's.

        Wilson's too where fewer than 10 items differ from the commonest value (mostly the floor: nothing right), since
        resampling then mostly draws what was seen already; clusters count as what they are worth (`effective_items`).
        Others are as in `mean`.
        """
        column = np.asarray(per_cents, dtype=np.float64)
        named = range(len(column)) if clusters is None else clusters
        if len(set(named)) < 2:
            return {name: float(column.mean())} if len(column) else {}
        if np.isin(column, (0.0, 100.0)).all() or unlike(column) < ENOUGH_UNLIKE:
            share = Share(float(column.mean()) / 100, effective_items(column, named, self.confidence))
            low, high = wilson(share, self.confidence)
            return with_bounds(name, 100 * share.mean, (100 * low, 100 * high))
        return self._mean(name, column, named)

    def _mean(self, name: str, column: np.ndarray, clusters: Sequence[Hashable]) -> dict[str, float]:
        if not len(column):
            return {}
        ones = np.ones_like(column)
        if len(set(clusters)) >= ENOUGH_TO_RESAMPLE:
            return self.measured(name, cluster_sums(column, ones, clusters), ratio)
        found = rate(column, ones, clusters, self.confidence)
        return with_bounds(name, found.value, _ends(found.low, found.high))

    def per_token(
        self, name: str, columns: np.ndarray, blocks: Sequence[Hashable], *, exponential: bool = False
    ) -> dict[str, float]:
        """Sum of the first column over that of the second, such as nats a token, with bounds by blocks of rows.

        Args:
            columns: [rows, 2].
            blocks: of each row; neighbouring windows of one text share one, documents have one each.
            exponential: of a perplexity, whose interval is symmetric in nats.
        """
        found = rate(columns[:, 0], columns[:, 1], blocks, self.confidence)
        shown = exponential_of if exponential else float
        ends = _ends(found.low, found.high)
        return with_bounds(name, shown(found.value), ends and (shown(ends[0]), shown(ends[1])))


def with_bounds(name: str, value: float, ends: tuple[float, float] | None) -> dict[str, float]:
    """A metric and its bounds, without those where they are none: not finite, or of no width."""
    if ends is None or not all(map(math.isfinite, ends)) or ends[1] - ends[0] <= _ROUNDING * max(map(abs, ends)):
        return {name: value}
    return {name: value, f"{name}_ci_low": ends[0], f"{name}_ci_high": ends[1]}


def unlike(values: np.ndarray) -> int:
    """How many values differ from the commonest one."""
    return len(values) - int(np.unique(values, return_counts=True)[1].max())


def exponential_of(nats: float) -> float:
    """exp, infinite where a float cannot hold it."""
    return math.exp(nats) if nats < 700 else math.inf if nats == nats else math.nan


def ratio(sums: np.ndarray) -> np.ndarray:
    """First column over the second: a mean, or a rate per token."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)
