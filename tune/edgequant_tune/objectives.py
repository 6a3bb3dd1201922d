"""What a search optimises: one metric, or several of which none may be improved at another's expense (Pareto)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgequant.errors import UserError
from edgequant.evaluation.evidence import is_evidence

HELD_OUT = "validation/loss"  # reported at the rungs; what successive halving compares
VIOLATION = "constraints/violation"  # of a finished trial; absent in a search without constraints
UNMEASURED = 1e6  # a constraint's excess where its metric is absent: worse than any that was measured


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


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric that the best trial has to keep, as `deploy/size_gb<=0.1` is written."""

    metric: str
    sign: Literal["<=", ">="]
    bound: float

    def excess(self, metrics: Mapping[str, Any]) -> float:
        """How far the metric is beyond its bound, as a share of it; 0: it keeps it; UNMEASURED: there is none."""
        return max(0.0, self.signed_excess(metrics))

    def signed_excess(self, metrics: Mapping[str, Any]) -> float:
        """The same, below 0 where the metric keeps the bound with room to spare."""
        value = metrics.get(self.metric)
        if not isinstance(value, int | float) or not is_evidence(self.metric, value):
            return UNMEASURED
        over = value - self.bound if self.sign == "<=" else self.bound - value
        return over / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"


def violation(constraints: Sequence[Constraint], metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metric VIOLATION, 0 where all constraints are kept; nothing where there are none."""
    return {VIOLATION: sum(one.excess(metrics) for one in constraints)} if constraints else {}


def read_constraints(lines: Sequence[str]) -> tuple[Constraint, ...]:
    """Constraints as they are written, `METRIC<=NUMBER` or `METRIC>=NUMBER`.

    Raises:
        UserError: one is not written so, its number is not finite, or it stands twice.
    """
    constraints = tuple(_constraint(line) for line in lines)
    twice = [one for one in constraints if [(o.metric, o.sign) for o in constraints].count((one.metric, one.sign)) > 1]
    if twice:
        raise UserError(f"constraints must each bound another metric, got {' and '.join(map(str, twice))}; keep one")
    return constraints


def _constraint(line: str) -> Constraint:
    from edgequant.reporting.columns import metric

    found = re.fullmatch(r"\s*([\w./-]+)\s*(<=|>=)\s*(\S+)\s*", line)
    try:
        bound = float(found[3]) if found else math.nan
    except ValueError:
        bound = math.nan
    if found is None or not math.isfinite(bound):
        raise UserError(f"constraint must be METRIC<=NUMBER or METRIC>=NUMBER, as deploy/size_gb<=0.1, got {line!r}")
    if doubt := metric(found[1]).doubt(found[1], "max" if found[2] == "<=" else "min", bound):
        raise UserError(f"constraint {line.strip()!r}: {doubt}")
    return Constraint(found[1], "<=" if found[2] == "<=" else ">=", bound)


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
