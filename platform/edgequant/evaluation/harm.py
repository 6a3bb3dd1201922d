"""Was a model harmed? Every task and perplexity, paired item by item with the model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgequant.evaluation.statistics.comparison import aligned, compare
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.tasks.registry import paired_metrics

Items = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """How much worse a model is than its reference on one metric.

    Attributes:
        metric: its name.
        loss: points lost by a task, or per cent by which a perplexity rose; below 0 is a gain.
        low, high: paired bootstrap interval of the loss.
        margin: the loss that is accepted.
        unit: `points` or `%`.
    """

    metric: str
    loss: float
    low: float
    high: float
    margin: float
    unit: str

    @property
    def harmed(self) -> bool:
        """The whole interval lies beyond the margin."""
        return self.low > self.margin

    @property
    def reason(self) -> str:
        """What happened, in words."""
        verb = "fell by" if self.unit == "points" else "rose by"
        unit = self.unit if self.unit == "%" else f" {self.unit}"
        return (
            f"{self.metric} {verb} {self.loss:.1f}{unit} ({self.low:.1f} to {self.high:.1f}), accepted: "
            f"{self.margin:g}{unit}"
        )


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
    return Loss(
        metric=metric, loss=-found.difference, low=-found.ci_high, high=-found.ci_low, margin=margin,
        unit="points",
    )  # fmt: skip


def _perplexity(metric: str, a: Any, b: Any, margin: float, bootstrap: Bootstrap) -> Loss:
    before, after = aligned(a, b, "nats")
    tokens, _ = aligned(a, b, "tokens")
    columns = np.stack([after - before, tokens], axis=1)
    low, high = bootstrap.interval(columns, _per_cent)
    loss = float(_per_cent(columns.sum(axis=0)))
    return Loss(metric=metric, loss=loss, low=low, high=high, margin=margin, unit="%")


def _per_cent(sums: np.ndarray) -> np.ndarray:
    """By how much a perplexity rises with so many nats more over so many tokens."""
    return 100 * np.expm1(sums[..., 0] / sums[..., 1])
