"""A searched hyperparameter, and the configurations that several of them make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgequant_tune.space.conditions import Condition

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KINDS = ("uniform", "log_uniform", "integers", "log_integers", "choice")


@dataclass(frozen=True)
class Hyperparameter:
    """One searched hyperparameter; `values` are the two ends (both included) or all there is to choose.

    It counts where all conditions of `when` hold; elsewhere the setting keeps its value.
    """

    name: str
    kind: str
    values: tuple[Any, ...]
    step: float | None = None
    when: tuple[Condition, ...] = ()

    def distribution(self) -> BaseDistribution:
        """The same range in Optuna's terms."""
        from optuna import distributions

        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.values)
        low, high = self.values
        logarithmic = self.kind.startswith("log_")
        if self.kind.endswith("integers"):
            return distributions.IntDistribution(low, high, log=logarithmic, step=int(self.step or 1))
        return distributions.FloatDistribution(low, high, log=logarithmic, step=self.step)

    def contains(self, value: Any) -> bool:
        """Whether the search could come to this value."""
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        if not isinstance(value, int | float) or not low <= value <= high:
            return False
        return self.step is None or math.isclose(
            (value - low) / self.step, round((value - low) / self.step), abs_tol=1e-9
        )

    def at(self, share: float) -> Any:
        """The value at a share of the range, 0 to below 1; equal shares have equally many values."""
        if self.kind == "choice":
            return self.values[int(share * len(self.values))]
        low, high = self.values
        if (listed := self.listed()) is not None and not self.kind.startswith("log_"):
            return listed[int(share * len(listed))]
        if self.kind == "log_integers":  # a whole number has the room of those that round to it
            lowest, highest = math.log(low - 0.5), math.log(high + 0.5)
            return min(max(round(math.exp(lowest + share * (highest - lowest))), low), high)
        if self.kind == "log_uniform":
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return min(max(float(value), low), high)

    def share(self, value: Any) -> float:
        """Where a value lies in the range, 0 to 1; of a choice, its number."""
        if self.kind == "choice":
            return float(self.values.index(value))
        low, high = self.values
        if self.kind.startswith("log_"):
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def listed(self) -> list[Any] | None:
        """All values in order; none: it is continuous."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        if self.kind.endswith("integers"):
            return list(range(low, high + 1, int(self.step or 1)))
        if self.step is None:
            return None
        count = math.floor((high - low) / self.step + 1e-9) + 1
        return [float(low + index * self.step) for index in range(count)]


Space = tuple[Hyperparameter, ...]


def configuration(space: Sequence[Hyperparameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those hyperparameters that count beside the others."""
    if not any(item.when for item in space):
        return {item.name: values[item.name] for item in space}
    items = {item.name: item for item in space}

    def counts(name: str) -> bool:
        return all(counts(one.other) and one.holds(values[one.other]) for one in items[name].when)

    return {name: values[name] for name in items if counts(name)}


def canonical(space: Sequence[Hyperparameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """All hyperparameters, those that do not count at one value whatever was proposed for them."""
    if not any(item.when for item in space):
        return dict(values)
    counting = configuration(space, values)
    return {item.name: counting.get(item.name, item.at(0.5)) for item in space}


def configurations(space: Sequence[Hyperparameter], most: int) -> list[dict[str, Any]] | None:
    """All that a space without continuous hyperparameters holds; none where there are more than `most` of them."""
    lists = [item.listed() for item in space]
    if any(one is None for one in lists) or math.prod(len(one or ()) for one in lists) > most:
        return None
    every = (
        dict(zip((item.name for item in space), row, strict=True))
        for row in itertools.product(*(one or () for one in lists))
    )
    return list({repr(found): found for found in (canonical(space, values) for values in every)}.values())
