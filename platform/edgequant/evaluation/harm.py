"""Was a model harmed? Every task and perplexity, paired item by item with the model that it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgequant.evaluation.statistics.batch_means import rate
from edgequant.evaluation.statistics.comparison import aligned, compare
from edgequant.evaluation.statistics.intervals import Bootstrap, exponential_of
from edgequant.evaluation.tasks.registry import paired_metrics

Items = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How much worse a model is than its reference on one metric.

    Attributes:
        metric: its name.
        loss: points lost by a task, or per cent by which a perplexity rose; below 0 is a gain.
        low, high: paired interval of the loss; None where there is none: one item, or items that all moved alike.
        margin: the loss that is accepted.
        unit: `points` or `%`.
        items: how many both were measured on.
    """

    metric: str
    loss: float
    low: float | None
    high: float | None
    margin: float
    unit: str
    items: int

    @property
    def shown(self) -> bool:
        """The whole interval lies beyond the margin."""
        return self.low is not None and self.low > self.margin

    @property
    def harmed(self) -> bool:
        """As `shown`. Without an interval the loss itself decides: what speaks against a model is not put aside for
        want of evidence."""
        return self.shown or (self.low is None and not self.loss <= self.margin)

    @property
    def interval(self) -> str:
        """In words."""
        if self.low is None or self.high is None:
            return f"{self.items} {'items' if self.items > 1 else 'item'}: no interval"
        return f"{self.low:.1f} to {self.high:.1f}"

    @property
    def reason(self) -> str:
        """What happened, in words."""
        verb = "fell by" if self.unit == "points" else "rose by"
        unit = self.unit if self.unit == "%" else f" {self.unit}"
        return f"{self.metric} {verb} {self.loss:.1f}{unit} ({self.interval}), accepted: {self.margin:g}{unit}"


def losses(
    reference: Items,
    model: Items,
    *,
    perplexity_margin: float,
    task_margin: float,
    bootstrap: Bootstrap | None = None,
) -> list[Loss]:
    """Compare two models on every metric that both have items of.

    Args:
        reference, model: item tables by name, as `Evaluation.items`.
        perplexity_margin: per cent.
        task_margin: points, of 100.

    Raises:
        UserError: a table has other items on one side than on the other.
    """
    bootstrap, found = bootstrap or Bootstrap(resamples=2000), []
    for paired in paired_metrics():
        if paired.table in reference and paired.table in model:
            tables = reference[paired.table], model[paired.table]
            if paired.value is None:
                found.append(_perplexity(paired.metric, *tables, perplexity_margin, bootstrap))
            else:
                found.append(_task(paired.metric, paired.value, *tables, task_margin, bootstrap))
    return found


def _task(metric: str, value: str, a: Any, b: Any, margin: float, bootstrap: Bootstrap) -> Loss:
    found = compare(a, b, value, margin=margin, bootstrap=bootstrap)
    low, high = (None if end is None else -end for end in (found.ci_high, found.ci_low))
    return Loss(
        metric=metric, loss=-found.difference, low=low, high=high, margin=margin, unit="points", items=found.items
    )  # fmt: skip


def _perplexity(metric: str, a: Any, b: Any, margin: float, bootstrap: Bootstrap) -> Loss:
    found = paired_perplexity(a, b, bootstrap.confidence)
    return Loss(
        metric=metric, loss=found.rise, low=found.low, high=found.high, margin=margin, unit="%", items=found.items
    )  # fmt: skip


class PerplexityRise(NamedTuple):
    """A reference's perplexity, and by how many per cent a model's lies above it, with the interval of that."""

    before: float
    rise: float
    low: float | None
    high: float | None
    items: int


def paired_perplexity(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], confidence: float = 0.95
) -> PerplexityRise:
    """Two perplexities of the same items, paired by blocks of windows, whose neighbours depend on each other.

    Args:
        a, b: item tables with `nats` and `tokens`; A is the reference.

    Raises:
        UserError: an item is in one table only, or there are none.
    """
    before, after = aligned(a, b, "nats")
    tokens, _ = aligned(a, b, "tokens")
    blocks = {item["id"]: item.get("block", item["id"]) for item in a}
    found = rate(after - before, tokens, [blocks[key] for key in sorted(blocks)], confidence)
    low, high = (None if end is None else _per_cent(end) for end in (found.low, found.high))
    perplexity = exponential_of(float(before.sum() / tokens.sum()))
    return PerplexityRise(perplexity, _per_cent(found.value), low, high, len(tokens))


def _per_cent(nats: float) -> float:
    """By how much a perplexity rises with so many nats a token more."""
    return 100 * (math.expm1(nats) if nats < 1 else exponential_of(nats) - 1)
