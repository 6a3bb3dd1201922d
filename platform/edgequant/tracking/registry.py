"""Checkpoints filed as versions of a registered model, and fetched again."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow

from edgequant.errors import UserError
from edgequant.tracking.runs import client


def register_checkpoint(folder: Path, name: str, *, metrics: Mapping[str, float], tags: Mapping[str, str]) -> str:
    """File a checkpoint folder with the active run and register it as a new version of the model `name`.

    The metrics are version tags as well (open-source model versions carry no metrics), so that gates and people can
    read them without the run.

    Returns:
        The version, e.g. "3".
    """
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("register_checkpoint needs an active run")
    mlflow.log_artifacts(str(folder), "checkpoint")
    registry = client()
    if not registry.search_registered_models(f"name = '{name}'"):
        registry.create_registered_model(name)
    filed = {key: f"{value:.10g}" for key, value in metrics.items()} | dict(tags)
    source = f"runs:/{run.info.run_id}/checkpoint"
    return str(registry.create_model_version(name, source, run.info.run_id, tags=filed).version)


@functools.cache
def _downloads() -> tempfile.TemporaryDirectory[str]:
    """Where this process puts what it fetches; gone when it ends."""
    return tempfile.TemporaryDirectory(prefix="edgequant-")


def download(uri: str) -> Path:
    """Fetch runs:/<id>/<path> or models:/<name>/<version or @alias> to a folder that lasts as long as the process.

    Raises:
        UserError: nothing is there.
    """
    target = tempfile.mkdtemp(dir=_downloads().name)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))
    except (mlflow.exceptions.MlflowException, OSError) as error:
        where = mlflow.get_tracking_uri()
        raise UserError(f"{uri} could not be fetched from {where}: {error}; check the name in the MLflow UI") from error
