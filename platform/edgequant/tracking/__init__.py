"""The one place that talks to MLflow tracking: runs, metrics, tables, data-set inputs, checkpoints."""

from __future__ import annotations

from edgequant.tracking.addresses import shown_store, without_password
from edgequant.tracking.details import all_metrics, details_of
from edgequant.tracking.environment import PACKAGES, environment
from edgequant.tracking.experiments import VIEW
from edgequant.tracking.logging import (
    describe_run,
    flatten,
    log_artifact,
    log_dataset,
    log_folder,
    log_metrics,
    log_params,
    log_summary,
    log_table,
    log_text,
    name_run,
    set_tags,
)
from edgequant.tracking.names import short_name
from edgequant.tracking.pages import compare_url, run_url, runs_url, ui_command, version_url
from edgequant.tracking.permissions import check_may_change
from edgequant.tracking.registry import active_run_id, asked_model, download, filed_evidence, register_checkpoint
from edgequant.tracking.runs import (
    EXPERIMENT,
    PARENT_TAG,
    Run,
    client,
    is_alive,
    run_folder,
    this_process,
    variant_run,
    workflow_run,
)
from edgequant.tracking.search import FinishedRun, find_runs
from edgequant.tracking.store import answers
from edgequant.tracking.store_errors import refusal

__all__ = [
    "EXPERIMENT",
    "PACKAGES",
    "PARENT_TAG",
    "VIEW",
    "FinishedRun",
    "Run",
    "active_run_id",
    "all_metrics",
    "answers",
    "asked_model",
    "check_may_change",
    "client",
    "compare_url",
    "describe_run",
    "details_of",
    "download",
    "environment",
    "filed_evidence",
    "find_runs",
    "flatten",
    "is_alive",
    "log_artifact",
    "log_dataset",
    "log_folder",
    "log_metrics",
    "log_params",
    "log_summary",
    "log_table",
    "log_text",
    "name_run",
    "refusal",
    "register_checkpoint",
    "run_folder",
    "run_url",
    "runs_url",
    "set_tags",
    "short_name",
    "shown_store",
    "this_process",
    "ui_command",
    "variant_run",
    "version_url",
    "without_password",
    "workflow_run",
]
