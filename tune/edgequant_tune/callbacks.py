"""What the driver does when a trial starts, reports or ends: the ledger on disk, nested MLflow runs, the progress line.

Called on Ray's loop, so each does little, and no more with a thousand trials than with ten.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial

from edgequant.redaction import without_secrets
from edgequant_tune.bookkeeping.ledger import Ledger
from edgequant_tune.bookkeeping.trial_runs import TrialRuns
from edgequant_tune.cluster.memory import lacks_memory
from edgequant_tune.objectives import HELD_OUT
from edgequant_tune.progress import Progress
from edgequant_tune.trial import HALVED, identity_of
from edgequant_tune.trial_records import TrialRecord

SCHEDULER, TIME_BUDGET = "scheduler", "time budget"
DIED = "the worker process died twice"
OUT_OF_MEMORY = "out of memory: the worker process was killed, and again with half the micro-batch"


class TimeBudget(Stopper):
    """Ends a search after so many seconds of this session, and says whether it did; None never does."""

    def __init__(self, seconds: float | None) -> None:
        self.until = math.inf if seconds is None else time.monotonic() + seconds
        self.reached = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.reached = self.reached or time.monotonic() >= self.until
        return self.reached

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TrialCallback(Callback):
    """Turns what Ray says of a trial into its record, and passes it on. Lives in the driver alone."""

    def __init__(self, ledger: Ledger, runs: TrialRuns, progress: Progress, budget: TimeBudget) -> None:
        self.ledger, self.runs, self.progress, self.budget = ledger, runs, progress, budget
        self._rung_losses: dict[str, dict[str, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.runs.begin(self._begun(trial))

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        id, found, step = identity_of(trial.config), numbers(result.get("metrics", {})), int(result.get("step") or 0)
        self.runs.report(id, found, step)
        if HELD_OUT in found:
            self._rung_losses.setdefault(id, {})[str(step)] = found[HELD_OUT]
        self.progress.update(self.ledger)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        last = trial.last_result or {}
        if last.get("failed"):
            self._end(self._known(trial, status="failed", error=last_line(last["failed"])), last["failed"])
        elif last.get("complete"):
            made = {"checkpoint": last.get("checkpoint"), "as_trained": last.get("as_trained") or {}}
            self._end(self._known(trial, status="finished", **made))
        else:
            self._end(self._known(trial, status="stopped", stopped_by=SCHEDULER))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its process died, and Ray begins it once more: with half the micro-batch where memory was the reason."""
        if lacks_memory(death_of(trial)):
            trial.config[HALVED] = True

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        text = death_of(trial)
        why = OUT_OF_MEMORY if lacks_memory(text) else f"{DIED}: {last_line(text)}"
        self._end(self._known(trial, status="failed", error=why), text)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        if self.budget.reached:  # stops trials without a word
            for trial in trials:
                if self._begun(trial).status == "unfinished" and trial.status == Trial.TERMINATED:
                    self._end(self._known(trial, status="stopped", stopped_by=TIME_BUDGET))
        self.progress.close()

    def _begun(self, trial: Trial) -> TrialRecord:
        return self.ledger.records[identity_of(trial.config)]

    def _known(self, trial: Trial, **outcome: Any) -> TrialRecord:
        last = trial.last_result or {}
        found: dict[str, Any] = {"step": last.get("step"), "metrics": numbers(last.get("metrics", {}))}
        found["rung_losses"] = self._rung_losses.pop(identity_of(trial.config), {})
        return replace(self._begun(trial), **found, seconds=last.get("time_total_s"), **outcome)

    def _end(self, record: TrialRecord, traceback: str = "") -> None:
        record = replace(record, error=record.error and without_secrets(record.error))
        self.ledger.end(record)
        self.runs.end(record, without_secrets(traceback))
        self.progress.update(self.ledger)
        self.progress.ended(record, self.ledger)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers, as floats."""
    return {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}


def death_of(trial: Trial) -> str:
    """Why a trial's process died, as Ray tells it; what a trial itself raises, it reports."""
    return str(trial.get_error() or "no reason is known")


def last_line(text: str) -> str:
    """The line of a traceback that names the error."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "unknown error"
