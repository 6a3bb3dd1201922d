"""How an experiment opens in MLflow's UI: as model training, not as GenAI, and with a view whose columns say something.

MLflow's own table of runs shows name, time, source, models and data sets; parameters and metrics are hidden until
somebody picks them out of a list. A saved view is a tag of the experiment, which the menu `Views` and a link open.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence

import mlflow

KIND = ("mlflow.experimentKind", "custom_model_development")
VIEW = "edgequant"  # key of the view, in links
VIEW_NAME = "edgequant"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
PARAMETERS = ("model", "scheme")
FIRST = ("attributes.`Run Name`", "attributes.`Created`")
WIDTHS = {
    "attributes.`Run Name`": 260, "attributes.`Created`": 130, "params.`model`": 115, "params.`scheme`": 130,
    "metrics.`domain/perplexity`": 150, "metrics.`size/checkpoint_gb`": 165,
    "metrics.`latency/decode_ms_per_token`": 215,
    "metrics.`wikitext2/perplexity`": 165, "metrics.`boolq/accuracy`": 130, "metrics.`squad/f1`": 90,
    "metrics.`size/reduction_vs_fp16`": 190,
}  # fmt: skip
METRICS = (
    "domain/perplexity",
    "size/checkpoint_gb",
    "latency/decode_ms_per_token",
    "wikitext2/perplexity",
    "boolq/accuracy",
    "squad/f1",
    "size/reduction_vs_fp16",
)
SECTION = "compared-first"  # of charts: MLflow's own are one for each metric, by the alphabet
BARS = ("domain/perplexity", "size/checkpoint_gb", "deploy/decode_ms_per_token", *METRICS[3:6])
SIZE_AND_QUALITY = ("size/checkpoint_gb", "domain/perplexity")


def prepare_experiment(experiment_id: str) -> None:
    """Say once what kind of experiment it is, and offer the view; what a person has set stays.

    A store that lets nobody tag experiments costs the view and no run.
    """
    client = mlflow.MlflowClient()
    with contextlib.suppress(mlflow.exceptions.MlflowException):
        tags = client.get_experiment(experiment_id).tags
        if KIND[0] not in tags:
            client.set_experiment_tag(experiment_id, *KIND)
        if VIEW_TAG not in tags:
            client.set_experiment_tag(experiment_id, VIEW_TAG, saved_view())


def saved_view() -> str:
    """The view as MLflow 3.17 reads it: a name, when it was made, and the table's state."""
    columns = _columns("params", PARAMETERS) + _columns("metrics", METRICS)
    state = {"selectedColumns": columns, "columnOrder": [*FIRST, *columns], "columnWidths": WIDTHS, **_charts()}
    now = int(time.time() * 1000)
    return json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def _charts() -> dict[str, object]:
    """Of the view's charts those on top; MLflow adds its own below, and shows none that has no values."""
    shared = {"metricSectionId": SECTION, "runsCountToCompare": 10, "deleted": False, "isGenerated": False}
    x, y = ({"key": name, "type": "METRIC"} for name in SIZE_AND_QUALITY)
    charts: list[dict[str, object]] = [{"type": "BAR", "metricKey": name, "displayName": name} for name in BARS]
    charts.insert(2, {"type": "SCATTER", "xaxis": x, "yaxis": y, "displayName": " and ".join(SIZE_AND_QUALITY)})
    section = {"uuid": SECTION, "name": "compared first", "display": True, "isReordered": True, "columns": 2}
    return {
        "compareRunCharts": [{"uuid": f"{SECTION}-{at}", **chart, **shared} for at, chart in enumerate(charts)],
        "compareRunSections": [{**section, "deleted": False, "isGenerated": False}],
        "isAccordionReordered": True,
    }


def _columns(group: str, names: Sequence[str]) -> list[str]:
    return [f"{group}.`{name}`" for name in names]
