"""Bootstrap confidence intervals of sample statistics (Efron and Tibshirani 1993, chapter 13: percentile method)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from edgequant.evaluation.scoring_settings import ScoringSettings

Statistic = Callable[[np.ndarray], np.ndarray]
_CELLS_AT_ONCE = 20_000_000


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: resamples, coverage and seed."""

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
        low, high = self.interval(columns, statistic)
        return {name: float(statistic(columns.sum(axis=0))), f"{name}_ci_low": low, f"{name}_ci_high": high}

    def mean(self, name: str, values: ArrayLike) -> dict[str, float]:
        """Mean of the items' values with its bounds."""
        column = np.asarray(values, dtype=np.float64)
        return self.measured(name, np.stack([column, np.ones_like(column)], axis=1), ratio)


def ratio(sums: np.ndarray) -> np.ndarray:
    """First column over the second: a mean, or a rate per token."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def exponential_ratio(sums: np.ndarray) -> np.ndarray:
    """Perplexity from summed nats and counted tokens."""
    return np.exp(ratio(sums))
