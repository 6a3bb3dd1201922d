"""What a run records: metrics, parameters, tags, tables, pages, files, data-set inputs."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow
import yaml
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from edgequant.disk.faults import writing
from edgequant.disk.leftovers import Scratch
from edgequant.redaction import hiding_secrets, without_secrets
from edgequant.tracking import details

SHARED = ("dataset", "limit", "seed")  # settings of a workflow that its measured models are compared by


def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Metrics of the active run, in one call to the store.

    Those that are not finite are left out, printed, and named by the tag `edgequant.not_finite`: the store would keep
    infinity as the greatest float, which compares like a measurement. Without a step, interval bounds, breakdowns and
    counts go to the table `metrics.json` instead (`details`), from which `all_metrics` has them.
    """
    values = {name: float(value) for name, value in metrics.items()}
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        said = ", ".join(f"{name} {values[name]:g}" for name in broken)
        print(f"not finite, so not logged: {said}", flush=True)
        mlflow.set_tag("edgequant.not_finite", said[:5000])
    finite = {name: value for name, value in values.items() if name not in broken}
    headline, belonging = (finite, {}) if step is not None else details.split(finite)
    mlflow.log_metrics(headline, step=step)
    if belonging:
        details.log_details(headline, belonging)


REVISION = "revision."  # how parameters begin that name a commit on the model hub


def log_params(params: Mapping[str, Any]) -> None:
    """Parameters of the active run; a value longer than the store takes (6,000 characters) is cut.

    Those that a run has keep their values, as when it is resumed.
    """
    run = mlflow.active_run()
    there = mlflow.MlflowClient().get_run(run.info.run_id).data.params if run is not None else {}
    mlflow.log_params({name: without_secrets(str(value))[:6000] for name, value in params.items() if name not in there})


def log_revision(repository: str, commit: str) -> None:
    """Of which commit on the model hub the active run loaded a model; nothing where no run is active."""
    if mlflow.active_run() is not None:
        log_params({f"{REVISION}{repository}": commit})


def name_run(name: str) -> None:
    """What the active run is called from now on."""
    mlflow.set_tag("mlflow.runName", without_secrets(name))


def describe_run(markdown: str) -> None:
    """The text that the UI shows on top of the active run's page."""
    mlflow.set_tag("mlflow.note.content", without_secrets(markdown))


def set_tags(tags: Mapping[str, str]) -> None:
    """Tags of the active run."""
    mlflow.set_tags({name: without_secrets(str(value)) for name, value in tags.items()})


def log_table(rows: Sequence[Mapping[str, Any]], artifact: str) -> None:
    """Rows as a table artifact (JSON) that the UI shows and `mlflow.load_table` reads; no rows, no artifact.

    They take the place of rows that are there, as of a run that was interrupted behind them and goes on; numbers keep
    all their digits.
    """
    if not rows:
        return
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError(f"table {artifact} is filed with a run, and none is active")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    hide = hiding_secrets()
    data = [[_as_json(row.get(column), hide) for column in columns] for row in rows]
    _file_text(json.dumps({"columns": columns, "data": data}, allow_nan=False), artifact)
    told, client = {"path": artifact, "type": "table"}, mlflow.MlflowClient()
    tables = json.loads(client.get_run(run.info.run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    if told not in tables:  # by which the UI knows tables
        client.set_tag(run.info.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*tables, told]))


def _as_json(value: Any, hide: Callable[[str], str]) -> Any:
    """A cell as JSON has it, without secrets: it has no infinity and no NaN, at which the UI would stop reading."""
    if hasattr(value, "tolist"):  # NumPy's or a tensor
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _as_json(one, hide) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_as_json(one, hide) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else hide(str(value))


def _filing(artifact: str) -> AbstractContextManager[None]:
    run = mlflow.active_run()
    place = urlsplit(run.info.artifact_uri if run is not None else "")
    is_here = run is not None and place.scheme in ("", "file")
    return writing(Path(unquote(place.path)) / artifact if is_here else Path(tempfile.gettempdir()))


def log_text(text: str, artifact: str) -> None:
    """A text artifact."""
    _file_text(without_secrets(text), artifact)


def _file_text(text: str, artifact: str) -> None:
    """By a file of our own: the next run removes it, should a kill leave it."""
    path = PurePosixPath(artifact)
    with _filing(artifact), Scratch() as folder:
        file = Path(folder) / path.name
        file.write_text(text, encoding="utf-8")
        mlflow.log_artifact(str(file), str(path.parent) if path.parent.name else None)


def log_artifact(path: str | os.PathLike[str], folder: str | None = None) -> None:
    """One file as an artifact, in `folder` of the run."""
    with _filing(folder or ""):
        mlflow.log_artifact(str(path), folder)


def log_folder(path: str | os.PathLike[str], folder: str) -> None:
    """A folder's files as artifacts under `folder`."""
    with _filing(folder):
        mlflow.log_artifacts(str(path), folder)


def log_summary(rows: Sequence[Mapping[str, Any]]) -> None:
    """The workflow's summary table as data: `summary.json`, a list of rows."""
    log_text(json.dumps(list(rows), indent=2, default=float), "summary.json")


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


def inherit(run_id: str) -> None:
    """What a run's measured models share with it becomes the active run's too: text and seed, and the data sets that it
    evaluates on, so that people find and compare them by these."""
    client, active = mlflow.MlflowClient(), mlflow.active_run()
    parent = client.get_run(run_id)
    params = {key: parent.data.params[f"cfg.{key}"] for key in SHARED if f"cfg.{key}" in parent.data.params}
    log_params(params)
    given = parent.inputs.dataset_inputs if parent.inputs is not None else []
    measured_on = [one for one in given if any(tag.value == "evaluation" for tag in one.tags)]
    if measured_on and active is not None:
        client.log_inputs(active.info.run_id, measured_on)


def log_config(config: Mapping[str, Any]) -> None:
    """The resolved configuration: `cfg.*` parameters and config.yaml."""
    log_params({f"cfg.{key}": value for key, value in flatten(config).items()})
    log_text(yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False), "config.yaml")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} to {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
