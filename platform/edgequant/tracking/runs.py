"""The one place that talks to MLflow tracking: runs, metrics, tables, data-set inputs, checkpoints.

A workflow is one run; every model that it measures is a nested run. A workflow started while another one runs (the
pipeline) nests under it. A run ends FINISHED, FAILED (with `traceback.txt`) or KILLED; one whose process was killed
outright is closed by the next workflow on the same machine, or continued by `resume`.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import signal
import socket
import subprocess
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import psutil
import yaml
from mlflow.entities import Run as MlflowRun
from mlflow.entities import RunStatus, ViewType

from edgequant.errors import UserError
from edgequant.files import sha256_of_bytes

EXPERIMENT = "edgequant"
PACKAGES = (
    "torch",
    "transformers",
    "mlflow",
    "ray",
    "peft",
    "bitsandbytes",
    "datasets",
    "optuna",
    "numpy",
    "edgequant",
)
PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class Run:
    """A run that is being written. `resumed` is True when it continues an interrupted one."""

    id: str
    experiment_id: str
    resumed: bool = False

    @property
    def url(self) -> str:
        return run_url(self.experiment_id, self.id)


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


def client() -> mlflow.MlflowClient:
    """A client of the store that $MLFLOW_TRACKING_URI names (default: sqlite:///mlflow.db in the working directory)."""
    return mlflow.MlflowClient()


def tracking_uri() -> str:
    """The store's address, without opening it: a client would make the database of an sqlite store."""
    return str(mlflow.get_tracking_uri())


def run_url(experiment_id: str, run_id: str) -> str:
    """Where the MLflow UI shows the run: the tracking server, or `mlflow ui` on its default port."""
    uri = mlflow.get_tracking_uri()
    base = uri.rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"


def ui_command() -> str | None:
    """The command that serves the store in a browser; None when a tracking server does already."""
    uri = mlflow.get_tracking_uri()
    return None if uri.startswith(("http://", "https://")) else f"mlflow ui --backend-store-uri {uri}"


def run_folder(workflow: str, run_id: str) -> Path:
    """Where a run keeps its files: outputs/<workflow>/<run id> in the working directory."""
    return Path("outputs").resolve() / workflow / run_id


# ---------------------------------------------------------------------------------------------------------------- runs


@contextmanager
def workflow_run(
    workflow: str, config: Mapping[str, Any], *, experiment: str = EXPERIMENT, resume: bool = False
) -> Iterator[Run]:
    """One workflow, one run: logs the resolved configuration, the commit, the environment and system metrics.

    Args:
        workflow: name of the entry point; becomes the tag `edgequant.workflow` and the run's name.
        config: the resolved configuration (nested mappings and settings dataclasses allowed); filed as `cfg.*`
            parameters and config.yaml.
        experiment: MLflow experiment, unless `mlflow run` has chosen one already.
        resume: continue the newest interrupted run of the same workflow and configuration, if there is one.

    Raises:
        whatever the body raises, after the run was ended as FAILED with its traceback as an artifact.
    """
    config = {key: asdict(value) if is_dataclass(value) else value for key, value in config.items()}  # type: ignore[arg-type]
    digest = _config_digest(workflow, config)
    nested = mlflow.active_run() is not None
    interrupted = _interrupted_run(workflow, digest) if resume else None
    if not nested:
        _close_orphans(except_run=interrupted)
        if "MLFLOW_RUN_ID" not in os.environ or interrupted:
            mlflow.set_experiment(experiment)
    run = _start(workflow, interrupted, nested)
    with _ended_with_its_status(nested):
        mlflow.set_tags(_workflow_tags(workflow, digest))
        if interrupted is None:
            _log_config(config)
        _log_environment()
        yield Run(run.info.run_id, run.info.experiment_id, resumed=interrupted is not None)


@contextmanager
def variant_run(variant: str, *, model: str, scheme: str, phase: str) -> Iterator[Run]:
    """A nested run for one measured model (`baseline`, `ptq`, `control`, `qat`, `finetuned`, ...).

    When the parent is being resumed, the child that it had begun for this variant and model is continued.
    """
    parent = mlflow.active_run()
    if parent is None:
        raise RuntimeError("variant_run needs a workflow_run around it")
    begun = _child_run(parent.info.run_id, variant, model, scheme)
    run = mlflow.start_run(run_id=begun, nested=True, run_name=None if begun else f"{variant} {model} {scheme}".strip())
    with _ended_with_its_status(nested=True):
        keys = {"variant": variant, "model": model, "scheme": scheme, "phase": phase}
        mlflow.set_tags({f"edgequant.{key}": value for key, value in keys.items()} | {"edgequant.process": _process()})
        yield Run(run.info.run_id, run.info.experiment_id, resumed=begun is not None)


def _start(workflow: str, interrupted: str | None, nested: bool) -> mlflow.ActiveRun:
    if interrupted is None:
        return mlflow.start_run(
            run_name=None if _is_project_run(nested) else workflow, nested=nested, log_system_metrics=not nested
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
        mlflow.end_run(RunStatus.to_string(RunStatus.KILLED))
        raise
    except BaseException:
        _without_masking(mlflow.log_text, traceback.format_exc(), "traceback.txt")
        mlflow.end_run(RunStatus.to_string(RunStatus.FAILED))
        raise
    else:
        mlflow.end_run()
    finally:
        if restore is not None:
            signal.signal(signal.SIGTERM, restore)


def _without_masking(function: Any, *arguments: Any) -> None:
    """Call `function`; if it fails too (a store that is gone), the first error stays the one that is reported."""
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()


def _raise_on_sigterm() -> Any:
    if threading.current_thread() is not threading.main_thread():
        return None

    def stop(_number: int, _frame: Any) -> None:
        raise SystemExit(143)

    return signal.signal(signal.SIGTERM, stop)


def _workflow_tags(workflow: str, digest: str) -> dict[str, str]:
    tags = {"edgequant.workflow": workflow, "edgequant.config": digest, "edgequant.process": _process()}
    return tags | _git_tags()


def _process() -> str:
    """This process, so that a later one can tell whether it still runs: host, process id, start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def _is_alive(process: str) -> bool:
    host, pid, started = process.rsplit(":", 2)
    if host != socket.gethostname():
        return True  # not ours to judge
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    except psutil.Error:
        return False


def _config_digest(workflow: str, config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key != "resume"}
    return sha256_of_bytes(workflow + json.dumps(kept, sort_keys=True, default=str))[:16]


def _search(filter_string: str, limit: int = 1000, experiments: list[str] | None = None) -> list[MlflowRun]:
    if experiments is None:
        experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    order = ["attributes.start_time DESC"]
    return list(client().search_runs(experiments, filter_string, ViewType.ACTIVE_ONLY, limit, order))


def _interrupted_run(workflow: str, digest: str) -> str | None:
    runs = _search(f"tags.`edgequant.workflow` = '{workflow}' and tags.`edgequant.config` = '{digest}'")
    unfinished = [run for run in runs if run.info.status != "FINISHED" and not _is_running(run)]
    return unfinished[0].info.run_id if unfinished else None


def _is_running(run: MlflowRun) -> bool:
    return run.info.status == "RUNNING" and _is_alive(run.data.tags.get("edgequant.process", "::0"))


def _child_run(parent: str, variant: str, model: str, scheme: str) -> str | None:
    wanted = f"tags.`{PARENT_TAG}` = '{parent}' and tags.`edgequant.variant` = '{variant}'"
    for run in _search(wanted):
        tags = run.data.tags
        same = tags.get("edgequant.model") == model and tags.get("edgequant.scheme") == scheme
        if same and run.info.status != "FINISHED":
            return run.info.run_id
    return None


def _close_orphans(except_run: str | None) -> None:
    """Mark runs as KILLED whose process on this machine is gone: nothing else ever would."""
    for run in _search("attributes.status = 'RUNNING' and tags.`edgequant.process` LIKE '%'"):
        if run.info.run_id != except_run and not _is_running(run):
            client().set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


# ------------------------------------------------------------------------------------------------- what a run records


def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Metrics of the active run, in one call to the store."""
    mlflow.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)


def log_params(params: Mapping[str, Any]) -> None:
    """Parameters of the active run; a value longer than the store takes (6,000 characters) is cut."""
    mlflow.log_params({name: str(value)[:6000] for name, value in params.items()})


def set_tags(tags: Mapping[str, str]) -> None:
    """Tags of the active run."""
    mlflow.set_tags(dict(tags))


def log_table(rows: Sequence[Mapping[str, Any]], artifact: str) -> None:
    """Rows as a table artifact (JSON) that the UI shows and `mlflow.load_table` reads; no rows, no artifact."""
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        mlflow.log_table({column: [row.get(column) for row in rows] for column in columns}, artifact)


def log_figure(figure: Any, artifact: str) -> None:
    """A plotly (.html) or matplotlib (.png) figure."""
    mlflow.log_figure(figure, artifact)


def log_text(text: str, artifact: str) -> None:
    """A text artifact."""
    mlflow.log_text(text, artifact)


def log_artifact(path: str | os.PathLike[str], folder: str | None = None) -> None:
    """One file as an artifact, in `folder` of the run."""
    mlflow.log_artifact(str(path), folder)


def log_folder(path: str | os.PathLike[str], folder: str) -> None:
    """A folder's files as artifacts under `folder`."""
    mlflow.log_artifacts(str(path), folder)


def log_summary(rows: Sequence[Mapping[str, Any]]) -> None:
    """The workflow's closing table as data: `summary.json`, a list of rows."""
    mlflow.log_text(json.dumps(list(rows), indent=2, default=float), "summary.json")


def log_dataset(name: str, digest: str, source: str, *, rows: int, context: str) -> None:
    """A data-set input of the active run.

    Args:
        name: e.g. `wikitext-2/test`.
        digest: hash of the content; the first 36 characters are kept (what the store takes).
        source: hub id, folder or package that it came from.
        rows: number of rows, questions or documents.
        context: what it was used for: `training`, `calibration`, `evaluation`.

    Without an active run (a search's trial, say) nothing is logged.
    """
    if mlflow.active_run() is None:
        return
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    origin = CodeDatasetSource(tags={"source": source, "rows": str(rows)})
    dataset = MetaDataset(origin, name=name, digest=digest[:36])  # type: ignore[abstract]  # complete at run time
    mlflow.log_input(dataset, context=context)


def _log_config(config: Mapping[str, Any]) -> None:
    log_params({f"cfg.{key}": value for key, value in flatten(config).items()})
    mlflow.log_text(yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False), "config.yaml")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} to {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _log_environment() -> None:
    mlflow.log_text(json.dumps(environment(), indent=2), "environment.json")


def environment() -> dict[str, Any]:
    """Machine and package versions as they are now; the GPU is named only if torch is loaded already."""
    import sys

    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "torch_threads": torch.get_num_threads() if torch else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else [],
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_tags() -> dict[str, str]:
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
    except FileNotFoundError:
        return {}
    if commit is None:
        return {}
    return {"mlflow.source.git.commit": commit, "edgequant.git_dirty": str(bool(git("status", "--porcelain"))).lower()}


# ------------------------------------------------------------------------------------------ registry, finding, fetching


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


def find_runs(
    *, workflow: str | None = None, experiment: str | None = None, parent: str | None = None, limit: int = 1000
) -> list[FinishedRun]:
    """Runs of edgequant, newest first, in every experiment unless one is named.

    Raises:
        UserError: the experiment does not exist.
    """
    filters = [f"tags.`edgequant.workflow` = '{workflow}'"] if workflow else []
    filters += [f"tags.`{PARENT_TAG}` = '{parent}'"] if parent else []
    experiments = [_experiment_id(experiment)] if experiment else None
    return [_finished(run) for run in _search(" and ".join(filters), limit, experiments)]


def _experiment_id(name: str) -> str:
    found = client().get_experiment_by_name(name)
    if found is None:
        known = ", ".join(sorted(experiment.name for experiment in client().search_experiments()))
        raise UserError(f"experiment {name!r} is not in {mlflow.get_tracking_uri()}; there are: {known}")
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
