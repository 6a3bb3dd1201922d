"""Addresses of MLflow's pages, as version 3 routes them: without `workflowType` an experiment opens on GenAI's."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from urllib.parse import quote

import mlflow

from edgequant.tracking.addresses import ADDRESS, move_credentials, without_password
from edgequant.tracking.away.current import real_id

MACHINE_LEARNING = "workflowType=machine_learning"
DEFAULT_SERVER = "http://127.0.0.1:5000"  # of `mlflow ui`


def run_url(experiment_id: str, run_id: str) -> str:
    """Where the MLflow UI shows the run: the tracking server, or `mlflow ui` on its default port."""
    return f"{_server()}/#/experiments/{experiment_id}/runs/{real_id(run_id)}?{MACHINE_LEARNING}"


def runs_url(experiment_id: str, view: str | None = None) -> str:
    """The experiment's table of runs, with the columns of a saved view."""
    chosen = f"&viewStateShareKey={view}" if view else ""
    return f"{_server()}/#/experiments/{experiment_id}/runs?{MACHINE_LEARNING}{chosen}"


def compare_url(experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that puts parameters and metrics of these runs side by side."""
    runs, experiments = (quote(json.dumps(list(ids), separators=(",", ":"))) for ids in (run_ids, [experiment_id]))
    return f"{_server()}/#/compare-runs?runs={runs}&experiments={experiments}&{MACHINE_LEARNING}"


def version_url(name: str, version: str) -> str:
    """The page of one version of a registered model."""
    return f"{_server()}/#/models/{quote(name, safe='')}/versions/{version}?{MACHINE_LEARNING}"


def ui_command() -> str | None:
    """The command that serves the store in a browser; None when a tracking server does already."""
    uri = str(mlflow.get_tracking_uri())
    if _is_server(uri):
        return None
    address = shlex.quote(uri) if without_password(uri) == uri else f'"${ADDRESS}"'
    return f"mlflow ui --backend-store-uri {address}"


def _server() -> str:
    move_credentials()
    uri = str(mlflow.get_tracking_uri())
    return uri.rstrip("/") if _is_server(uri) else DEFAULT_SERVER


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))
