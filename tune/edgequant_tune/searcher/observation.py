"""What a searcher knows of a trial, and what it makes of trials that have no result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["pending", "finished", "stopped", "failed"]
Point = tuple[tuple[float, ...], tuple[float, ...]]  # costs and excesses, as a model is fitted to them


@dataclass
class Observation:
    """A trial: what was proposed and what came of it.

    Attributes:
        values: every hyperparameter of the space, those too that do not count beside the others.
        replicate: how often the same values were proposed before.
        costs: the objectives, less is better; of a stopped trial, its last ones; none: it has none.
        excesses: by how much each constraint is exceeded, as a share of its bound; 0 or less: it is kept.
    """

    values: Mapping[str, Any]
    replicate: int = 0
    state: State = "pending"
    costs: tuple[float, ...] = field(default=())
    excesses: tuple[float, ...] = field(default=())


def points(observations: Sequence[Observation]) -> dict[int, Point]:
    """What a model is fitted to, by the observation's index; nothing while no trial has finished.

    A failed or diverged trial counts as the worst that finished, so that the search keeps away from it; a stopped one
    as its last value, but as no better than the median, for it was stopped because it lagged behind. Costs worse than
    the median are drawn together, so that a trial that diverged does not hide what distinguishes good ones.
    """
    finished = [one for one in observations if one.state == "finished"]
    if not finished:
        return {}
    costs = [_Column([one.costs[i] for one in finished]) for i in range(len(finished[0].costs))]
    excesses = [_Column([one.excesses[i] for one in finished]) for i in range(len(finished[0].excesses))]
    return {
        index: (
            tuple(column.drawn_together(column.filled(one, one.costs, i)) for i, column in enumerate(costs)),
            tuple(math.asinh(column.filled(one, one.excesses, i)) for i, column in enumerate(excesses)),
        )
        for index, one in enumerate(observations)
        if one.state != "pending"
    }


class _Column:
    """One objective or constraint of all finished trials."""

    def __init__(self, values: Sequence[float]) -> None:
        ordered = sorted(values)
        self.best, self.median, self.worst = ordered[0], ordered[len(ordered) // 2], ordered[-1]

    def filled(self, one: Observation, given: Sequence[float], index: int) -> float:
        if one.state == "finished":
            return given[index]
        if one.state == "stopped":
            last = given[index] if index < len(given) else -math.inf
            return max(last, self.median) if math.isfinite(last) else (self.median + self.worst) / 2
        return self.worst

    def drawn_together(self, value: float) -> float:
        scale = self.median - self.best
        if value <= self.median or scale <= 0:
            return value
        return self.median + scale * math.log1p((value - self.median) / scale)
