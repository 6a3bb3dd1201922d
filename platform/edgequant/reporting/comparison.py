"""What a report compares: rows with metrics, the runs behind them, what limits the comparison, what it comes to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgequant.evaluation.harm import Loss
from edgequant.tracking.search import FinishedRun


@dataclass(frozen=True)
class Pair:
    """A row against a reference.

    Attributes:
        row: index of the row.
        reference: variant of the reference.
        losses: how much worse the row is, by metric; below 0 is a gain.
        reason: why there are none.
    """

    row: int
    reference: str
    losses: list[Loss] = field(default_factory=list)
    reason: str = ""

    def of(self, metric: str) -> Loss | None:
        return next((loss for loss in self.losses if loss.metric == metric), None)


@dataclass(frozen=True)
class Comparison:
    """Everything a report shows, gathered once.

    Attributes:
        rows: one per measured model: `model`, `variant`, `scheme`, `run` and the metrics.
        runs: the measured runs, in the rows' order.
        owners: the workflow run that each belongs to, in the rows' order.
        parents: these once, oldest first.
        measured: with its workflow run, everything that these measured; more than the rows where a model was measured
            several times.
        environments: machine and versions by parent's id, as logged; empty where a run logged none.
        warnings: what a reader has to know before believing a difference.
        pairs: rows compared item by item with their baselines, and QAT with PTQ and the control.
        recovered: by row of QAT, how much of PTQ's loss it won back, or why that cannot be said.
    """

    rows: list[dict[str, Any]]
    runs: list[FinishedRun]
    owners: list[FinishedRun]
    parents: list[FinishedRun]
    measured: list[tuple[FinishedRun, FinishedRun]]
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    recovered: dict[int, str] = field(default_factory=dict)
