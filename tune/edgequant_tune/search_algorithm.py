"""The searcher as Ray Tune's search algorithm, told the truth about trials that were stopped, failed or diverged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from edgequant_tune.objectives import Constraint
from edgequant_tune.search_space import SEED
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.searcher.observation import State
from edgequant_tune.searcher.proposals import Proposals
from edgequant_tune.space.hyperparameter import configuration
from edgequant_tune.trial_records import TrialRecord

WORTH_WAITING = 0.1  # of a trial's time, once in a search
METRICS = "metrics/"  # where a report holds the metrics, in Ray's flattened names


class SearchAlgorithm(Searcher):
    """`Proposals` for Ray. What it knows of trials that are over, a search that goes on tells it by `learn`."""

    def __init__(self, spec: SearchSpec) -> None:
        super().__init__(metric=METRICS + spec.objectives[0].metric, mode=spec.objectives[0].mode)
        self.objectives, self.constraints = spec.objectives, spec.trial.constraints
        self.settings_of, self.seed = spec.settings_of, spec.trial.run.seed
        self._begun: float = time.monotonic()
        self._first_end: float | None = None  # of this process: a restored search does not wait
        self.proposals = Proposals(
            spec.space,
            seed=self.seed,
            slots=spec.concurrent_trials or 1,
            first=spec.recipe,
            replicates=spec.replicates,
        )

    def learn(self, records: Sequence[TrialRecord]) -> None:
        """Trials that are over, of this search or of an earlier one; those that it could not propose are left out."""
        for one in (record for record in records if self._could_propose(record)):
            told = self._told(one.metrics, complete=one.status == "finished", failed=one.status == "failed")
            self.proposals.learn(one.id, one.values, one.values.get(SEED, self.seed) - self.seed, *told)

    def _could_propose(self, record: TrialRecord) -> bool:
        given = {item.name: item for item in self.proposals.space if item.name in record.values}
        if record.status == "unfinished" or not all(item.contains(record.values[name]) for name, item in given.items()):
            return False
        whole = self.proposals.whole(record.values)
        return configuration(self.proposals.space, whole).keys() == given.keys()

    def repeat(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Propose these hyperparameters before any others: their trials were interrupted."""
        for one in values:
            self.proposals.repeat(one, one.get(SEED, self.seed) - self.seed)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if trial_id not in self.proposals.trials and self._waits():
            return None
        proposed = self.proposals.ask(trial_id)
        return Searcher.FINISHED if proposed is None else self.settings_of(proposed.values, proposed.replicate)

    def _waits(self) -> bool:
        """Whether a slot stays free for a moment: first trials mostly end together, and the next ones had better know
        all of them than the one that ended first."""
        if not self.proposals.awaits_first_results or self._first_end is None:
            return False
        return time.monotonic() < self._first_end + WORTH_WAITING * (self._first_end - self._begun)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self.proposals.trials:
            return
        self._first_end = self._first_end or time.monotonic()
        is_complete = bool((result or {}).get("complete"))
        self.proposals.tell(trial_id, *self._told(metrics_of(result or {}), complete=is_complete, failed=error))

    def _told(
        self, metrics: Mapping[str, Any], *, complete: bool, failed: bool
    ) -> tuple[State, list[float], list[float]]:
        """A trial that diverged has failed; a stopped one hands over what it came to."""
        costs = [objective.cost(metrics) for objective in self.objectives]
        if failed or (complete and not all(map(math.isfinite, costs))):
            return "failed", [], []
        return ("finished", costs, excesses(self.constraints, metrics)) if complete else ("stopped", costs, [])


def metrics_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """A report's metrics by their own names."""
    return {name.removeprefix(METRICS): value for name, value in result.items() if name.startswith(METRICS)}


def excesses(constraints: Sequence[Constraint], metrics: Mapping[str, Any]) -> list[float]:
    """By how much each constraint is exceeded; a bound that was not measured counts as exceeded by as much again."""
    return [min(one.signed_excess(metrics), 1.0) for one in constraints]
