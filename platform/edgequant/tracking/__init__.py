"""The one place that talks to MLflow tracking: runs, metrics, tables, data-set inputs, checkpoints."""

from __future__ import annotations

from edgequant.tracking.addresses import local_store, shown_store, without_password
from edgequant.tracking.away.current import real_id
from edgequant.tracking.details import all_metrics, details_of
from edgequant.tracking.environment import PACKAGES, environment
from edgequant.tracking.experiments import VIEW
from edgequant.tracking.lifetime.process import is_alive, this_process
from edgequant.tracking.logging import (
    describe_run,
    flatten,
    log_artifact,
    log_dataset,
    log_folder,
    log_metrics,
    log_params,
    log_revision,
    log_summary,
    log_table,
    log_text,
    name_run,
    set_tags,
)
from edgequant.tracking.names import short_name
from edgequant.tracking.pages import compare_url, run_url, runs_url, ui_command, version_url
from edgequant.tracking.permissions import REGISTERED, check_may_change
from edgequant.tracking.registry import (
    active_run_id,
    asked_settings,
    download,
    filed_evidence,
    loaded_commit,
    register_checkpoint,
)
from edgequant.tracking.runs import EXPERIMENT, Run, joined, run_folder, variant_run, workflow_run
from edgequant.tracking.search import PARENT_TAG, FinishedRun, all_pages, client, deleted_run, find_runs
from edgequant.tracking.store import answers, file_kept
from edgequant.tracking.store_errors import refusal

__all__ = [
    "EXPERIMENT",
    "PACKAGES",
    "PARENT_TAG",
    "REGISTERED",
    "VIEW",
    "FinishedRun",
    "Run",
    "active_run_id",
    "all_metrics",
    "all_pages",
    "answers",
    "asked_settings",
    "check_may_change",
    "client",
    "compare_url",
    "deleted_run",
    "describe_run",
    "details_of",
    "download",
    "environment",
    "file_kept",
    "filed_evidence",
    "find_runs",
    "flatten",
    "is_alive",
    "joined",
    "loaded_commit",
    "local_store",
    "log_artifact",
    "log_dataset",
    "log_folder",
    "log_metrics",
    "log_params",
    "log_revision",
    "log_summary",
    "log_table",
    "log_text",
    "name_run",
    "real_id",
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
