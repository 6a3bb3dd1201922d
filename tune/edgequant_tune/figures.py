"""What a search looks like: its history, its trade-off, and which hyperparameters mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from edgequant.reporting import plots
from edgequant_tune.objectives import Objective
from edgequant_tune.search_space import Space
from edgequant_tune.trial_records import TrialRecord, ranked

SIZE = "size/checkpoint_gb"


def figures(records: Sequence[TrialRecord], space: Space, objectives: Sequence[Objective]) -> Mapping[str, Any]:
    """Plotly figures by artifact name; those that need more finished trials than there are, are left out.

    `pareto` plots two objectives, or the one objective against the checkpoint's size; `importance` is fANOVA (Hutter et
    al. 2014) of each objective; `parallel_coordinates` and `history` show the first objective.
    """
    finished = ranked(records, objectives)
    drawn: dict[str, Any] = {}
    if pair := _pair(finished, objectives):
        drawn["figures/pareto.html"] = plots.scatter([_point(record) for record in finished], *pair)
    if len(finished) < 2:
        return drawn
    study = as_study(records, space, objectives)
    for i, objective in enumerate(objectives):
        if len({record.metrics[objective.metric] for record in finished}) > 1:  # else there is nothing to explain
            drawn[f"figures/importance_{_file_name(objective)}.html"] = _importance(study, i, objective)
    first: dict[str, Any] = {"target": lambda trial: trial.values[0], "target_name": objectives[0].metric}
    drawn["figures/parallel_coordinates.html"] = optuna.visualization.plot_parallel_coordinate(study, **first)
    drawn["figures/history.html"] = optuna.visualization.plot_optimization_history(study, **first)
    return drawn


def as_study(records: Sequence[TrialRecord], space: Space, objectives: Sequence[Objective]) -> optuna.Study:
    """The finished trials as an in-memory Optuna study, whatever sessions they came from."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
    directions = [kinds[objective.mode == "max"] for objective in objectives]
    study = optuna.create_study(directions=directions)
    distributions = {item.name: item.distribution() for item in space}
    usable = sorted(ranked(records, objectives), key=lambda record: record.number)
    for record in usable:
        values = [record.metrics[objective.metric] for objective in objectives]
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE, params=record.values, distributions=distributions, values=values
            )
        )
    return study


def _importance(study: optuna.Study, index: int, objective: Objective) -> Any:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.visualization.plot_param_importances(
        study, evaluator=evaluator, target=lambda trial: trial.values[index], target_name=objective.metric
    )


def _pair(finished: Sequence[TrialRecord], objectives: Sequence[Objective]) -> tuple[str, str] | None:
    """Horizontal and vertical axis: size goes along the bottom where it is one of the two."""
    metrics = [objective.metric for objective in objectives]
    if len(metrics) == 1:
        metrics.append(SIZE)
    x, y = (metrics[1], metrics[0])
    both = finished and x != y and all(x in record.metrics for record in finished)
    return (x, y) if both else None


def _point(record: TrialRecord) -> dict[str, Any]:
    return {"variant": record.name, "scheme": record.values.get("scheme", "")} | record.metrics


def _file_name(objective: Objective) -> str:
    return objective.metric.replace("/", "_")
