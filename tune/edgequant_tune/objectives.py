"""What a search optimises: one metric, or several of which none may be improved at another's expense (Pareto)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgequant.errors import UserError
from edgequant.evaluation.evidence import is_evidence

HELD_OUT = "validation/loss"  # reported at the rungs; what successive halving compares


@dataclass(frozen=True)
class Objective:
    """A metric and the direction in which it is better."""

    metric: str
    mode: Literal["min", "max"]

    def cost(self, metrics: Mapping[str, Any]) -> float:
        """The metric turned so that less is better; infinite where it is absent or measures nothing."""
        value = metrics.get(self.metric)
        if not isinstance(value, int | float) or not is_evidence(self.metric, value):
            return math.inf
        return float(value) if self.mode == "min" else -float(value)


def read_objectives(names: Sequence[str]) -> tuple[Objective, ...]:
    """Objectives by metric name; `min:` or `max:` in front says the direction where the project knows none.

    Raises:
        UserError: none is given, one is given twice, or its direction is not known.
    """
    if not names:
        raise UserError("objectives must be metrics such as domain/perplexity, size/checkpoint_gb, got none")
    objectives = tuple(_objective(name) for name in names)
    metrics = [objective.metric for objective in objectives]
    if len(set(metrics)) < len(metrics):
        raise UserError(f"objectives must be different metrics, got {', '.join(metrics)}")
    return objectives


def _objective(name: str) -> Objective:
    from edgequant.reporting.columns import described_metrics, metric

    mode, _, rest = name.partition(":")
    if rest and mode in ("min", "max"):
        return Objective(rest, "min" if mode == "min" else "max")
    better = metric(name).better
    if better is None:
        known = ", ".join(key for key, shown in described_metrics().items() if shown.better)
        raise UserError(
            f"objective {name!r} has no known direction; write min:{name} or max:{name}, or use one of {known}"
        )
    return Objective(name, "min" if better == "lower" else "max")


def dominates(one: Mapping[str, Any], other: Mapping[str, Any], objectives: Sequence[Objective]) -> bool:
    """Whether metrics `one` are nowhere worse than `other` and somewhere better."""
    costs = [(objective.cost(one), objective.cost(other)) for objective in objectives]
    return all(a <= b for a, b in costs) and any(a < b for a, b in costs)
