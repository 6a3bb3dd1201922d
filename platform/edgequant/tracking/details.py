"""Interval bounds, percentiles, breakdowns and counts: a table of the run, beside the metrics that people read.

A run's metrics are `domain/perplexity` and its like; what belongs to one of them (`domain/perplexity_ci_low`,
`domain/perplexity_shelter_housing`, `latency/decode_ms_per_token_p90`) and how many items it stands on
(`domain/tokens`) lie in `metrics.json`, and `all_metrics` puts both together again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import mlflow

from edgequant.errors import first_line

ARTIFACT = "metrics.json"
COUNTS = frozenset(
    {
        "tokens",
        "items",
        "clusters",
        "documents",
        "windows",
        "unanswered",
        "over_long",
        "majority",
        "true_yes",
        "true_no",
        "false_yes",
        "false_no",
    }
)
_OF_PARTS = tuple(f"_{name}" for name in COUNTS - {"tokens"})  # `domain_qa/span_items`
GROUPS = ("against_baseline",)  # whose verdict is a tag and a text, and each loss a row of against_baseline.json
LOW, HIGH = "_ci_low", "_ci_high"


def split(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of a measurement as (those that people compare, details of them)."""
    details = {name: value for name, value in metrics.items() if _is_detail(name, metrics)}
    return {name: value for name, value in metrics.items() if name not in details}, details


def _is_detail(name: str, metrics: Mapping[str, float]) -> bool:
    group, _, own = name.partition("/")
    if group in GROUPS or own in COUNTS or own.endswith((LOW, HIGH, *_OF_PARTS)):
        return True
    words = own.split("_")
    return any(f"{group}/{'_'.join(words[:length])}" in metrics for length in range(1, len(words)))


def log_details(headline: Mapping[str, float], details: Mapping[str, float]) -> None:
    """Write them with the active run as a table, a row per metric, behind those that were written before."""
    names = [*headline, *(name for name in details if not name.endswith((LOW, HIGH)))]
    bare = (name.removesuffix(LOW).removesuffix(HIGH) for name in details if name.endswith((LOW, HIGH)))
    names = list(dict.fromkeys([*names, *bare]))  # a bound whose statistic was logged by another call
    everything = {**headline, **details}
    columns = {"value": "", "low": LOW, "high": HIGH}
    table = {column: [everything.get(name + end) for name in names] for column, end in columns.items()}
    mlflow.log_table({"metric": names, **table}, ARTIFACT)


def all_metrics(run_id: str) -> dict[str, float]:
    """Every metric of a run under its own name, bounds as `_ci_low` and `_ci_high`; of older runs, which have no table,
    what the store has."""
    run = mlflow.MlflowClient().get_run(run_id)
    return details_of(run_id) | dict(run.data.metrics)


def details_of(run_id: str, tell_damage: Callable[[str], None] = lambda why: None) -> dict[str, float]:
    """What the table of a run holds; empty where there is none, or it is damaged.

    Args:
        tell_damage: gets why what is there is no such table.
    """
    try:
        there = {PurePosixPath(file.path).name for file in mlflow.MlflowClient().list_artifacts(run_id)}
    except (mlflow.exceptions.MlflowException, OSError):
        return {}
    if ARTIFACT not in there:
        return {}
    try:
        return _unfolded(json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{ARTIFACT}")))
    except (mlflow.exceptions.MlflowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        tell_damage(f"{type(error).__name__}: {first_line(error)}")
        return {}


def _unfolded(table: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in table["data"]:
        cells = dict(zip(table["columns"], row, strict=True))
        for column, end in (("value", ""), ("low", LOW), ("high", HIGH)):
            value = cells.get(column)
            if isinstance(value, int | float):
                found[f"{cells['metric']}{end}"] = float(value)
    return found
