"""Is model B worse than model A by more than d? Paired, on the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, ttest_1samp

from edgequant.errors import UserError
from edgequant.evaluation.statistics.batch_means import rate
from edgequant.evaluation.statistics.intervals import ENOUGH_TO_RESAMPLE, ENOUGH_UNLIKE, Bootstrap, unlike
from edgequant.evaluation.statistics.proportions import PairedShares


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items.

    Attributes:
        items: how many items both answered.
        a, b: their means.
        difference: b - a.
        ci_low, ci_high: paired interval of the difference; None where one item, or items that all moved alike, tell of
            no spread.
        margin: the loss that is still acceptable, as a positive number.
        p_worse: one-sided p-value of "B loses no more than the margin"; small means B is worse by more; 1 without an
            interval.
        p_mcnemar: exact two-sided McNemar p-value of "equally often right"; None unless values are right or wrong.
    """

    items: int
    a: float
    b: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    margin: float
    p_worse: float
    p_mcnemar: float | None

    @property
    def worse(self) -> bool:
        """B is worse than A by more than the margin, and the interval shows it: all of it lies below -margin."""
        return self.ci_high is not None and self.ci_high < -self.margin

    @property
    def not_worse(self) -> bool:
        """Non-inferiority: all of the interval lies at or above -margin. Neither this nor `worse`: too few items."""
        return self.ci_low is not None and self.ci_low >= -self.margin

    @property
    def verdict(self) -> str:
        """The answer in one line."""
        answer = "worse" if self.worse else "not worse" if self.not_worse else "undecided"
        bounded = self.ci_low is not None and self.ci_high is not None
        interval = f"[{self.ci_low:+.2f}, {self.ci_high:+.2f}]" if bounded else "(no interval)"
        return (
            f"{answer} by more than {self.margin:g}: {self.a:.2f} -> {self.b:.2f}, difference {self.difference:+.2f} "
            f"{interval} on {self.items} {'items' if self.items > 1 else 'item'}"
        )


def compare(
    a: Sequence[dict],
    b: Sequence[dict],
    value: str,
    *,
    margin: float = 0.0,
    scale: float = 100.0,
    bootstrap: Bootstrap | None = None,
) -> Comparison:
    """Compare two models' item tables, matched by `id` (Efron and Tibshirani 1993; McNemar 1947, exact form).

    Right-or-wrong values get Bonett and Price's interval (`PairedShares`), and so do others from 0 to 1 where fewer
    than 10 items moved unlike the rest: equal answers to 20 questions are not a difference of exactly 0. Others are
    resampled in pairs, below 20 items by Student's interval.

    Args:
        a, b: items of an Evaluation; A is the reference.
        value: the column to compare, higher is better: `correct`, `exact_match`, `f1`.
        margin: loss in scaled units that is acceptable; 1.0 with the default scale is one percentage point.
        scale: 100 turns fractions into per cent.

    Raises:
        UserError: an item is in one table only, or there are none.

    Example:
        compare(baseline.items["boolq"], quantised.items["boolq"], "correct", margin=1.0).verdict
    """
    bootstrap = bootstrap or Bootstrap(resamples=10_000)
    left, right = aligned(a, b, value)
    found = _estimate(left, right, -margin / scale, bootstrap)
    return Comparison(
        items=len(left),
        a=scale * float(left.mean()),
        b=scale * float(right.mean()),
        difference=scale * float((right - left).mean()),
        ci_low=None if found is None else scale * found.low,
        ci_high=None if found is None else scale * found.high,
        margin=margin,
        p_worse=1.0 if found is None else found.p_below,
        p_mcnemar=mcnemar(left, right) if _right_or_wrong(left, right) else None,
    )


class _Estimate(NamedTuple):
    """Interval of a mean difference, and the one-sided p-value that it is at least some bound."""

    low: float
    high: float
    p_below: float


def _estimate(left: np.ndarray, right: np.ndarray, bound: float, bootstrap: Bootstrap) -> _Estimate | None:
    """The interval that these many pairs allow; None where they tell of no spread, or one of them is no number."""
    differences = right - left
    if len(differences) < 2 or not np.isfinite(differences).all():
        return None
    shares = min(left.min(), right.min()) >= 0 and max(left.max(), right.max()) <= 1
    if shares and (_right_or_wrong(left, right) or unlike(differences) < ENOUGH_UNLIKE):
        lost, gained = float(-differences.clip(max=0).sum()), float(differences.clip(min=0).sum())
        pairs = PairedShares(lost, gained, len(differences))
        return _Estimate(*pairs.interval(bootstrap.confidence), pairs.p_below(bound))
    if len(differences) < ENOUGH_TO_RESAMPLE:
        return _student(differences, bound, bootstrap.confidence)
    means = bootstrap.sums(differences[:, None])[:, 0] / len(differences)
    low, high = bootstrap.bounds(means)
    # The +1 keeps a resampled p-value from being zero (Davison and Hinkley 1997, section 4.2).
    return _Estimate(low, high, (1 + int((means >= bound).sum())) / (1 + len(means))) if low < high else None


def _student(differences: np.ndarray, bound: float, confidence: float) -> _Estimate | None:
    found = rate(differences, np.ones_like(differences), range(len(differences)), confidence)
    if found.low is None or found.high is None:
        return None
    p_below = float(ttest_1samp(differences, bound, alternative="less").pvalue)
    return _Estimate(found.low, found.high, p_below)


def _right_or_wrong(left: np.ndarray, right: np.ndarray) -> bool:
    return set(np.unique([left, right])) <= {0.0, 1.0}


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided p-value that A and B are right equally often, from the items where only one of them is."""
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_b, only_a + only_b, 0.5).pvalue)


def aligned(a: Sequence[Mapping], b: Sequence[Mapping], value: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of two item tables, [items] each, in the order of the items' ids.

    Raises:
        UserError: an item is in one table only, or there are none.
    """
    left, right = ({item["id"]: float(item[value]) for item in items} for items in (a, b))
    if not left or left.keys() != right.keys():
        raise UserError(
            f"the two models were not scored on the same items: {len(left)} and {len(right)}, "
            f"{len(left.keys() & right.keys())} of them shared; evaluate both with the same limit and seed"
        )
    ids = sorted(left)
    return np.array([left[key] for key in ids]), np.array([right[key] for key in ids])
