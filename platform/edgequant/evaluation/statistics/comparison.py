"""Is model B worse than model A by more than d? Paired, on the same items, which hang together in clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy.stats import binom

from edgequant.errors import UserError
from edgequant.evaluation.statistics.batch_means import cluster_sums
from edgequant.evaluation.statistics.clusters import cluster_of
from edgequant.evaluation.statistics.effects import Effect, paired_effect
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.statistics.verdicts import side

Items = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items.

    Attributes:
        items: how many items both answered.
        clusters: in how many clusters these lie, such as passages or articles.
        a, b: their means.
        difference: b - a.
        ci_low, ci_high: paired interval of the difference; None where one cluster, or items that all moved alike, tell
            of no spread.
        margin: the loss that is still acceptable, as a positive number.
        p_worse: one-sided p-value of "B loses no more than the margin"; small means B is worse by more; 1 without an
            interval.
        p_mcnemar: exact two-sided McNemar p-value of "equally often right", over clusters (`mcnemar`); None unless
            values are right or wrong.
        effect: what the items tell, for p-values of other bounds; None without an interval.
        scale: from the effect's unit to the difference's.
    """

    items: int
    clusters: int
    a: float
    b: float
    difference: float
    ci_low: float | None
    ci_high: float | None
    margin: float
    p_worse: float
    p_mcnemar: float | None
    effect: Effect | None
    scale: float

    @property
    def worse(self) -> bool:
        """B is worse than A by more than the margin, and the interval shows it: all of it lies below -margin."""
        return side(self.ci_low, self.ci_high, -self.margin) == "below"

    @property
    def not_worse(self) -> bool:
        """Non-inferiority: all of the interval lies at or above -margin. Neither this nor `worse`: too few items."""
        return self.ci_low is not None and self.ci_low >= -self.margin

    def p_value(self, bound: float) -> float | None:
        """Two-sided p-value of "the difference is `bound`"; of 0 between right-or-wrong answers, McNemar's too.

        Two tests of one hypothesis: what the clusters' spread shows, the exact test must not contradict, so that the
        greater p-value counts. None without an interval.
        """
        if self.effect is None:
            return None
        found = self.effect.p_value(bound / self.scale)
        return found if bound or self.p_mcnemar is None else max(found, self.p_mcnemar)

    @property
    def verdict(self) -> str:
        """The answer in one line."""
        answer = "worse" if self.worse else "not worse" if self.not_worse else "undecided"
        bounded = self.ci_low is not None and self.ci_high is not None
        interval = f"[{self.ci_low:+.2f}, {self.ci_high:+.2f}]" if bounded else "(no interval)"
        within = f" in {self.clusters} clusters" if self.clusters < self.items else ""
        return (
            f"{answer} by more than {self.margin:g}: {self.a:.2f} -> {self.b:.2f}, difference {self.difference:+.2f} "
            f"{interval} on {self.items} {'items' if self.items > 1 else 'item'}{within}"
        )


def compare(
    a: Items,
    b: Items,
    value: str,
    *,
    margin: float = 0.0,
    scale: float = 100.0,
    bootstrap: Bootstrap | None = None,
    balanced_by: str | None = None,
) -> Comparison:
    """Compare two models' item tables, matched by `id`, by a bootstrap of whole clusters (`paired_effect`).

    Args:
        a, b: items of an Evaluation; A is the reference. Those with one `cluster` depend on each other.
        value: the column to compare, higher is better: `correct`, `exact_match`, `f1`; shares from 0 to 1 are known by
            their values.
        margin: loss in scaled units that is acceptable; 1.0 with the default scale is one percentage point.
        scale: 100 turns fractions into per cent.
        balanced_by: a column of A whose values weigh the same, however many items have each.

    Raises:
        UserError: an item is in one table only, or there are none.

    Example:
        compare(baseline.items["boolq"], quantised.items["boolq"], "correct", margin=1.0).verdict
    """
    left, right = aligned(a, b, value)
    rows = in_order(a)
    scored = ~(np.isnan(left) & np.isnan(right))  # both too long for the context
    rows, left, right = [row for row, kept in zip(rows, scored, strict=True) if kept], left[scored], right[scored]
    weights = class_weights([row[balanced_by] for row in rows]) if balanced_by else np.ones(len(rows))
    even = balanced_by is None
    return _compared(rows, left, right, weights, even=even, margin=margin, scale=scale, bootstrap=bootstrap)


def compare_rates(
    a: Items, b: Items, numerator: str, denominator: str, *, bootstrap: Bootstrap | None = None
) -> Comparison:
    """As `compare`, of rates such as nats a token: sums over sums, weighed by the denominator, which both share."""
    left, right = aligned(a, b, numerator)
    weights, _ = aligned(a, b, denominator)
    rates = left / weights, right / weights
    return _compared(in_order(a), *rates, weights, even=False, margin=0.0, scale=1.0, bootstrap=bootstrap)


def _compared(
    rows: Items,
    left: np.ndarray,
    right: np.ndarray,
    weights: np.ndarray,
    *,
    even: bool,
    margin: float,
    scale: float,
    bootstrap: Bootstrap | None,
) -> Comparison:
    bootstrap = bootstrap or Bootstrap(resamples=10_000)
    clusters = [cluster_of(row) for row in rows]
    both = np.concatenate([left, right])
    shares, binary = even and bool(((both >= 0) & (both <= 1)).all()), even and bool(np.isin(both, (0.0, 1.0)).all())
    changes = weights * (right - left)
    effect = paired_effect(changes, weights, clusters, bootstrap, shares=shares, right_or_wrong=binary)
    low, high = (None, None) if effect is None else (scale * end for end in effect.interval(bootstrap.confidence))
    total = weights.sum() if len(rows) else np.nan
    before, after, difference = (float(each.sum() / total) for each in (weights * left, weights * right, changes))
    return Comparison(
        items=len(rows),
        clusters=len(set(clusters)),
        a=scale * before,
        b=scale * after,
        difference=scale * difference,
        ci_low=low,
        ci_high=high,
        margin=margin,
        p_worse=1.0 if effect is None else _one_sided(effect, -margin / scale, difference),
        p_mcnemar=mcnemar(left, right, clusters) if binary else None,
        effect=effect,
        scale=scale,
    )


def _one_sided(effect: Effect, bound: float, difference: float) -> float:
    half = effect.p_value(bound) / 2
    return half if difference < bound else 1 - half


def class_weights(classes: Sequence[Hashable]) -> np.ndarray:
    """[items] weights whose mean is 1 and whose sum is the same for every class."""
    counts = Counter(classes)
    return np.array([len(classes) / len(counts) / counts[each] for each in classes])


def mcnemar(a: np.ndarray, b: np.ndarray, clusters: Sequence[Hashable] | None = None) -> float:
    """Exact two-sided p-value that A and B are right equally often, from the items where only one of them is.

    McNemar's test (1947) lets each of these items favour A or B by the toss of a coin. Where items hang together, one
    toss decides a whole cluster (Canay, Romano and Shaikh 2017, Econometrica 85: sign changes of clusters); each item
    by itself is McNemar's own.

    Args:
        a, b: [items] 0 or 1.
        clusters: of each item; None: all are independent.
    """
    changes = np.asarray(b, dtype=np.int64) - np.asarray(a, dtype=np.int64)
    moved = cluster_sums(changes, np.ones(len(changes)), range(len(changes)) if clusters is None else clusters)[:, 0]
    sizes = Counter(abs(round(size)) for size in moved if size)
    if not sizes:
        return 1.0
    chances = reduce(np.convolve, [_tosses(size, count) for size, count in sizes.items()])
    reach = len(chances) // 2  # of the sums -reach, -reach + 1, ..., reach
    sums = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chances[sums >= abs(int(changes.sum()))].sum()))


def _tosses(size: int, count: int) -> np.ndarray:
    """Chances of the sums of `count` coins that show -size or size, from -size * count on."""
    chances = np.zeros(2 * size * count + 1)
    chances[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
    return chances


def aligned(a: Items, b: Items, value: str) -> tuple[np.ndarray, np.ndarray]:
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


def in_order(items: Items) -> list[Mapping[str, Any]]:
    """Items in the order of `aligned`."""
    rows = {item["id"]: item for item in items}
    return [rows[key] for key in sorted(rows)]
