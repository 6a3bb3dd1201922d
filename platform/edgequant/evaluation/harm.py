"""Was a model harmed? Every task and perplexity, paired item by item with the model that it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgequant.evaluation.statistics.clusters import cluster_of
from edgequant.evaluation.statistics.comparison import Comparison, compare, compare_rates, in_order
from edgequant.evaluation.statistics.intervals import Bootstrap, exponential_of
from edgequant.evaluation.statistics.verdicts import holm, side, word
from edgequant.evaluation.tasks.registry import paired_metrics
from edgequant.evaluation.tasks.task import Paired, at_chance

Items = Mapping[str, Sequence[Mapping[str, Any]]]
RESAMPLES = 2000
POINTS_A_NAT = 25.0  # that an even probability moves by with its log-odds: p (1 - p) = 1/4


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How much worse a model is than its reference on one metric.

    Attributes:
        metric: its name.
        loss: points or nats lost by a task, or per cent by which a perplexity rose; below 0 is a gain.
        low, high: paired interval of the loss; None where there is none: one cluster, or items that all moved alike.
        margin: the loss that is accepted.
        unit: `points`, `nats` or `%`.
        items: how many both were measured on.
        counted: these and the clusters that they lie in, in words.
        p: two-sided p-value of "the loss is the margin"; None without an interval.
        p_holm: adjusted for the other metrics of the two models.
        chance: `at chance` or `at the floor` where neither model is told from one that knows nothing; else empty.
        decides: whether it is a verdict by itself on harm: not at chance, and not where it only stands beside the
            answers that it is the margin of.
    """

    metric: str
    loss: float
    low: float | None
    high: float | None
    margin: float
    unit: str
    items: int
    counted: str = ""
    p: float | None = None
    p_holm: float | None = None
    chance: str = ""
    decides: bool = True

    @property
    def outcome(self) -> str:
        """`better`, `worse`, `undecided`, `the same`, `no interval`, or why there is no verdict: `at chance`."""
        if self.chance:
            return self.chance
        return word(side(self.low, self.high, self.margin, p=self.p_holm), self.loss, higher_is_better=False)

    @property
    def shown(self) -> bool:
        """More than the margin was lost, beyond doubt: see `side`."""
        return not self.chance and side(self.low, self.high, self.margin, p=self.p_holm) == "above"

    @property
    def harmed(self) -> bool:
        """As `shown`, where it decides. Without an interval the loss itself does: what speaks against a model is not
        put aside for want of evidence."""
        return self.decides and (self.shown or (self.low is None and not self.loss <= self.margin))

    @property
    def interval(self) -> str:
        """In words."""
        if self.low is None or self.high is None:
            return f"{self.items} {'items' if self.items > 1 else 'item'}: no interval"
        return f"{self.low:{self._form}} to {self.high:{self._form}}"

    @property
    def reason(self) -> str:
        """What happened, in words."""
        verb = "rose by" if self.unit == "%" else "fell by"
        unit = self.unit if self.unit == "%" else f" {self.unit}"
        on = f" on {self.counted}" if self.counted and self.low is not None else ""
        lost = f"{self.metric} {verb} {self.loss:{self._form}}{unit} ({self.interval}{on})"
        return f"{lost}, accepted: {self.margin:g}{unit}"

    @property
    def _form(self) -> str:
        return ".3f" if self.unit == "nats" else ".1f"


def losses(
    reference: Items,
    model: Items,
    *,
    perplexity_margin: float,
    task_margin: float,
    bootstrap: Bootstrap | None = None,
) -> list[Loss]:
    """Compare two models on every metric that both have items of; they are one family for Holm's correction.

    Args:
        reference, model: item tables by name, as `Evaluation.items`.
        perplexity_margin: per cent.
        task_margin: points, of 100; in nats of log-odds, what moves an even probability by as much.

    Raises:
        UserError: a table has other items on one side than on the other.
    """
    found = []
    for paired in paired_metrics():
        if paired.is_in(reference.get(paired.table)) and paired.is_in(model.get(paired.table)):
            margin = perplexity_margin if paired.value is None else task_margin
            tables = reference[paired.table], model[paired.table]
            found.append(loss_of(paired, *tables, margin=margin, bootstrap=bootstrap))
    return family(found)


def family(found: Sequence[Loss]) -> list[Loss]:
    """Losses of one pair of models, each with its p-value adjusted for the others (Holm), and which of them decide.

    What is at chance gives no verdict, and so is none of the family.
    """
    judged = [loss.metric for loss in found if not loss.chance and loss.p is not None]
    raw = [loss.p for loss in found if loss.metric in judged and loss.p is not None]
    adjusted = dict(zip(judged, holm(raw), strict=True))
    chance = {loss.metric for loss in found if loss.chance}
    there = {loss.metric for loss in found}
    instead = {paired.metric: paired.instead_of for paired in paired_metrics() if paired.instead_of}
    return [
        replace(
            loss,
            p_holm=adjusted.get(loss.metric),
            decides=not loss.chance and instead.get(loss.metric) not in there - chance,
        )
        for loss in found
    ]


def loss_of(
    paired: Paired,
    a: Sequence[Mapping[str, Any]],
    b: Sequence[Mapping[str, Any]],
    *,
    margin: float,
    bootstrap: Bootstrap | None = None,
) -> Loss:
    """One metric of two item tables, before it is put beside others (`family`).

    Raises:
        UserError: an item is in one table only, or there are none.
    """
    found, accepted = compared(paired, a, b, bootstrap), margin / POINTS_A_NAT if paired.unit == "nats" else margin
    change = _per_cent if paired.value is None else _negative
    ends = sorted(change(end) for end in (found.ci_low, found.ci_high) if end is not None)
    low, high = ends if ends else (None, None)
    return Loss(
        metric=paired.metric,
        loss=change(found.difference),
        low=low,
        high=high,
        margin=accepted,
        unit="%" if paired.value is None else paired.unit,
        items=found.items,
        counted=paired.counted(found.items, found.clusters),
        p=found.p_value(math.log1p(accepted / 100) if paired.value is None else -accepted),
        chance=chance_of(paired, a, b, found),
    )


def compared(
    paired: Paired,
    a: Sequence[Mapping[str, Any]],
    b: Sequence[Mapping[str, Any]],
    bootstrap: Bootstrap | None = None,
) -> Comparison:
    """Two item tables by one metric: in points, in nats, or of a perplexity in nats a token.

    Raises:
        UserError: an item is in one table only, or there are none.
    """
    bootstrap = bootstrap or Bootstrap(resamples=RESAMPLES)
    if paired.value is None:
        return compare_rates(a, b, "nats", "tokens", bootstrap=bootstrap)
    if paired.unit == "nats":
        return compare(a, b, paired.value, scale=1.0, bootstrap=bootstrap, balanced_by=paired.gold)
    return compare(a, b, paired.value, bootstrap=bootstrap)


def chance_of(paired: Paired, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], found: Comparison) -> str:
    """`at chance` or `at the floor` where both models score what one that knows nothing scores, as far as their
    intervals tell; else empty."""
    floor = _floor(paired, a)
    if floor is None or paired.value is None:
        return ""
    said = {_chance(paired, rows, value, floor) for rows, value in ((a, found.a), (b, found.b))}
    return said.pop() if len(said) == 1 else ""


def _chance(paired: Paired, rows: Sequence[Mapping[str, Any]], value: float, floor: float) -> str:
    ordered = in_order(rows)
    column = [100 * float(row[str(paired.value)]) for row in ordered]
    measured = Bootstrap(resamples=RESAMPLES).share("x", column, [cluster_of(row) for row in ordered])
    return at_chance(value, measured.get("x_ci_low"), floor)


def _floor(paired: Paired, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """In points; None where knowing nothing has no score: of perplexities and margins."""
    if paired.unit == "nats" or paired.chance is not None or not paired.gold:
        return paired.chance
    if not all(paired.gold in row for row in rows):
        return None
    _, counts = np.unique([str(row[paired.gold]) for row in rows], return_counts=True)
    return 100 * float(counts.max()) / len(rows)


def _negative(difference: float) -> float:
    return -difference


def _per_cent(nats: float) -> float:
    """By how much a perplexity rises with so many nats a token more."""
    return 100 * (math.expm1(nats) if nats < 1 else exponential_of(nats) - 1)
