"""Proposes hyperparameters and is told what came of them: a design that fills the space, then a model of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from edgequant_tune.searcher.design import filling
from edgequant_tune.searcher.observation import Observation, State
from edgequant_tune.space.hyperparameter import Space, canonical, configuration, configurations

LEAST_STARTUP = 4  # trials that fill the space before a model is asked, and at least as many as run at a time
LEAST_FINISHED = 3  # a model of fewer says nothing
MOST_LISTED = 10_000  # configurations; of more, one that was not tried yet is drawn


class Proposals:
    """Ask it what to try, tell it what came of it.

    The same questions and answers give the same proposals: it holds values only, and is pickled while a search runs.

    Args:
        space: what is searched.
        seed: of the design and of every proposal.
        slots: trials that run at a time.
        first: hyperparameters of the first trial; none: the design's.
        replicates: how often each is proposed, one after the other.
    """

    def __init__(
        self,
        space: Space,
        *,
        seed: int = 0,
        slots: int = 1,
        first: Mapping[str, Any] | None = None,
        replicates: int = 1,
    ) -> None:
        self.space, self.seed, self.replicates = space, seed, replicates
        self.startup = max(LEAST_STARTUP, slots)
        self.first = dict(first) if first else None
        self.trials: dict[str, Observation] = {}
        self.again: list[Observation] = []

    def ask(self, name: str) -> Observation | None:
        """What the trial of this name is to try; the same again where it was asked before; none: all was tried."""
        if name in self.trials:
            return self.trials[name]
        if self.again:
            self.trials[name] = self.again.pop(0)
            return self.trials[name]
        last = next(reversed(self.trials.values()), None)
        if last is not None and last.replicate + 1 < self.replicates:
            self.trials[name] = Observation(last.values, last.replicate + 1)
            return self.trials[name]
        values = self._new_values()
        if values is None:
            return None
        self.trials[name] = Observation(canonical(self.space, values))
        return self.trials[name]

    def tell(self, name: str, state: State, costs: Sequence[float] = (), excesses: Sequence[float] = ()) -> None:
        """What came of a trial: see `Observation`."""
        one = self.trials[name]
        one.state, one.costs, one.excesses = state, tuple(costs), tuple(excesses)

    def learn(
        self, name: str, values: Mapping[str, Any], replicate: int, state: State, *results: Sequence[float]
    ) -> None:
        """A trial of an earlier session: its hyperparameters as it got them, and its results as `tell` takes them."""
        self.trials[name] = Observation(self.whole(values), replicate)
        self.tell(name, state, *results)

    def repeat(self, values: Mapping[str, Any], replicate: int) -> None:
        """Propose these hyperparameters first: their trial was interrupted."""
        self.again.append(Observation(self.whole(values), replicate))

    def whole(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A trial's hyperparameters with those that do not count beside them."""
        return canonical(self.space, {item.name: values.get(item.name, item.at(0.5)) for item in self.space})

    @property
    def awaits_first_results(self) -> bool:
        """Whether all first trials are begun and some still run: what is asked now cannot know them."""
        first = list(self.trials.values())[: self.startup]
        return len(first) == self.startup and any(one.state == "pending" for one in first)

    # ------------------------------------------------------------------------------------------------------ inside

    def _new_values(self) -> Mapping[str, Any] | None:
        begun = [one for one in self.trials.values() if one.replicate == 0]
        if not begun and self.first is not None:
            return self.first
        tried = {self._key(one.values) for one in begun}
        finished = sum(one.state == "finished" for one in self.trials.values())
        if len(begun) < self.startup or finished < min(LEAST_FINISHED, self.startup):
            candidates = filling(self.space, max(self.startup, len(begun) + 1), self.seed)[len(begun) :]
        else:
            candidates = self._modelled(tried, len(begun))
        fresh = (values for values in candidates if self._key(values) not in tried)
        return next(fresh, None) or self._untried(tried, len(begun))

    def _modelled(self, tried: set[Any], number: int) -> list[Mapping[str, Any]]:
        from edgequant_tune.searcher.model import SearchModel

        model = SearchModel(self.space, list(self.trials.values()), self.seed * 100_003 + number)
        values = model.propose(tried, self._key)
        return [values] if values is not None else []

    def _untried(self, tried: set[Any], number: int) -> Mapping[str, Any] | None:
        """Drawn of what is left; none: nothing is."""
        draw = random.Random(self.seed * 100_003 + number)
        every = configurations(self.space, MOST_LISTED)
        if every is not None:
            left = [values for values in every if self._key(values) not in tried]
            return draw.choice(left) if left else None
        while True:
            values = {item.name: item.at(draw.random()) for item in self.space}
            if self._key(values) not in tried:
                return values

    def _key(self, values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, repr(value)) for name, value in configuration(self.space, values).items()))
