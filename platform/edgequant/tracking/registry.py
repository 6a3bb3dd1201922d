"""Checkpoints filed as versions of a registered model, and fetched again."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow

from edgequant.errors import UserError
from edgequant.tracking.addresses import shown_store
from edgequant.tracking.runs import PARENT_TAG, client


def register_checkpoint(
    folder: Path,
    name: str,
    *,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    about: Mapping[str, str] | None = None,
    description: str = "",
) -> str:
    """File a checkpoint folder with the active run and register it as a new version of the model `name`.

    The metrics are version tags as well (open-source model versions carry no metrics), so that gates and people can
    read them without the run.

    Args:
        about: of the registered model: `description`, and any tag; what a person has written there stays.
        description: of the version, Markdown.

    Returns:
        The version, e.g. "3".
    """
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("register_checkpoint needs an active run")
    mlflow.log_artifacts(str(folder), "checkpoint")
    registry = client()
    _describe_model(name, dict(about or {}))
    filed = {key: f"{value:.10g}" for key, value in metrics.items()} | dict(tags)
    source = f"runs:/{run.info.run_id}/checkpoint"
    version = registry.create_model_version(name, source, run.info.run_id, tags=filed, description=description or None)
    return str(version.version)


def _describe_model(name: str, about: dict[str, str]) -> None:
    registry, description = client(), about.pop("description", "")
    found = registry.search_registered_models(f"name = '{name}'")
    if not found:
        registry.create_registered_model(name, tags=about, description=description or None)
        return
    if description and not found[0].description:
        registry.update_registered_model(name, description)
    for key, value in about.items():
        if key not in found[0].tags:
            registry.set_registered_model_tag(name, key, value)


def asked_model() -> str | None:
    """The model that the active run, or the workflow around it, was asked to work on, as it was named; None outside."""
    run = mlflow.active_run()
    run_id = run.info.run_id if run is not None else None
    while run_id is not None:
        data = client().get_run(run_id).data
        if "cfg.model" in data.params:
            return str(data.params["cfg.model"])
        run_id = data.tags.get(PARENT_TAG)
    return None


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
        where = shown_store()
        raise UserError(f"{uri} could not be fetched from {where}: {error}; check the name in the MLflow UI") from error
