"""Optuna as Ray Tune's search algorithm, told the truth about trials that were stopped, failed or diverged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from edgequant_tune.objectives import VIOLATION, Objective
from edgequant_tune.search_space import Space

METRICS = "metrics/"  # where a report holds the metrics, in Ray's flattened names


class OptunaTpe(OptunaSearch):
    """TPE over the space. A stopped trial is pruned (with its last value), one without a finite value has failed.

    Ray's own class would file the value measured in the middle of training as the trial's result, and a report without
    every objective as an error.
    """

    def __init__(
        self,
        space: Space,
        objectives: tuple[Objective, ...],
        seed: int,
        first: Mapping[str, Any] | None,
        constrained: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        several = len(objectives) > 1
        metrics = [METRICS + objective.metric for objective in objectives]
        super().__init__(
            space={item.name: item.distribution() for item in space},
            metric=metrics if several else metrics[0],
            mode=[objective.mode for objective in objectives] if several else objectives[0].mode,
            points_to_evaluate=[dict(first)] if first else None,
            seed=None if constrained else seed,
            sampler=optuna.samplers.TPESampler(seed=seed, constraints_func=_excess) if constrained else None,
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        value = result.get(self.metric) if isinstance(self.metric, str) else None
        if value is not None and math.isfinite(value):
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        names = [self.metric] if isinstance(self.metric, str) else list(self.metric or [])
        values = [(result or {}).get(name) for name in names]
        usable = all(value is not None and math.isfinite(value) for value in values)
        if (excess := (result or {}).get(METRICS + VIOLATION)) is not None and trial_id in self._ot_trials:
            self._ot_trials[trial_id].set_user_attr(VIOLATION, excess)
        if result and result.get("complete") and usable:
            return super().on_trial_complete(trial_id, result, error)
        if trial_id not in self._completed_trials:
            stopped = not error and not (result or {}).get("complete")
            assert self._ot_study is not None
            self._ot_study.tell(self._ot_trials[trial_id], state=TrialState.PRUNED if stopped else TrialState.FAIL)
            self._completed_trials.add(trial_id)


def _excess(trial: optuna.trial.FrozenTrial) -> tuple[float]:
    """What TPE keeps below 0: a trial that was stopped before it was measured counts as beyond."""
    return (float(trial.user_attrs.get(VIOLATION, 1.0)),)
