"""Two measurements side by side: whether they may be compared, and how they differ on the items that both share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgequant.evaluation.evidence_file import Conditions, Items, Scores
from edgequant.evaluation.harm import paired_perplexity
from edgequant.evaluation.statistics.comparison import compare
from edgequant.evaluation.statistics.intervals import Bootstrap
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
        items: how many there are.
    """

    reference: float
    difference: float
    low: float | None
    high: float | None
    items: int

    @property
    def words(self) -> str:
        """How it was found."""
        bounded = self.low is not None and self.high is not None
        told = f"{self.difference:+.4g}, {self.low:+.4g} to {self.high:+.4g}" if bounded else f"{self.difference:+.4g}"
        return f"paired on {self.items} {'items' if self.items > 1 else 'item'}: {told}"


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
        before, after = _shared(self.reference.items, self.model.items, paired)
        return _perplexities(before, after) if paired.value is None else _shares(before, after, paired.value)


def value_of(rows: list[dict[str, Any]], paired: Paired) -> float:
    """A metric as its items have it: a mean in per cent, or a perplexity."""
    if paired.value is None:
        return paired_perplexity(rows, rows).before
    return 100 * sum(row[paired.value] for row in rows) / len(rows)


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


def _shares(before: list[dict[str, Any]], after: list[dict[str, Any]], value: str) -> PairedDifference:
    found = compare(before, after, value, bootstrap=Bootstrap(resamples=2000))
    return PairedDifference(found.a, found.difference, found.ci_low, found.ci_high, found.items)


def _perplexities(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> PairedDifference:
    found = paired_perplexity(before, after)
    low, high = (None if end is None else found.before * end / 100 for end in (found.low, found.high))
    return PairedDifference(found.before, found.before * found.rise / 100, low, high, found.items)
