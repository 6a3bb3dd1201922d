"""What a search leaves behind: nested runs, figures, the winner measured beside its baseline, a registered version."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgequant import models, tracking
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.workflows.inputs import evaluation_data
from edgequant.workflows.measuring import measure
from edgequant_tune import figures, outcomes
from edgequant_tune.callbacks import MlflowTrials, TrialRecords, close_trials
from edgequant_tune.outcomes import Outcome
from edgequant_tune.search import Search

if TYPE_CHECKING:
    from ray.tune import Callback

Rows = dict[str, dict[str, Any]]
BEST = "tuned"  # variant of the best trial's checkpoint, measured in full
PACKAGES = ("edgequant", "edgequant_tune")


def worker_environment() -> dict[str, str]:
    """What Ray's workers need: the packages (a checkout is on no path of theirs) and the store, by absolute paths."""
    import importlib

    roots = [str(Path(importlib.import_module(name).__path__[0]).parent) for name in PACKAGES]
    paths = [*roots, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(os.path.abspath(path) for path in paths)),
        "MLFLOW_TRACKING_URI": absolute_store(tracking.client().tracking_uri),
        "TOKENIZERS_PARALLELISM": "false",
    }


def absolute_store(uri: str) -> str:
    """A sqlite store named relative to the working directory, by its absolute path; any other as it is."""
    scheme, slashes, path = uri.partition(":///")
    if scheme == "sqlite" and slashes and not path.startswith("/"):
        return f"sqlite:////{str(Path(path).resolve()).lstrip('/')}"
    return uri


def callbacks(search: Search, run: tracking.Run) -> list[Callback]:
    """What the driver does beside searching: nested runs in MLflow, the record on disk, the progress line."""
    tags = {"variant": "trial", "model": search.name, "phase": "tune", "split": "validation"}
    mlflow_trials = MlflowTrials(
        tracking_uri=absolute_store(tracking.client().tracking_uri),
        experiment_id=run.experiment_id,
        parent_id=run.id,
        tags={f"edgequant.{key}": value for key, value in tags.items()},
        job=search.job,
    )
    return [mlflow_trials, TrialRecords(search.job, search.objectives, search.trials)]


@contextmanager
def trials_closed(run: tracking.Run) -> Iterator[None]:
    """Whatever ends the search, an error or a signal, no trial's run stays open."""
    try:
        yield
    finally:
        close_trials(tracking.client().tracking_uri, run.experiment_id, run.id)


def log_search(search: Search, found: Sequence[Outcome]) -> Outcome:
    """File trials, figures and the best hyperparameters with the run.

    Returns:
        The best trial by the first objective.

    Raises:
        RuntimeError: no trial finished; says how the first one failed.
    """
    best = outcomes.ranked(found, search.objectives)
    tracking.log_table(full_table(search, found), "trials.json")
    counts = {status: sum(o.status == status for o in found) for status in ("finished", "stopped", "failed")}
    tracking.log_metrics({f"trials/{status}": count for status, count in counts.items()})
    if not best:
        reasons = [outcome.error for outcome in found if outcome.error] or ["no objective was measured"]
        raise RuntimeError(
            f"none of {len(found)} trials finished with {search.objectives[0].metric}; first error: {reasons[0]}"
        )
    for name, figure in figures.figures(found, search.space, search.objectives).items():
        tracking.log_figure(figure, name)
    tracking.log_params({f"best.{name}": value for name, value in best[0].values.items()})
    tracking.log_metrics(
        {f"best_trial/{o.metric.replace('/', '_')}": best[0].metrics[o.metric] for o in search.objectives}
    )
    tracking.set_tags({"edgequant.best_trial": best[0].name, "edgequant.scheme": scheme_of(search, best[0])})
    return best[0]


def scheme_of(search: Search, outcome: Outcome) -> str:
    return str(outcome.values.get("scheme", search.job.scheme))


def measure_best(search: Search, best: Outcome, evaluation: EvaluationSettings) -> Rows:
    """Measure the winner and the model it came from as `qat` would; the winner's metrics go on the parent too."""
    data = evaluation_data(evaluation.tasks, search.job.data_dir)
    assert best.checkpoint is not None
    sources = {"baseline": (search.job.model, None), BEST: (best.checkpoint, Path(best.checkpoint))}
    rows: Rows = {}
    for variant, (source, checkpoint) in sources.items():
        scheme = scheme_of(search, best) if checkpoint else "none"
        with tracking.variant_run(variant, model=search.name, scheme=scheme, phase="tune"):
            loaded = models.load(source, dtype="auto", device=search.job.device)
            metrics = measure(loaded.model, loaded.tokenizer, data, evaluation, checkpoint=checkpoint)
        rows[variant] = {"variant": variant, "model": search.name, "scheme": scheme, **metrics}
    tracking.log_metrics(metrics_of(rows[BEST]))
    return rows


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, int | float)}


def file_checkpoint(search: Search, best: Outcome, rows: Rows, run: tracking.Run, *, register: bool) -> str:
    """File the winner's checkpoint with the run, and register it as `edgequant-<model>`; returns its MLflow URI."""
    folder = Path(best.checkpoint or "")
    if not register:
        tracking.log_folder(folder, "checkpoint")
        return f"runs:/{run.id}/checkpoint"
    tags = {
        "edgequant.model": search.name,
        "edgequant.scheme": scheme_of(search, best),
        "edgequant.variant": BEST,
        "edgequant.baseline": json.dumps(metrics_of(rows["baseline"])),
    }
    name = f"edgequant-{search.name}"
    return f"models:/{name}/{tracking.register_checkpoint(folder, name, metrics=metrics_of(rows[BEST]), tags=tags)}"


def full_table(search: Search, found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Every trial with everything that is known of it."""
    return [
        {"trial": o.number, "status": o.status, "step": o.step, "seconds": o.seconds, "error": o.error}
        | o.values
        | o.metrics
        for o in found
    ]


def table(search: Search, found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The trials that the closing table shows."""
    return outcomes.table(found, search.objectives, model=search.name, scheme=search.job.scheme)


def next_command(checkpoint: str, method: str) -> str:
    """What a user would do with the result."""
    if checkpoint.startswith("models:/"):
        _, name, version = checkpoint.split("/")
        return f"edgequant promote --model {name} --version {version}"
    return f"edgequant {'qat' if method == 'finetune' else 'evaluate'} --model {checkpoint}"
