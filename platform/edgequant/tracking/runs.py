"""Runs of MLflow: begun, nested, ended with their status, resumed.

A workflow is one run; every model that it measures is a nested run. A workflow started while another one runs (the
pipeline) nests under it. A run ends FINISHED, FAILED (with `traceback.txt`) or KILLED; one whose process was killed
outright is closed by the next workflow on the same machine, or continued by `resume`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow.entities import Run as MlflowRun
from mlflow.entities import RunStatus, ViewType

from edgequant.errors import first_line
from edgequant.files import sha256_of_bytes
from edgequant.progress import heartbeat
from edgequant.tracking.environment import git_tags, log_environment
from edgequant.tracking.experiments import prepare_experiment
from edgequant.tracking.logging import describe_run, inherit, log_config, log_params, name_run
from edgequant.tracking.names import asked_for, headline_parameters, is_generated, run_name, short_name
from edgequant.tracking.pages import run_url
from edgequant.tracking.permissions import check_may_register
from edgequant.tracking.store import check_artifact_store, check_experiment, check_store
from edgequant.tracking.store_errors import asked_once, store_errors_told

EXPERIMENT = "edgequant"
PARENT_TAG = "mlflow.parentRunId"
SHOWN_UNDER_ITS_PARENT = {"mlflow.runType": "evaluation"}  # MLflow's table unfolds a run that has such children


@dataclass(frozen=True)
class Run:
    """A run that is being written. `resumed` is True when it continues an interrupted one; `asked` is what it was asked
    to do, in Markdown."""

    id: str
    experiment_id: str
    resumed: bool = False
    asked: str = ""

    @property
    def url(self) -> str:
        return run_url(self.experiment_id, self.id)


def client() -> mlflow.MlflowClient:
    """A client of the store that $MLFLOW_TRACKING_URI names (default: sqlite:///mlflow.db in the working directory).

    Raises:
        UserError: that store cannot be used.
    """
    check_store()
    return mlflow.MlflowClient()


def run_folder(workflow: str, run_id: str) -> Path:
    """Where a run keeps its files: outputs/<workflow>/<run id> in the working directory."""
    return Path("outputs").resolve() / workflow / run_id


@contextmanager
def workflow_run(
    workflow: str, config: Mapping[str, Any], *, experiment: str = EXPERIMENT, resume: bool = False
) -> Iterator[Run]:
    """One workflow, one run: logs the resolved configuration, the commit, the environment and system metrics.

    Args:
        workflow: name of the entry point; becomes the tag `edgequant.workflow` and begins the run's name.
        config: the resolved configuration (nested mappings and settings dataclasses allowed); filed as `cfg.*`
            parameters and config.yaml; model and scheme go into the run's name.
        experiment: MLflow experiment, unless `mlflow run` has chosen one already.
        resume: continue the newest interrupted run of the same workflow and configuration, if there is one.

    Raises:
        UserError: the store cannot be used, or the experiment was deleted; before the run exists.
        whatever the body raises, after the run was ended as FAILED with its traceback as an artifact.
    """
    config = {key: asdict(value) if is_dataclass(value) else value for key, value in config.items()}  # type: ignore[arg-type]
    digest = _config_digest(workflow, config)
    nested = mlflow.active_run() is not None
    name = run_name(workflow, config)
    if config.get("register") and not nested:
        check_may_register(short_name(config.get("model")))
    run, interrupted = _begin(workflow, name, digest, experiment, nested=nested, resume=resume)
    with _ended_with_its_status(nested), heartbeat(name):
        if is_generated(run.info.run_name or ""):
            name_run(name)
        mlflow.set_tags(_workflow_tags(workflow, digest))
        if interrupted is None:
            log_config(config)
        log_params(headline_parameters(config))
        asked = asked_for(workflow, config)
        describe_run(asked)
        log_environment()
        yield Run(run.info.run_id, run.info.experiment_id, resumed=interrupted is not None, asked=asked)


@contextmanager
def variant_run(
    variant: str, *, model: str, scheme: str, phase: str, parameters: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """A nested run for one measured model (`baseline`, `ptq`, `control`, `qat`, `finetuned`, ...).

    When the parent is being resumed, the child that it had begun for this variant and model is continued.

    Args:
        parameters: what tells it from the others beside model, scheme and variant: MLflow compares runs by parameters.
    """
    parent = mlflow.active_run()
    if parent is None:
        raise RuntimeError("variant_run needs a workflow_run around it")
    begun = _child_run(parent.info.run_id, variant, model, scheme)
    run = mlflow.start_run(run_id=begun, nested=True, run_name=None if begun else f"{variant} {model} {scheme}".strip())
    with _ended_with_its_status(nested=True):
        keys = {"variant": variant, "model": model, "scheme": scheme, "phase": phase}
        told = {f"edgequant.{key}": value for key, value in keys.items()}
        mlflow.set_tags(told | {"edgequant.process": this_process()} | SHOWN_UNDER_ITS_PARENT)
        inherit(parent.info.run_id)
        log_params({"model": model, "scheme": scheme, "variant": variant, **(parameters or {})})
        yield Run(run.info.run_id, run.info.experiment_id, resumed=begun is not None)


def _begin(
    workflow: str, name: str, digest: str, experiment: str, *, nested: bool, resume: bool
) -> tuple[mlflow.ActiveRun, str | None]:
    """The run, and the id of the interrupted one that it continues."""
    check_store()
    with store_errors_told():
        interrupted = _interrupted_run(workflow, digest) if resume else None
        if not nested:
            _close_orphans(except_run=interrupted)
            if "MLFLOW_RUN_ID" not in os.environ or interrupted:
                check_experiment(experiment)
                check_artifact_store(mlflow.set_experiment(experiment).artifact_location)
        run = _start(name, interrupted, nested)
        prepare_experiment(run.info.experiment_id)
        return run, interrupted


def _start(name: str, interrupted: str | None, nested: bool) -> mlflow.ActiveRun:
    if interrupted is None:
        return mlflow.start_run(
            run_name=None if _is_project_run(nested) else name, nested=nested, log_system_metrics=not nested
        )
    launched = os.environ.pop("MLFLOW_RUN_ID", None)  # `mlflow run` made a run of its own for this process
    if launched and launched != interrupted:
        client().set_tag(launched, "edgequant.resumed_run", interrupted)
    return mlflow.start_run(run_id=interrupted, nested=nested, log_system_metrics=not nested)


def _is_project_run(nested: bool) -> bool:
    return not nested and "MLFLOW_RUN_ID" in os.environ


@contextmanager
def _ended_with_its_status(nested: bool) -> Iterator[None]:
    """End the active run as FINISHED, FAILED or KILLED, whatever happens; SIGTERM counts as a kill."""
    restore = None if nested else _raise_on_sigterm()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        _end_without_masking(RunStatus.KILLED)
        raise
    except BaseException:
        _end_without_masking(RunStatus.FAILED, traceback.format_exc())
        raise
    else:
        mlflow.end_run()
    finally:
        if restore is not None:
            signal.signal(signal.SIGTERM, restore)


def _end_without_masking(status: Any, traceback_text: str = "") -> None:
    """End the active run; where that fails too (a server that is gone), the first error stays the one that is told."""
    try:
        with asked_once():
            if traceback_text:
                mlflow.log_text(traceback_text, "traceback.txt")
    except Exception as error:
        print(f"traceback.txt could not be filed with the run: {first_line(error)[:200]}", file=sys.stderr, flush=True)
    try:
        with asked_once():
            mlflow.end_run(RunStatus.to_string(status))
    except Exception as error:
        end = "the next workflow on this machine ends it, or --resume true goes on with it"
        print(f"the run could not be ended in its store: {first_line(error)[:200]}; {end}", file=sys.stderr, flush=True)


def _raise_on_sigterm() -> Any:
    if threading.current_thread() is not threading.main_thread():
        return None

    def stop(_number: int, _frame: Any) -> None:
        raise SystemExit(143)

    return signal.signal(signal.SIGTERM, stop)


def _workflow_tags(workflow: str, digest: str) -> dict[str, str]:
    tags = {"edgequant.workflow": workflow, "edgequant.config": digest, "edgequant.process": this_process()}
    return tags | git_tags()


def this_process() -> str:
    """This process, so that a later one can tell whether it still runs: host, process id, start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def is_alive(process: str) -> bool:
    """Whether a process, as `this_process` names it, still runs; one of another machine may."""
    host, pid, started = process.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    try:
        found = psutil.Process(int(pid))
        return abs(found.create_time() - float(started)) < 2 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _config_digest(workflow: str, config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key != "resume"}
    return sha256_of_bytes(workflow + json.dumps(kept, sort_keys=True, default=str))[:16]


def search_runs(filter_string: str, limit: int = 1000, experiments: list[str] | None = None) -> list[MlflowRun]:
    """Runs of the store that a filter finds, newest first."""
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    order = ["attributes.start_time DESC"]
    return list(client().search_runs(experiments, filter_string, ViewType.ACTIVE_ONLY, limit, order))


def _interrupted_run(workflow: str, digest: str) -> str | None:
    runs = search_runs(f"tags.`edgequant.workflow` = '{workflow}' and tags.`edgequant.config` = '{digest}'")
    unfinished = [run for run in runs if run.info.status != "FINISHED" and not _is_running(run)]
    return unfinished[0].info.run_id if unfinished else None


def _is_running(run: MlflowRun) -> bool:
    return run.info.status == "RUNNING" and is_alive(run.data.tags.get("edgequant.process", "::0"))


def _child_run(parent: str, variant: str, model: str, scheme: str) -> str | None:
    wanted = f"tags.`{PARENT_TAG}` = '{parent}' and tags.`edgequant.variant` = '{variant}'"
    for run in search_runs(wanted):
        tags = run.data.tags
        same = tags.get("edgequant.model") == model and tags.get("edgequant.scheme") == scheme
        if same and run.info.status != "FINISHED":
            return run.info.run_id
    return None


def _close_orphans(except_run: str | None) -> None:
    """Mark runs as KILLED whose process on this machine is gone: nothing else ever would."""
    for run in search_runs("attributes.status = 'RUNNING' and tags.`edgequant.process` LIKE '%'"):
        if run.info.run_id != except_run and not _is_running(run):
            client().set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))
