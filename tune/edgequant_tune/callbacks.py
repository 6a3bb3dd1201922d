"""What the driver does when a trial starts, reports or ends: nested MLflow runs, the record on disk, the progress line.

Ray pickles callbacks with the search, and a restored search brings its own copies: they hold plain values only and make
clients and displays when first needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import LoggerCallback

from edgequant import tracking
from edgequant.tracking.details import split
from edgequant_tune.objectives import Objective
from edgequant_tune.search_spec import SearchSpec
from edgequant_tune.trial import TRACEBACK
from edgequant_tune.trial_records import Status, TrialRecord, prune_dominated, ranked, write_records
from edgequant_tune.trial_spec import TrialSpec

if TYPE_CHECKING:
    from edgequant_tune.progress import Progress

PARENT_TAG, TRIAL_TAG, STOPPED_TAG = "mlflow.parentRunId", "edgequant.trial", "edgequant.stopped_by"
PROCESS_TAG = "edgequant.process"


def search_callbacks(spec: SearchSpec, run: tracking.Run) -> list[Callback]:
    """What the driver does beside searching: nested runs in MLflow, the record on disk, the progress line."""
    tags = {"variant": "trial", "model": spec.model_name, "phase": "tune", "split": "validation"}
    mlflow_trials = MlflowTrials(
        tracking_uri=_kept_store(absolute_store(tracking.client().tracking_uri)),
        experiment_id=run.experiment_id,
        parent_id=run.id,
        tags={f"edgequant.{key}": value for key, value in tags.items()},
        spec=spec.trial,
    )
    return [mlflow_trials, TrialRecorder(spec.trial, spec.objectives, spec.trials)]


class MlflowTrials(LoggerCallback):
    """Every trial is a run nested under the search's run. Runs in the driver, so trials need no tracking store.

    A trial that ends by itself or is stopped by the scheduler is FINISHED (the latter with the tag
    `edgequant.stopped_by`), one that raises is FAILED with `traceback.txt`; what a search leaves open is KILLED by
    `close_trials`. A restored trial continues its run: runs are found again by the tag `edgequant.trial`.
    """

    def __init__(
        self, *, spec: TrialSpec, tracking_uri: str | None, experiment_id: str, parent_id: str, tags: Mapping[str, str]
    ) -> None:
        self.tracking_uri, self.experiment_id, self.parent_id = tracking_uri, experiment_id, parent_id
        self.spec, self.tags = spec, dict(tags)
        self._runs: dict[str, str] = {}
        self._open: set[str] = set()

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.tracking_uri)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        found = self._runs.get(trial.trial_id) or self._earlier_run(trial.trial_id)
        self._runs[trial.trial_id] = found or self._create_run(trials.index(trial) + 1, trial)
        self._open.add(trial.trial_id)
        self.client.update_run(self._runs[trial.trial_id], status=RunStatus.to_string(RunStatus.RUNNING))
        self.client.set_tag(self._runs[trial.trial_id], PROCESS_TAG, self._parent_tag(PROCESS_TAG))

    def _parent_tag(self, name: str) -> str:
        return str(self.client.get_run(self.parent_id).data.tags.get(name, ""))

    def _earlier_run(self, trial_id: str) -> str | None:
        wanted = f"tags.`{PARENT_TAG}` = '{self.parent_id}' and tags.`{TRIAL_TAG}` = '{trial_id}'"
        found = self.client.search_runs([self.experiment_id], wanted, max_results=1)
        return found[0].info.run_id if found else None

    def _create_run(self, number: int, trial: Trial) -> str:
        scheme = str(trial.config.get("scheme", self.spec.scheme))
        tags = {PARENT_TAG: self.parent_id, TRIAL_TAG: trial.trial_id, "edgequant.scheme": scheme} | self.tags
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=f"trial {number}")
        named = {"model": self.tags.get("edgequant.model", ""), "scheme": scheme, "variant": "trial"}
        params = [Param(name, str(value)) for name, value in (named | trial.config).items()]
        self.client.log_batch(run.info.run_id, params=params)
        return str(run.info.run_id)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        now = int(time.time() * 1000)
        step = int(result.get("step", 0))
        headline, _ = split(numbers(result.get("metrics", {})))  # trials.json has every one
        metrics = [Metric(name, value, now, step) for name, value in headline.items()]
        self.client.log_batch(self._runs[trial.trial_id], metrics=metrics)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if trial.trial_id not in self._runs:  # stopped before it began
            return
        if _is_complete(trial):
            self._end(trial, RunStatus.FINISHED)
        else:
            self._stopped(trial, "scheduler")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if trial.trial_id not in self._runs:
            self.on_trial_start(iteration, trials, trial)
        text = error_text(self.spec, trial.trial_id)
        self.client.log_text(self._runs[trial.trial_id], text, "traceback.txt")
        self.client.set_tag(self._runs[trial.trial_id], "edgequant.error", last_line(text)[:5000])
        self._end(trial, RunStatus.FAILED)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        for trial in trials:  # the time budget stops trials without a word
            if trial.trial_id in self._open:
                self._stopped(trial, "time budget")

    def _stopped(self, trial: Trial, reason: str) -> None:
        stopped = {STOPPED_TAG: reason, "edgequant.stopped_at_step": str(trial.last_result.get("step", 0))}
        self.client.log_batch(self._runs[trial.trial_id], tags=[RunTag(*item) for item in stopped.items()])
        self._end(trial, RunStatus.FINISHED)

    def _end(self, trial: Trial, status: Any) -> None:
        self.client.set_terminated(self._runs[trial.trial_id], RunStatus.to_string(status))
        self._open.discard(trial.trial_id)


def close_trials(tracking_uri: str, experiment_id: str, parent_id: str) -> None:
    """Mark as KILLED what is still RUNNING under the search's run: nothing else ever would."""
    client = MlflowClient(tracking_uri=tracking_uri)
    wanted = f"tags.`{PARENT_TAG}` = '{parent_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], wanted):
        if TRIAL_TAG in run.data.tags:
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


@contextmanager
def trials_closed(run: tracking.Run) -> Iterator[None]:
    """Whatever ends the search, an error or a signal, no trial's run stays open."""
    try:
        yield
    finally:
        close_trials(tracking.client().tracking_uri, run.experiment_id, run.id)


class TrialRecorder(Callback):
    """Whenever a trial ends: writes `trials.json`, deletes dominated checkpoints, moves the progress line."""

    def __init__(self, spec: TrialSpec, objectives: Sequence[Objective], total: int) -> None:
        self.spec, self.objectives, self.total = spec, tuple(objectives), total
        self._progress: Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_progress": None}

    def setup(self, *_: Any, **info: Any) -> None:
        from edgequant_tune.progress import Progress

        self._progress = Progress(self.total, self.objectives[0])

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        if self._progress:
            self._progress.update(records_of(self.spec, trials, ended={}), self.objectives)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._record(trials, {trial.trial_id: "finished" if _is_complete(trial) else "stopped"})

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._record(trials, {trial.trial_id: "failed"})

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._record(trials, {})
        if self._progress:
            self._progress.close()

    def _record(self, trials: list[Trial], ended: dict[str, Status]) -> None:
        records = records_of(self.spec, trials, ended)
        write_records(self.spec.folder, records)
        prune_dominated(self.spec.trials_folder, records, self.objectives)
        if self._progress:
            self._progress.update(records, self.objectives)
            for record in records:
                if record.id in ended:
                    self._progress.ended(record, ranked(records, self.objectives))


def records_of(spec: TrialSpec, trials: Sequence[Trial], ended: Mapping[str, Status]) -> list[TrialRecord]:
    """Ray's trials as records; `ended` are those that Ray is just about to mark as ended."""
    return [
        _record_of(spec, i + 1, trial, ended.get(trial.trial_id) or _status(trial)) for i, trial in enumerate(trials)
    ]


def _record_of(spec: TrialSpec, number: int, trial: Trial, status: Status) -> TrialRecord:
    last = trial.last_result or {}
    return TrialRecord(
        number=number,
        id=trial.trial_id,
        values=dict(trial.config),
        status=status,
        step=last.get("step"),
        metrics=numbers(last.get("metrics", {})),
        checkpoint=last.get("checkpoint"),
        error=last_line(error_text(spec, trial.trial_id)) if status == "failed" else None,
        seconds=last.get("time_total_s"),
    )


def _status(trial: Trial) -> Status:
    if trial.status == Trial.ERROR:
        return "failed"
    if trial.status == Trial.TERMINATED:
        return "finished" if _is_complete(trial) else "stopped"
    return "unfinished"


def _is_complete(trial: Trial) -> bool:
    return bool((trial.last_result or {}).get("complete"))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers, as floats."""
    return {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}


def error_text(spec: TrialSpec, trial_id: str) -> str:
    """The traceback that the trial left; none when its process was killed."""
    file = spec.trials_folder / trial_id / TRACEBACK
    return file.read_text() if file.is_file() else "the worker process died without a traceback (out of memory?)"


def last_line(text: str) -> str:
    """The line of a traceback that names the error."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "unknown error"


def _kept_store(uri: str) -> str | None:
    """What Ray writes to disk with the search: a file's address; others may hold passwords and are asked for anew."""
    return uri if uri.startswith("sqlite:") else None


def absolute_store(uri: str) -> str:
    """A sqlite store named relative to the working directory, by its absolute path; any other as it is."""
    scheme, slashes, path = uri.partition(":///")
    if scheme == "sqlite" and slashes and not path.startswith("/"):
        return f"sqlite:////{str(Path(path).resolve()).lstrip('/')}"
    return uri
