"""What a search looks like: its trade-off, its history, and which hyperparameters mattered."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from edgequant_tune.objectives import Constraint, Objective
from edgequant_tune.pictures.parallel import parallel_coordinates
from edgequant_tune.pictures.pareto import on_test_data, pareto
from edgequant_tune.space.hyperparameter import Space, canonical
from edgequant_tune.trial_records import TrialRecord, ranked

SIZE = "size/checkpoint_gb"


def figures(
    records: Sequence[TrialRecord],
    space: Space,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
) -> Mapping[str, Any]:
    """Plotly figures by artifact name; those that need more finished trials than there are, are left out.

    `pareto` plots two objectives, or the one objective against what a constraint bounds, else the checkpoint's size;
    `constraint` the first objective against what is bounded, where no axis of that shows it; `importance` is fANOVA
    (Hutter et al. 2014) of each objective; `parallel_coordinates` has all hyperparameters, objectives and constraints;
    `history` shows the first objective, `hypervolume` what several dominate together.
    """
    finished = ranked(records, objectives)
    drawn: dict[str, Any] = {}
    if pair := _pair([record.metrics for record in finished], objectives, constraints):
        drawn["figures/pareto.html"] = pareto(finished, *pair, constraints)
        if unseen := _unseen(finished, pair, constraints):
            drawn["figures/constraint.html"] = pareto(finished, unseen, objectives[0].metric, constraints)
    if len(finished) < 2:
        return drawn
    study = as_study(records, space, objectives, constraints)
    for i, objective in enumerate(objectives):
        if len({record.metrics[objective.metric] for record in finished}) > 1:  # else there is nothing to explain
            drawn[f"figures/importance_{_file_name(objective)}.html"] = _importance(study, i, objective)
    bounds = [constraint.metric for constraint in constraints]
    drawn["figures/parallel_coordinates.html"] = parallel_coordinates(finished, space, objectives, bounds)
    first: dict[str, Any] = {"target": lambda trial: trial.values[0], "target_name": objectives[0].metric}
    numbers = sorted(record.number for record in finished)
    drawn["figures/history.html"] = _numbered(optuna.visualization.plot_optimization_history(study, **first), numbers)
    if len(objectives) > 1:
        drawn["figures/hypervolume.html"] = _numbered(_hypervolume(study), numbers)
    return drawn


def front_figure(
    rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> Mapping[str, Any]:
    """`front_on_test_data`: what was measured in full, by the metrics of `pareto`; nothing where there is no such pair.

    The model as it came is left out: a floating-point model is far from all others.
    """
    made = [dict(row) for row in rows if row["variant"] != "baseline"]
    pair = _pair(made, objectives, constraints)
    return {"figures/front_on_test_data.html": on_test_data(made, *pair, constraints)} if pair else {}


def as_study(
    records: Sequence[TrialRecord],
    space: Space,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint] = (),
) -> optuna.Study:
    """The finished trials as an in-memory Optuna study, whatever sessions they came from.

    A hyperparameter that does not count has the middle of its range.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
    directions = [kinds[objective.mode == "max"] for objective in objectives]
    study = optuna.create_study(directions=directions)
    distributions = {item.name: item.distribution() for item in space}
    usable = sorted(ranked(records, objectives), key=lambda record: record.number)
    for record in usable:
        values = [record.metrics[objective.metric] for objective in objectives]
        given = {item.name: record.values.get(item.name, item.at(0.5)) for item in space}
        excesses = [constraint.signed_excess(record.metrics) for constraint in constraints]
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE, params=canonical(space, given), distributions=distributions, values=values,
                system_attrs={"constraints": excesses} if excesses else None,
            )
        )  # fmt: skip
    return study


def _importance(study: optuna.Study, index: int, objective: Objective) -> Any:
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.visualization.plot_param_importances(
        study, evaluator=evaluator, target=lambda trial: trial.values[index], target_name=objective.metric
    )


def _numbered(figure: Any, numbers: Sequence[int]) -> Any:
    """With our numbers of the trials, of which Optuna knows those that finished and counts them from 0."""
    for trace in figure.data:
        trace.x = [numbers[int(at)] for at in trace.x]
    return figure


def _hypervolume(study: optuna.Study) -> Any:
    """By trial, what the trials so far dominate, up to the worst value of each objective."""
    costs = list(zip(*(trial.values for trial in study.trials), strict=True))
    worst = [
        max(values) if direction is StudyDirection.MINIMIZE else min(values)
        for values, direction in zip(costs, study.directions, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.visualization.plot_hypervolume_history(study, worst)


def _pair(
    rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective], constraints: Sequence[Constraint]
) -> tuple[str, str] | None:
    """Horizontal and vertical axis: what is traded against the first objective goes along the bottom."""
    first = objectives[0].metric
    others = [*(objective.metric for objective in objectives[1:]), *(one.metric for one in constraints), SIZE]
    for x in others:
        if x != first and rows and all(name in row for row in rows for name in (x, first)):
            return x, first
    return None


def _unseen(finished: Sequence[TrialRecord], pair: tuple[str, str], constraints: Sequence[Constraint]) -> str | None:
    """What the first constraint bounds, where none of them bounds an axis of the other figure."""
    bounded = [one.metric for one in constraints if all(one.metric in record.metrics for record in finished)]
    return bounded[0] if bounded and not {*pair} & {*bounded} else None


def _file_name(objective: Objective) -> str:
    return objective.metric.replace("/", "_")
