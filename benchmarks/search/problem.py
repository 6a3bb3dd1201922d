"""A function to search, and how good what was found is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgequant_tune.space.hyperparameter import Space


class Result(NamedTuple):
    """Objectives, less is better, and how far constraints are exceeded: kept at 0 or less."""

    costs: tuple[float, ...]
    excesses: tuple[float, ...] = ()

    @property
    def is_feasible(self) -> bool:
        return all(one <= 0 for one in self.excesses)


@dataclass(frozen=True)
class Problem:
    """A function to search; `optimum` of one objective, `reference` beyond the worst of two."""

    name: str
    kind: str
    result: Callable[[Mapping[str, Any]], Result]
    space: Space
    optimum: float = 0.0
    reference: tuple[float, float] | None = None

    @property
    def objectives(self) -> int:
        """How many are searched for."""
        return len(self._first.costs)

    @property
    def is_bounded(self) -> bool:
        """Whether it has constraints."""
        return bool(self._first.excesses)

    @property
    def _first(self) -> Result:
        return self.result({item.name: item.at(0.5) for item in self.space})

    def quality(self, results: Sequence[Result]) -> float:
        """Regret, or the hypervolume that two objectives dominate."""
        feasible = [one.costs for one in results if one.is_feasible]
        if self.reference:
            return hypervolume(feasible, self.reference)
        best = min(cost for cost, *_ in feasible) if feasible else max(one.costs[0] for one in results)
        return best - self.optimum

    def is_met(self, mine: float, by_chance: float, share: float) -> bool:
        """Regret at most a share of random search's; a hypervolume above it."""
        return mine > by_chance if self.reference else mine <= share * by_chance


def hypervolume(points: Sequence[Sequence[float]], reference: tuple[float, float]) -> float:
    """Area that two objectives dominate up to the reference."""
    area, height = 0.0, reference[1]
    for x, y in sorted((x, y) for x, y in points if x < reference[0]):
        if y < height:
            area += (reference[0] - x) * (height - y)
            height = y
    return area
