"""Which of several models is the best by a metric, where its items show that it is better than every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgequant.errors import UserError
from edgequant.evaluation.harm import Items, Loss, loss_of
from edgequant.evaluation.pairing import value_of
from edgequant.evaluation.statistics.verdicts import WORSE, holm
from edgequant.evaluation.tasks.registry import paired_metrics
from edgequant.evaluation.tasks.task import Paired

BEST_IN = "best_in"  # key of a row: the metrics by which its model is shown to be the best


def with_best(rows: Sequence[Mapping[str, Any]], items: Sequence[Items]) -> list[dict[str, Any]]:
    """Rows of a table that know by which metrics each is the best.

    Args:
        items: item tables of each row's model, which are compared in pairs.
    """
    best = shown_best(items)
    return [
        {**row, BEST_IN: ", ".join(metric for metric, place in best.items() if place == at)}
        for at, row in enumerate(rows)
    ]


def shown_best(models: Sequence[Items]) -> dict[str, int]:
    """By metric, the place of the model that beats each of the others; the metrics are one family (`holm`).

    The best must beat the runner-up in a two-sided test, which is wrong no more often than it says although the best
    was looked for (Gutmann and Maymin 1987, Annals of Statistics 15).
    """
    found: dict[str, tuple[int, float]] = {}
    for paired in paired_metrics():
        having = {at: items[paired.table] for at, items in enumerate(models) if paired.is_in(items.get(paired.table))}
        if len(having) > 1:
            found[paired.metric] = _beaten(paired, having)
    adjusted = holm([p for _, p in found.values()])
    return {name: best for (name, (best, _)), p in zip(found.items(), adjusted, strict=True) if p < 0.05}


def _beaten(paired: Paired, having: Mapping[int, Sequence[Mapping[str, Any]]]) -> tuple[int, float]:
    """The best, and the greatest p-value of its being no better than another: 1 where items do not show that it is."""
    try:
        values = {at: value_of([dict(row) for row in rows], paired) for at, rows in having.items()}
        best = (min if paired.value is None else max)(values, key=lambda at: values[at])
        losses = [_loss(paired, having[best], rows) for at, rows in having.items() if at != best]
    except (UserError, KeyError, TypeError, ValueError):  # other items, or a table of another version
        return -1, 1.0
    return best, max(1.0 if loss is None or loss.p is None or loss.outcome != WORSE else loss.p for loss in losses)


def _loss(paired: Paired, best: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> Loss | None:
    """None of perplexities over other tokens, which are not of one unit."""
    if paired.value is None and {(row["id"], row["tokens"]) for row in best} != {(r["id"], r["tokens"]) for r in other}:
        return None
    return loss_of(paired, best, other, margin=0.0)
