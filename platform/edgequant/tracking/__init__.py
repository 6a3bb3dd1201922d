"""The one place that talks to MLflow tracking: runs, metrics, tables, data-set inputs, checkpoints."""

from __future__ import annotations

from edgequant.tracking.environment import PACKAGES, environment
from edgequant.tracking.logging import (
    flatten,
    log_artifact,
    log_dataset,
    log_figure,
    log_folder,
    log_metrics,
    log_params,
    log_summary,
    log_table,
    log_text,
    set_tags,
)
from edgequant.tracking.registry import download, register_checkpoint
from edgequant.tracking.runs import (
    EXPERIMENT,
    PARENT_TAG,
    Run,
    client,
    run_folder,
    run_url,
    tracking_uri,
    ui_command,
    variant_run,
    workflow_run,
)
from edgequant.tracking.search import FinishedRun, find_runs
from edgequant.tracking.store import answers

__all__ = [
    "EXPERIMENT",
    "PACKAGES",
    "PARENT_TAG",
    "FinishedRun",
    "Run",
    "answers",
    "client",
    "download",
    "environment",
    "find_runs",
    "flatten",
    "log_artifact",
    "log_dataset",
    "log_figure",
    "log_folder",
    "log_metrics",
    "log_params",
    "log_summary",
    "log_table",
    "log_text",
    "register_checkpoint",
    "run_folder",
    "run_url",
    "set_tags",
    "tracking_uri",
    "ui_command",
    "variant_run",
    "workflow_run",
]
