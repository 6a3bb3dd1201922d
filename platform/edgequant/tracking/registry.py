"""Checkpoints filed as versions of a registered model, and fetched again."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow.entities import LifecycleStage, RunData

from edgequant.disk.leftovers import Scratch
from edgequant.errors import UserError
from edgequant.files import sha256_of, sha256_of_bytes
from edgequant.tracking.addresses import shown_store
from edgequant.tracking.away.current import answered, kept_or_done
from edgequant.tracking.away.mirror import Mirror
from edgequant.tracking.away.patience import is_away
from edgequant.tracking.logging import REVISION
from edgequant.tracking.registration import EVIDENCE_TAG, Registration, copy_of, parameter_of
from edgequant.tracking.search import PARENT_TAG, client, restored

CHECKPOINT, EVIDENCE = "checkpoint", "evidence.json"  # what a version's files are called in its run
SAME = ("model", "scheme", "variant", "files")  # of the evidence of one checkpoint that is registered twice
UNFILED = "unfiled"  # a version whose tracking server is away


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

    The version that the run has of the same files, where it was killed behind its registration and goes on, stays the
    one: with the evidence that it has, verdict included, and with what the kill kept from being written.

    Args:
        about: of the registered model: `description`, and any tag; what a person has written there stays.
        description: of the version, Markdown.
        evidence: folder of files that go beside, or in place of, those of the checkpoint: the version's evidence.json
            and the manifest that lists it. The run keeps a copy of the first, and its SHA-256 as a parameter, which
            nobody can change through MLflow.

    Returns:
        The version, e.g. "3"; `unfiled` where the tracking server is away: it gets its number when that is back.
    """
    run_id = active_run_id()
    made = None if evidence is None else answered(lambda: _made_before(name, run_id, evidence), lambda _: False)
    if made:  # of a server that is away it is not known
        return kept_or_done(partial(made.file, again=True), {"register": asdict(made)}) or UNFILED
    place = answered(lambda: _free_place(run_id), lambda known: _unused_place(known, run_id))
    mlflow.log_artifacts(str(folder), place)
    filed = Registration(name, run_id, place, dict(tags), dict(about or {}), description)
    if evidence is not None:
        mlflow.log_artifacts(str(evidence), place)
        file = evidence / EVIDENCE
        filed = replace(filed, evidence=file.read_text(), digest=sha256_of(file))
    return kept_or_done(filed.file, {"register": asdict(filed)}) or UNFILED


def _made_before(name: str, run_id: str, evidence: Path) -> Registration | None:
    """The registration of the same files by the run, as far as it came; None where there is none that holds."""
    wanted = json.loads((evidence / EVIDENCE).read_text())
    for version in client().search_model_versions(f"run_id = '{run_id}'"):
        if version.name != name or EVIDENCE_TAG not in version.tags:
            continue
        place = str(version.source).rpartition("/")[2]
        text = _filed_text(f"{version.source}/{EVIDENCE}")
        digest = sha256_of_bytes(text)
        if digest != version.tags[EVIDENCE_TAG]:
            continue
        found, there = json.loads(text), {file.path for file in client().list_artifacts(run_id, place)}
        files = {f"{place}/{str(file).partition('/')[0]}" for file in wanted.get("files", ())}
        if files <= there and all(found.get(of) == wanted.get(of) for of in SAME):
            return Registration(name, run_id, place, evidence=text, digest=digest)
    return None


def _filed_text(uri: str) -> str:
    """What an artifact says; nothing where there is none, but not where a server that is away may have it."""
    try:
        return download(uri).read_text()
    except UserError as error:
        if error.__cause__ is not None and is_away(error.__cause__):
            raise error.__cause__ from error
        return ""


def _free_place(run_id: str) -> str:
    """Where no version of the run has its files."""
    versions = client().search_model_versions(f"run_id = '{run_id}'")
    return _not_in({str(version.source).rpartition("/")[2] for version in versions})


def _unused_place(known: Mirror, run_id: str) -> str:
    """The same while the server is away; of a run that goes on it is not known what it has."""
    files = known.files(run_id, None)
    return f"{CHECKPOINT}-{uuid.uuid4().hex[:8]}" if files is None else _not_in({path for path, _ in files})


def _not_in(taken: set[str]) -> str:
    numbered = (CHECKPOINT if number == 1 else f"{CHECKPOINT}-{number}" for number in itertools.count(1))
    return next(name for name in numbered if name not in taken)


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
            f"{label}: run {run_id}, which registered it, was deleted, and its files go with it; {restored(run)}"
        )
    digest = run.data.params.get(parameter_of(name, version))
    if digest is None:
        return None
    return FiledEvidence(digest, download(f"runs:/{run_id}/{copy_of(name, version)}").read_bytes())


def asked_settings() -> dict[str, str]:
    """Settings of the active run, or of the workflow around it, by their full names as text; `workflow` names it.

    Empty outside of a workflow.
    """
    for data in _runs_around():
        if settings := {key[4:]: str(value) for key, value in data.params.items() if key.startswith("cfg.")}:
            return settings | {"workflow": data.tags.get("edgequant.workflow", "")}
    return {}


def loaded_commit(repository: str) -> str | None:
    """Of which commit on the model hub the active run, or one around it, loaded a model; None where none did."""
    found = (data.params.get(f"{REVISION}{repository}") for data in _runs_around())
    return next(filter(None, found), None)


def _runs_around() -> Iterator[RunData]:
    """What the active run has, then those that it is a part of."""
    run = mlflow.active_run()
    run_id = run.info.run_id if run is not None else None
    while run_id is not None:
        data = client().get_run(run_id).data
        yield data
        run_id = data.tags.get(PARENT_TAG)


@functools.cache
def _downloads() -> Scratch:
    """Where this process puts what it fetches; gone when it ends."""
    return Scratch()


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
