"""What a run records: metrics, parameters, tags, tables, pages, files, data-set inputs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import mlflow
import yaml

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


def log_params(params: Mapping[str, Any]) -> None:
    """Parameters of the active run; a value longer than the store takes (6,000 characters) is cut.

    Those that a run has keep their values, as when it is resumed.
    """
    run = mlflow.active_run()
    there = mlflow.MlflowClient().get_run(run.info.run_id).data.params if run is not None else {}
    mlflow.log_params({name: str(value)[:6000] for name, value in params.items() if name not in there})


def name_run(name: str) -> None:
    """What the active run is called from now on."""
    mlflow.set_tag("mlflow.runName", name)


def describe_run(markdown: str) -> None:
    """The text that the UI shows on top of the active run's page."""
    mlflow.set_tag("mlflow.note.content", markdown)


def set_tags(tags: Mapping[str, str]) -> None:
    """Tags of the active run."""
    mlflow.set_tags(dict(tags))


def log_table(rows: Sequence[Mapping[str, Any]], artifact: str) -> None:
    """Rows as a table artifact (JSON) that the UI shows and `mlflow.load_table` reads; no rows, no artifact."""
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        mlflow.log_table({column: [row.get(column) for row in rows] for column in columns}, artifact)


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
    """The workflow's summary table as data: `summary.json`, a list of rows."""
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
