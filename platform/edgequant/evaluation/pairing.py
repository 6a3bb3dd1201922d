"""Two measurements side by side: whether they may be compared, and how they differ on the items that both share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgequant.evaluation.evidence_file import Conditions, Items, Scores
from edgequant.evaluation.harm import chance_of, compared
from edgequant.evaluation.statistics.comparison import Comparison, class_weights
from edgequant.evaluation.statistics.intervals import exponential_of
from edgequant.evaluation.tasks.registry import owner_of, paired_metrics
from edgequant.evaluation.tasks.task import Paired

HOW_MANY = ("limit", "bootstrap_resamples", "confidence")  # settings that change no item's score
OF_TIMES = "latency_"


@dataclass(frozen=True)
class PairedDifference:
    """A metric of two models on the items that both were measured on.

    Attributes:
        reference: the metric of the reference on these items.
        difference: the model's metric less that, in the metric's unit.
        low, high: 95 % interval of the difference, item by item; None where the items tell of no spread.
        counted: how many items there are, in how many clusters, in words.
        chance: as `Loss.chance`.
        comparison: that it comes from; of a perplexity, `is_perplexity`, in nats a token.
    """

    reference: float
    difference: float
    low: float | None
    high: float | None
    counted: str
    chance: str
    comparison: Comparison
    is_perplexity: bool = False

    def p_value(self, bound: float) -> float | None:
        """Two-sided p-value of "the difference is `bound`", in the metric's unit; None without an interval."""
        if not self.is_perplexity:
            return self.comparison.p_value(bound)
        ratio = 1 + bound / self.reference
        return self.comparison.p_value(math.log(ratio)) if ratio > 0 else 0.0

    @property
    def items(self) -> int:
        """How many both were measured on."""
        return self.comparison.items

    @property
    def words(self) -> str:
        """How it was found."""
        bounded = self.low is not None and self.high is not None
        told = f"{self.difference:+.4g}, {self.low:+.4g} to {self.high:+.4g}" if bounded else f"{self.difference:+.4g}"
        return f"paired on {self.counted}: {told}"


@dataclass(frozen=True)
class Pairing:
    """A model's scores beside those of a reference.

    Attributes:
        conditions, of_reference: under which each was measured; None: not known.
    """

    reference: Scores
    model: Scores
    of_reference: Conditions | None
    conditions: Conditions | None

    def why_not(self, metric: str) -> str:
        """Why the metric of one is not to be held against that of the other; empty where it may be.

        What no task measures, such as a size, may always be.
        """
        task = owner_of(metric)
        if self.conditions is None or self.of_reference is None or task is None:
            return ""
        ours, theirs = self.conditions, self.of_reference
        if task.kind == "efficiency":
            return _differing(ours, theirs, times=True) or _differs("machine", ours.machine, theirs.machine)
        if differing := _differing(ours, theirs, times=False):
            return differing
        for name in (each.name for each in task.data):
            if name in ours.data and name in theirs.data and ours.data[name] != theirs.data[name]:
                return f"data set {name} is another one"
        paired = _paired(metric)
        if paired is None or paired.table not in self.reference.items or paired.table not in self.model.items:
            return ""
        shared = _shared(self.reference.items, self.model.items, paired)
        return "" if shared[0] else f"no item of {paired.table} was scored alike by both"

    def difference(self, metric: str) -> PairedDifference | None:
        """Over the items that both share; None of a metric that is not compared by items."""
        paired = _paired(metric)
        if paired is None or self.why_not(metric):
            return None
        if paired.table not in self.reference.items or paired.table not in self.model.items:
            return None
        return _difference(paired, *_shared(self.reference.items, self.model.items, paired))


def value_of(rows: list[dict[str, Any]], paired: Paired) -> float:
    """A metric as its items have it: a mean in per cent or nats, or a perplexity."""
    if paired.value is None:
        return exponential_of(sum(row["nats"] for row in rows) / sum(row["tokens"] for row in rows))
    if paired.unit == "points":
        return 100 * sum(row[paired.value] for row in rows) / len(rows)
    kept = [row for row in rows if math.isfinite(row[paired.value])]
    weights = class_weights([row[paired.gold] for row in kept]) if paired.gold else [1.0] * len(kept)
    return float(sum(weight * row[paired.value] for weight, row in zip(weights, kept, strict=True))) / len(kept)


def _paired(metric: str) -> Paired | None:
    return next((each for each in paired_metrics() if each.metric == metric), None)


def _differing(ours: Conditions, theirs: Conditions, *, times: bool) -> str:
    """The first setting of the protocol in which they differ, in words."""
    for name in ours.protocol.keys() | theirs.protocol.keys():
        if name.startswith(OF_TIMES) != times or name in HOW_MANY:
            continue
        if told := _differs(name, ours.protocol.get(name), theirs.protocol.get(name)):
            return told
    return ""


def _differs(name: str, ours: Any, theirs: Any) -> str:
    return "" if ours == theirs else f"it was measured with {name} {_told(theirs)}, this with {_told(ours)}"


def _told(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shared(before: Items, after: Items, paired: Paired) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of both of the same items; windows that a tokeniser cut otherwise are others."""
    left, right = ({_key(row): dict(row) for row in items[paired.table]} for items in (before, after))
    both = [key for key in left if key in right]
    return [left[key] for key in both], [right[key] for key in both]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["id"], row.get("tokens")


def _difference(paired: Paired, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> PairedDifference | None:
    if not (paired.is_in(before) and paired.is_in(after)):
        return None
    found = compared(paired, before, after)
    told = paired.counted(found.items, found.clusters), chance_of(paired, before, after, found), found
    if paired.value is not None:
        return PairedDifference(found.a, found.difference, found.ci_low, found.ci_high, *told)
    reference = exponential_of(found.a)
    low, high = (None if end is None else reference * math.expm1(end) for end in (found.ci_low, found.ci_high))
    return PairedDifference(reference, reference * (exponential_of(found.difference) - 1), low, high, *told, True)
