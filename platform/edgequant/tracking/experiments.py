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
WIDTHS = {"attributes.`Run Name`": 260, "params.`model`": 110, "params.`scheme`": 135}
METRICS = (
    "domain/perplexity",
    "size/checkpoint_gb",
    "latency/decode_ms_per_token",
    "wikitext2/perplexity",
    "boolq/accuracy",
    "squad/f1",
    "size/reduction_vs_fp16",
)


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
    state = {"selectedColumns": columns, "columnOrder": [*FIRST, *columns], "columnWidths": WIDTHS}
    now = int(time.time() * 1000)
    return json.dumps({"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def _columns(group: str, names: Sequence[str]) -> list[str]:
    return [f"{group}.`{name}`" for name in names]
