"""Runs of MLflow: begun, nested, resumed; `lifetime` ends them.

A workflow is one run; every model that it measures is a nested run. A workflow started while another one runs (the
pipeline) nests under it. A run ends FINISHED, FAILED (with `traceback.txt`) or KILLED; one whose process was killed
outright is closed by the next workflow on the same machine, or continued by `resume`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow.tracking import fluent

from edgequant import interruption
from edgequant.files import sha256_of_bytes
from edgequant.outputs import Place
from edgequant.progress import heartbeat
from edgequant.tracking.away import current
from edgequant.tracking.environment import git_tags, log_environment
from edgequant.tracking.experiments import prepare_experiment
from edgequant.tracking.lifetime import reads as places_read
from edgequant.tracking.lifetime.ending import end_own_runs, ended_with_its_status
from edgequant.tracking.lifetime.heartbeat import PROCESS_TAG, TAG, beating, sign
from edgequant.tracking.lifetime.process import this_process
from edgequant.tracking.lifetime.resumption import (
    MoreThan,
    belongs_here,
    child_to_continue,
    close_orphans,
    forget_tables,
    interrupted_run,
    steps_kept,
)
from edgequant.tracking.logging import describe_run, inherit, log_config, log_params, name_run
from edgequant.tracking.names import asked_for, headline_parameters, is_generated, run_name, short_name
from edgequant.tracking.pages import run_url
from edgequant.tracking.permissions import check_may_register, registered_model
from edgequant.tracking.search import client
from edgequant.tracking.store import begin_files, check_artifact_store, check_experiment, check_store
from edgequant.tracking.store_errors import store_errors_told

EXPERIMENT = "edgequant"
LAUNCHED = "MLFLOW_RUN_ID"  # in the environment: the run that `mlflow run` has made for this process
SHOWN_UNDER_ITS_PARENT = {"mlflow.runType": "evaluation"}  # MLflow's table unfolds a run that has such children
UNLIKE = ("resume", "models_at_once")  # settings that change no result: a run goes on under others
_continued: set[str] = set()  # runs with which this process goes on
_joined: set[str] = set()  # runs of another process, below which this one writes


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


def run_folder(workflow: str, run_id: str) -> Path:
    """Where a run keeps its files: outputs/<workflow>/<run id> in the working directory."""
    return Path("outputs").resolve() / workflow / run_id


@contextmanager
@interruption.uninterrupted
def workflow_run(
    workflow: str,
    config: Mapping[str, Any],
    reads: Sequence[Place] = (),
    *,
    experiment: str = EXPERIMENT,
    resume: bool = False,
    grows: tuple[str, ...] = (),
    registers: Sequence[str] = (),
) -> Iterator[Run]:
    """One workflow, one run: logs the resolved configuration, the commit, the environment and system metrics.

    Args:
        workflow: name of the entry point; becomes the tag `edgequant.workflow` and begins the run's name.
        config: the resolved configuration (nested mappings and settings dataclasses allowed); filed as `cfg.*`
            parameters and config.yaml; model and scheme go into the run's name.
        reads: what it reads from this machine's disk; a run that is resumed must have read the same.
        experiment: MLflow experiment, unless `mlflow run` has chosen one already.
        resume: continue the newest interrupted run of the same workflow and configuration, if there is one; says which,
            or that there is none. A workflow nested in a run that is continued goes on with its own there.
        grows: names of options that a resumed run may have others of. The first is a number, such as trials: a run that
            ended with fewer, as its tag `edgequant.trials` says, goes on too.
        registers: short names of the models that it registers versions of, where it is asked to; none: as `model` of
            its configuration says it.

    Raises:
        UserError: the store cannot be used, the experiment was deleted, the run to continue is still being written or
            has read something else; before the run exists.
        whatever the body raises, after the run was ended as FAILED with its traceback as an artifact.
    """
    config = {key: asdict(value) if is_dataclass(value) else value for key, value in config.items()}  # type: ignore[arg-type]
    digest = _config_digest(workflow, {key: value for key, value in config.items() if key not in grows})
    more_than = (grows[0], int(config[grows[0]])) if grows else None
    active = mlflow.active_run()
    nested, gives_signs = active is not None, active is None or active.info.run_id in _joined
    name = run_name(workflow, config)
    if config.get("register") and not nested:
        model = config.get("model")
        for each in registers or [registered_model(str(model)) or short_name(model)]:
            check_may_register(each)
    with contextlib.ExitStack() as around:
        if not nested:
            around.enter_context(interruption.raised())
        begun = _begin(workflow, name, digest, experiment, nested=nested, resume=resume, more=more_than, reads=reads)
        run = begun.run
        if not nested:
            begin_files(run_folder(workflow, run.info.run_id))
            around.enter_context(current.settled())
        around.enter_context(ended_with_its_status(run.info.run_id, *begun.launched))
        if gives_signs:
            around.enter_context(beating(run.info.run_id, this_process(), begun.unseen))
        around.enter_context(heartbeat(name))
        if is_generated(run.info.run_name or ""):
            name_run(name)
        log_config(config)
        log_params(headline_parameters(config))
        asked = asked_for(workflow, config)
        describe_run(asked)
        log_environment()
        yield Run(run.info.run_id, run.info.experiment_id, resumed=begun.goes_on, asked=asked)


@contextmanager
@interruption.uninterrupted
def variant_run(
    variant: str, *, model: str, scheme: str, phase: str, parameters: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """A nested run for one measured model (`baseline`, `ptq`, `control`, `qat`, `finetuned`, ...).

    When the parent is being resumed, the child that it had begun, or finished, for this variant and model is continued.

    Args:
        parameters: what tells it from the others beside model, scheme and variant: MLflow compares runs by parameters.
    """
    parent = mlflow.active_run()
    if parent is None:
        raise RuntimeError("variant_run needs a workflow_run around it")
    told = {f"edgequant.{key}": value for key, value in {"variant": variant, "model": model, "scheme": scheme}.items()}
    begun = child_to_continue(parent.info.run_id, told) if parent.info.run_id in _continued else None
    tags = told | {"edgequant.phase": phase, PROCESS_TAG: this_process()} | SHOWN_UNDER_ITS_PARENT
    name = f"{variant} {model} {scheme}".strip()
    run = _start(name, tags, continued=None if begun is None else begun.info.run_id, nested=True)
    with ended_with_its_status(run.info.run_id):
        inherit(parent.info.run_id)
        log_params({"model": model, "scheme": scheme, "variant": variant, **(parameters or {})})
        yield Run(run.info.run_id, run.info.experiment_id, resumed=begun is not None)


@contextmanager
def joined(run_id: str, folder: Path, *, store: str, resumed: bool) -> Iterator[None]:
    """In another process than the one that began a run and will end it: workflows nest under it here too.

    Args:
        folder: receives what has to wait for a server that is away; it is filed by the end, or told.
        store: its address.
        resumed: that process goes on with the run: workflows go on with theirs below it.
    """
    mlflow.set_tracking_uri(store)
    run = client().get_run(run_id)
    mlflow.set_experiment(experiment_id=run.info.experiment_id)
    begin_files(folder)
    begun = fluent._active_run_stack.get()
    begun.append(mlflow.ActiveRun(run))  # start_run would end it with this process
    belongs_here(run_id)
    _joined.add(run_id)
    if resumed:
        _continued.add(run_id)
    try:
        with current.settled():
            yield
    finally:
        begun.pop()


class Begun(NamedTuple):
    """A run that has begun; `launched` are ids of runs that only stand for it, `unseen` processes of others."""

    run: mlflow.ActiveRun
    goes_on: bool
    launched: tuple[str, ...]
    unseen: set[str]


def _begin(
    workflow: str,
    name: str,
    digest: str,
    experiment: str,
    *,
    nested: bool,
    resume: bool,
    more: MoreThan,
    reads: Sequence[Place],
) -> Begun:
    check_store()
    with store_errors_told():
        now = places_read.digests(reads)
        tags = {"edgequant.workflow": workflow, "edgequant.config": digest, PROCESS_TAG: this_process(), TAG: sign()}
        tags |= git_tags() | {places_read.TAG: json.dumps(now)}
        continued, told = _continued_run(workflow, digest, nested=nested, resume=resume, more=more)
        if continued is not None:
            places_read.check_unchanged(continued.info.run_id, continued.data.tags, reads, now)
        print(told, end="", flush=True)
        run_id = None if continued is None else continued.info.run_id
        unseen = set() if nested else close_orphans(except_run=run_id)
        if not nested and (LAUNCHED not in os.environ or run_id):
            check_experiment(experiment)
            check_artifact_store(mlflow.set_experiment(experiment).artifact_location)
        launched = _launched_beside(run_id, tags)
        run = _start(name, tags, continued=run_id, nested=nested)
        if not nested:
            interruption.note_begin(run.info.run_id)
            interruption.at_end(end_own_runs)
        prepare_experiment(run.info.experiment_id)
        return Begun(run, run_id is not None, launched, unseen)


def _continued_run(
    workflow: str, digest: str, *, nested: bool, resume: bool, more: MoreThan
) -> tuple[mlflow.entities.Run | None, str]:
    """The run to go on with, and the line that says so, or that there is none."""
    if nested and (active := mlflow.active_run()):
        parent = active.info.run_id
        of_it = {"edgequant.workflow": workflow, "edgequant.config": digest}
        return child_to_continue(parent, of_it) if parent in _continued else None, ""
    if not resume:
        return None, ""
    found, told = interrupted_run(workflow, digest, more)
    kept = "" if found is None else steps_kept(run_folder(workflow, found.info.run_id), workflow)
    return found, f"{told}{kept}\n"


def _launched_beside(continued: str | None, tags: Mapping[str, str]) -> tuple[str, ...]:
    """The run that `mlflow run` made for this process, where that goes on with another: it ends as that does."""
    if continued is None or not (launched := os.environ.pop(LAUNCHED, None)) or launched == continued:
        return ()
    for name, value in {"edgequant.resumed_run": continued, PROCESS_TAG: tags[PROCESS_TAG]}.items():
        client().set_tag(launched, name, value)
    return (launched,)


def _start(name: str, tags: Mapping[str, str], *, continued: str | None, nested: bool) -> mlflow.ActiveRun:
    """A run with its tags from its first moment on, which say whose it is."""
    is_projects = not nested and LAUNCHED in os.environ
    run = mlflow.start_run(
        run_id=continued, nested=nested, tags=dict(tags), log_system_metrics=not nested,
        run_name=name if continued is None and not is_projects else None,
    )  # fmt: skip
    belongs_here(run.info.run_id)
    if continued is not None:
        _continued.add(continued)
        forget_tables(continued)
    return run


def _config_digest(workflow: str, config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in UNLIKE}
    return sha256_of_bytes(workflow + json.dumps(kept, sort_keys=True, default=str))[:16]
