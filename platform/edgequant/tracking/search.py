"""Runs, found in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, ViewType
from mlflow.entities import Run as MlflowRun

from edgequant.errors import UserError
from edgequant.tracking.addresses import shown_store
from edgequant.tracking.pages import run_url
from edgequant.tracking.store import check_store

PARENT_TAG = "mlflow.parentRunId"
RUNS_AT_ONCE = 2000  # of a page: tens of thousands would be one answer of 100 MB


def client() -> mlflow.MlflowClient:
    """A client of the store that $MLFLOW_TRACKING_URI names (default: sqlite:///mlflow.db in the working directory).

    Raises:
        UserError: that store cannot be used.
    """
    check_store()
    return mlflow.MlflowClient()


def all_pages(search: Callable[..., Any], **wanted: Any) -> list[Any]:
    """What one of the client's searches finds, and not only its first page, of as few as 100."""
    found, token = list[Any](), None
    while page := search(**wanted, page_token=token):
        found += page
        token = page.token
        if not token:
            break
    return found


def search_runs(filter_string: str, experiments: list[str] | None = None) -> list[MlflowRun]:
    """Runs of the store that a filter finds, newest first."""
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in all_pages(client().search_experiments)]
    order = ["attributes.start_time DESC"]
    wanted = {"experiment_ids": experiments, "filter_string": filter_string, "run_view_type": ViewType.ACTIVE_ONLY}
    return all_pages(client().search_runs, **wanted, max_results=RUNS_AT_ONCE, order_by=order)


@dataclass(frozen=True)
class FinishedRun:
    """A run as found in the store; times are milliseconds since 1970."""

    id: str
    name: str
    workflow: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    start_time: int
    status: str
    experiment_id: str

    @property
    def url(self) -> str:
        return run_url(self.experiment_id, self.id)


def find_runs(
    *, workflow: str | None = None, experiment: str | None = None, parent: str | None = None
) -> list[FinishedRun]:
    """Runs of edgequant, newest first, in every experiment unless one is named.

    Raises:
        UserError: the experiment does not exist.
    """
    filters = [f"tags.`edgequant.workflow` = '{workflow}'"] if workflow else []
    filters += [f"tags.`{PARENT_TAG}` = '{parent}'"] if parent else []
    experiments = [_experiment_id(experiment)] if experiment else None
    return [_finished(run) for run in search_runs(" and ".join(filters), experiments)]


def deleted_run(run_id: str) -> str:
    """How a run that was deleted, alone or with its experiment, comes back; empty where there is none of the id."""
    try:
        run = client().get_run(run_id) if run_id else None
    except mlflow.exceptions.MlflowException:
        return ""
    if run is None:
        return ""
    experiment = client().get_experiment(run.info.experiment_id)
    stages = {run.info.lifecycle_stage, experiment.lifecycle_stage}
    return "" if stages == {LifecycleStage.ACTIVE} else restored(run)


def restored(run: MlflowRun) -> str:
    """How a deleted run comes back: with its experiment, where that was deleted."""
    experiment = client().get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        return f"restore its experiment {experiment.name!r} with `{command}`"
    return f"restore the run with `mlflow runs restore --run-id {run.info.run_id}`"


def _experiment_id(name: str) -> str:
    found = client().get_experiment_by_name(name)
    if found is None:
        known = ", ".join(sorted(experiment.name for experiment in all_pages(client().search_experiments)))
        raise UserError(f"experiment {name!r} not found in {shown_store()}; there are: {known}")
    return str(found.experiment_id)


def _finished(run: MlflowRun) -> FinishedRun:
    tags = dict(run.data.tags)
    return FinishedRun(
        id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        workflow=tags.get("edgequant.workflow", ""),
        tags=tags,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        start_time=run.info.start_time,
        status=run.info.status,
        experiment_id=run.info.experiment_id,
    )
