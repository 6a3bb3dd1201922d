"""Checkpoints filed as versions of a registered model, and fetched again."""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow.entities import LifecycleStage

from edgequant.errors import UserError
from edgequant.files import sha256_of
from edgequant.tracking.addresses import shown_store
from edgequant.tracking.runs import PARENT_TAG, client

CHECKPOINT, EVIDENCE = "checkpoint", "evidence.json"  # what a version's files are called in its run
EVIDENCE_TAG = "edgequant.evidence"


def register_checkpoint(
    folder: Path,
    name: str,
    *,
    tags: Mapping[str, str],
    about: Mapping[str, str] | None = None,
    description: str = "",
    evidence: Path | None = None,
) -> str:
    """File a checkpoint folder with the active run and register it as a new version of the model `name`.

    Args:
        about: of the registered model: `description`, and any tag; what a person has written there stays.
        description: of the version, Markdown.
        evidence: folder of files that go beside, or in place of, those of the checkpoint: the version's evidence.json
            and the manifest that lists it. The run keeps a copy of the first, and its SHA-256 as a parameter, which
            nobody can change through MLflow.

    Returns:
        The version, e.g. "3".
    """
    run_id = active_run_id()
    registry = client()
    mlflow.log_artifacts(str(folder), CHECKPOINT)
    digest = {}
    if evidence is not None:
        mlflow.log_artifacts(str(evidence), CHECKPOINT)
        digest = {EVIDENCE_TAG: sha256_of(evidence / EVIDENCE)}
    _describe_model(name, dict(about or {}))
    source = f"runs:/{run_id}/{CHECKPOINT}"
    filed = {**tags, **digest}
    version = registry.create_model_version(name, source, run_id, tags=filed, description=description or None).version
    if evidence is not None:
        mlflow.log_text((evidence / EVIDENCE).read_text(), _copy(name, str(version)))
        mlflow.log_param(_parameter(name, str(version)), digest[EVIDENCE_TAG])
    return str(version)


def active_run_id() -> str:
    """Of the run that is being written.

    Raises:
        RuntimeError: there is none.
    """
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("a checkpoint is registered by a run, and none is active")
    return str(run.info.run_id)


class FiledEvidence(NamedTuple):
    """What the run that registered a version knows of its evidence: the SHA-256, and the bytes of its own copy."""

    digest: str
    copy: bytes


def filed_evidence(name: str, version: str, run_id: str) -> FiledEvidence | None:
    """What a version's run wrote down when it registered it; None of a version that has no evidence.

    Raises:
        UserError: the run was deleted, or its copy is gone.
    """
    label = f"{name} version {version}"
    try:
        run = client().get_run(run_id)
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"{label}: run {run_id}, which registered it, cannot be read: {error}") from error
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise UserError(
            f"{label}: run {run_id}, which registered it, was deleted, and its files go with it; restore the run with "
            f"`mlflow runs restore --run-id {run_id}`"
        )
    digest = run.data.params.get(_parameter(name, version))
    if digest is None:
        return None
    return FiledEvidence(digest, download(f"runs:/{run_id}/{_copy(name, version)}").read_bytes())


def _parameter(name: str, version: str) -> str:
    return f"evidence.{re.sub('[^A-Za-z0-9_.-]', '_', name)}.{version}"


def _copy(name: str, version: str) -> str:
    return f"evidence/{re.sub('[^A-Za-z0-9_.-]', '_', name)}-v{version}.json"


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
