"""Which run is continued: the newest of the same workflow and configuration that did not finish and is not alive.

A nested run is continued with its parent, even if it had finished: so none stands there twice.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from edgequant.errors import UserError
from edgequant.outputs import WITH_RUN_FOLDERS
from edgequant.tracking.lifetime.heartbeat import PROCESS_TAG, SILENT_S, TAG, close_runs, gives_signs, seconds_since
from edgequant.tracking.lifetime.process import parse_process, seen_alive
from edgequant.tracking.search import PARENT_TAG, client, search_runs

WHOLE = "training-checkpoint.json"  # in a training checkpoint, written last
TABLES = ("metrics.json", "layer_errors.json", "items")
MoreThan = tuple[str, int] | None  # a tag's name behind `edgequant.` and a number: a run that says less goes on too
_own: set[str] = set()  # runs that this process has begun, or goes on with


def belongs_here(run_id: str) -> None:
    """This process writes the run: it is not one to go on with."""
    _own.add(run_id)


def interrupted_run(workflow: str, digest: str, more_than: MoreThan) -> tuple[MlflowRun | None, str]:
    """The run to go on with, if there is one, and a line that says so, or why there is none.

    A process that cannot be seen from here is watched for half a minute first.

    Raises:
        UserError: the newest run that did not finish is still being written.
    """
    alike = search_runs(f"tags.`edgequant.workflow` = '{workflow}' and tags.`edgequant.config` = '{digest}'")
    open_runs = [run for run in alike if run.info.status != "FINISHED" or _has_fewer(run, more_than)]
    if not open_runs:
        last = f" (the last one, {alike[0].info.run_id}, is FINISHED)" if alike else ""
        return None, f"resume: no interrupted run of this configuration{last}; begins anew"
    found = open_runs[0]
    if found.info.status == "RUNNING":
        _check_gone(found)
    return found, f"resume: goes on with run {found.info.run_id} ({found.info.run_name}), which is {_state(found)}"


def child_to_continue(parent: str, tags: dict[str, str]) -> MlflowRun | None:
    """The oldest run of these tags under a parent that this process has not written itself."""
    wanted = [f"tags.`{name}` = '{value}'" for name, value in ({PARENT_TAG: parent} | tags).items()]
    runs = [run for run in search_runs(" and ".join(wanted)) if run.info.run_id not in _own]
    return runs[-1] if runs else None


def steps_kept(folder: Path, workflow: str) -> str:
    """What is left of a run on disk, in words, where its workflow keeps anything there."""
    if workflow not in WITH_RUN_FOLDERS:
        return ""
    if not folder.is_dir():
        return f"; none of its files are in {folder}"
    steps: dict[str, int] = {}
    for path in folder.rglob("checkpoint-*"):
        step = path.name.rpartition("-")[2]
        if step.isdigit() and (path / WHOLE).is_file():
            name = str(path.parent.relative_to(folder))
            steps[name] = max(int(step), steps.get(name, 0))
    return "".join(f"; {name} at step {step}" for name, step in sorted(steps.items()))


def forget_tables(run_id: str) -> None:
    """Remove tables that a run has filed and files again: MLflow adds rows behind those that are there."""
    place = get_artifact_repository(client().get_run(run_id).info.artifact_uri)
    for name in TABLES:
        with contextlib.suppress(Exception):  # not there, or of a store that removes nothing
            place.delete_artifacts(name)


def close_orphans(except_run: str | None) -> set[str]:
    """Mark runs as KILLED whose process is seen to be gone: nothing else ever would.

    Returns:
        Processes with open runs that cannot be seen from here.
    """
    runs = search_runs(f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '%'")
    processes = {run.data.tags[PROCESS_TAG] for run in runs if run.info.run_id != except_run}
    for process in processes:
        if seen_alive(process) is False:
            close_runs(process, but=except_run)
    return {process for process in processes if seen_alive(process) is None}


def _has_fewer(run: MlflowRun, more_than: MoreThan) -> bool:
    return more_than is not None and int(run.data.tags.get(f"edgequant.{more_than[0]}", more_than[1])) < more_than[1]


def _state(run: MlflowRun) -> str:
    return "RUNNING, but its process is gone" if run.info.status == "RUNNING" else str(run.info.status)


def _check_gone(run: MlflowRun) -> None:
    tags = run.data.tags
    process = tags.get(PROCESS_TAG, "")
    shown = parse_process(process) or "unknown"
    alive = seen_alive(process)
    if alive is None:
        print(
            f"resume: run {run.info.run_id} is RUNNING, by process {shown}, which cannot be seen from here: "
            f"waits {SILENT_S:.0f} s for a sign of life",
            flush=True,
        )
        alive = gives_signs(process)
        tags = client().get_run(run.info.run_id).data.tags
    if alive:
        raise UserError(
            f"run {run.info.run_id} of this configuration is still running (process {shown}, last sign of life "
            f"{seconds_since(tags.get(TAG, ''))} s ago); wait for it, stop it, or begin another without --resume true"
        )
