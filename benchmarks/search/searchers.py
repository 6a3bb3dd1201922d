"""Who searches a problem: the searcher of `tune`, or Optuna's own Gaussian process, as its users would."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgequant_tune.searcher.proposals import Proposals
from search.problem import Problem


class Searcher(Protocol):
    """Proposes hyperparameters and is told what came of them."""

    startup: int  # first trials, which fill the space

    def __init__(self, problem: Problem, seed: int, slots: int) -> None: ...

    @property
    def awaits_first_results(self) -> bool:
        """Whether all first trials are begun and some still run."""

    def ask(self, name: str) -> Mapping[str, Any]:
        """What the trial of this name is to try."""

    def tell(self, name: str, costs: Sequence[float], excesses: Sequence[float]) -> None:
        """What came of it."""


class Ours:
    """The searcher of `tune`."""

    def __init__(self, problem: Problem, seed: int, slots: int) -> None:
        self._proposals = Proposals(problem.space, seed=seed, slots=slots)
        self.startup = self._proposals.startup

    @property
    def awaits_first_results(self) -> bool:
        return self._proposals.awaits_first_results

    def ask(self, name: str) -> Mapping[str, Any]:
        proposed = self._proposals.ask(name)
        assert proposed is not None
        return proposed.values

    def tell(self, name: str, costs: Sequence[float], excesses: Sequence[float]) -> None:
        self._proposals.tell(name, "finished", costs, excesses)


class Optuna:
    """Its `GPSampler`, with as many first trials; trials that run are known to it."""

    def __init__(self, problem: Problem, seed: int, slots: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="optuna")
        self.startup = Proposals(problem.space, slots=slots).startup
        bounded = {"constraints_func": lambda trial: trial.user_attrs["excesses"]} if problem.is_bounded else {}
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=self.startup, **bounded)
        self._study = optuna.create_study(sampler=sampler, directions=["minimize"] * problem.objectives)
        self._space = {item.name: item.distribution() for item in problem.space}
        self._trials: dict[str, Any] = {}
        self._ended: set[str] = set()

    @property
    def awaits_first_results(self) -> bool:
        first = [*self._trials][: self.startup]
        return len(first) == self.startup and not self._ended.issuperset(first)

    def ask(self, name: str) -> Mapping[str, Any]:
        self._trials[name] = self._study.ask(self._space)
        return dict(self._trials[name].params)

    def tell(self, name: str, costs: Sequence[float], excesses: Sequence[float]) -> None:
        self._trials[name].set_user_attr("excesses", tuple(excesses))
        self._study.tell(self._trials[name], list(costs))
        self._ended.add(name)


SEARCHERS: Mapping[str, type[Searcher]] = {"ours": Ours, "optuna": Optuna}
