"""What earlier searches of the same model came to, as the searcher of a new one may learn of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from edgequant import models, tracking
from edgequant.errors import UserError, first_line
from edgequant_tune.objectives import Objective
from edgequant_tune.trial_records import TrialRecord

# What decides which number a trial of given hyperparameters comes to; where one differs, earlier trials say little.
MEASURED_BY = ("method", "dataset", "evaluation.limit", "evaluation.seed", "evaluation.window")
SPLIT_TAG = "edgequant.split"  # of a trial's run
KNOWN = ("trial", "status", "step", "seconds", "error")  # columns of trials.json that are no metric


def earlier_trials(
    runs: str, config: Mapping[str, Any], searched: Sequence[str], objectives: Sequence[Objective], scored_on: str
) -> list[TrialRecord]:
    """Finished trials of other searches, with the metrics that this one optimises.

    Args:
        runs: ids of their runs, separated by commas.
        config: this search's resolved configuration.
        searched: names of its hyperparameters.
        scored_on: what its trials are scored on, as `told_splits` says it.

    Raises:
        UserError: a run is none of a search, is of another model, or measured something else.
    """
    given = [run.strip() for run in runs.split(",")]
    found = [record for run in given for record in _trials_of(run, config, searched, objectives)]
    for run in given:
        _check_split(run, scored_on)
    # numbered anew: two searches count from one each
    return [
        TrialRecord(**(vars(record) | {"number": i + 1, "id": f"earlier {i + 1}"})) for i, record in enumerate(found)
    ]


def _trials_of(
    run_id: str, config: Mapping[str, Any], searched: Sequence[str], objectives: Sequence[Objective]
) -> list[TrialRecord]:
    named = f"warm_start {run_id!r}"
    try:
        run = tracking.client().get_run(run_id)
        table = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/trials.json"))
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        finished = [row for row in rows if row["status"] == "finished"]
    except (MlflowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{named} must be the id of a search's run in this store: {first_line(error)}") from error
    _check_same(named, run.data.params, tracking.flatten(config), searched)
    metrics = [objective.metric for objective in objectives]
    usable = [row for row in finished if all(isinstance(row.get(name), int | float) for name in metrics)]
    if not usable:
        raise UserError(f"{named} has no finished trial with {' and '.join(metrics)}; name another search")
    return [_record(row, searched) for row in usable]


def _check_split(run: str, here: str) -> None:
    tags = (trial.tags.get(SPLIT_TAG) for trial in tracking.find_runs(parent=run))
    there = next((tag for tag in tags if tag), here)
    if there != here:
        raise UserError(
            f"warm_start {run!r} was scored on {there}, this search's trials are on {here}: their figures cannot be "
            "compared; give the same data, or leave warm_start out"
        )


def _check_same(named: str, there: Mapping[str, str], here: Mapping[str, Any], searched: Sequence[str]) -> None:
    theirs, ours = there.get("cfg.model", ""), str(here.get("model"))
    if theirs != ours and models.resolve(theirs).name != models.resolve(ours).name:
        raise UserError(f"{named} is a search of model {theirs!r}, not of {ours!r}; name one of the same model")
    fixed = (*MEASURED_BY, *(name for name in ("scheme",) if name not in searched))
    for name in fixed:
        if f"cfg.{name}" in there and name in here and there[f"cfg.{name}"] != str(here[name]):
            raise UserError(
                f"{named} was measured with {name} {there[f'cfg.{name}']}, this search is with {here[name]}: their "
                "trials cannot be compared; use the same, or leave warm_start out"
            )


def _record(row: Mapping[str, Any], searched: Sequence[str]) -> TrialRecord:
    metrics = {
        name: float(value)
        for name, value in row.items()
        if name not in (*KNOWN, *searched) and isinstance(value, int | float) and not isinstance(value, bool)
    }
    values = {name: row[name] for name in searched if row.get(name) is not None}
    return TrialRecord(number=0, id="", values=values, status="finished", step=row.get("step"), metrics=metrics)
