"""Every trial is a run of MLflow, nested under the search's run; the driver writes it, trials need no store."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from mlflow.entities import RunStatus

from edgequant import tracking
from edgequant.tracking.details import split
from edgequant_tune.bookkeeping.write_queue import WriteQueue
from edgequant_tune.trial_records import TrialRecord

PARENT_TAG, TRIAL_TAG = tracking.PARENT_TAG, "edgequant.trial"
STOPPED_TAG, STEP_TAG, ERROR_TAG = "edgequant.stopped_by", "edgequant.stopped_at_step", "edgequant.error"
BEST_TRIAL_TAG, BEST_RUN_TAG, TRIALS_TAG = "edgequant.best_trial", "edgequant.best_run_id", "edgequant.trials"
AS_TRAINED_TAG = "edgequant.as_trained"
HOW_IT_ENDED = (STOPPED_TAG, STEP_TAG, ERROR_TAG, AS_TRAINED_TAG)
ABORTED = "search aborted"
ENDS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class TrialRuns:
    """The runs of a search's trials.

    A trial that ends by itself or is stopped is FINISHED (the latter with the tag `edgequant.stopped_by`), one that
    raises is FAILED with `traceback.txt`; what a search leaves open is KILLED. A resumed trial continues its run: runs
    are found again by the tag `edgequant.trial`, which is the trial's id.

    Args:
        run: the search's.
        tags: of every trial, by the name behind `edgequant.`.
        scheme: of trials that search none.
    """

    def __init__(self, run: tracking.Run, tags: Mapping[str, str], scheme: str) -> None:
        self.tags, self.scheme = dict(tags), scheme
        self.queue = WriteQueue(
            tracking.client(), run.experiment_id, parent={PARENT_TAG: run.id}, identity=TRIAL_TAG, stale=HOW_IT_ENDED
        )
        self._open: set[str] = set()

    def file_missing(self, records: Sequence[TrialRecord]) -> None:
        """File what the store does not have of trials that are over: a crash may have come between disk and store."""
        known = self.queue.existing()
        for record in records:
            run = known.get(record.id)
            if run is None or run.status != ENDS[record.status]:
                self.begin(record)
                self.report(record.id, record.metrics, record.step or 0)
                self.end(record)

    def begin(self, record: TrialRecord) -> None:
        """Begin the run of a trial, or go on with it."""
        scheme = str(record.values.get("scheme", self.scheme))
        named = {"model": self.tags.get("model", ""), "scheme": scheme, "variant": "trial"}
        tags = {f"edgequant.{name}": value for name, value in (self.tags | {"scheme": scheme}).items()}
        self.queue.begin(
            record.id,
            name=record.name,
            tags=tags | {"edgequant.process": tracking.this_process()},
            params={name: str(value) for name, value in (named | record.values).items()},
        )
        self._open.add(record.id)

    def report(self, id: str, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a step; their details are in `trials.json` alone."""
        headline, _ = split(metrics)
        self.queue.log(id, headline, step)

    def end(self, record: TrialRecord, traceback: str = "") -> None:
        """End the run of a trial as the trial ended; one that was stopped before it began gets its run now."""
        if record.id not in self._open:
            self.begin(record)
        tags = {STOPPED_TAG: record.stopped_by, STEP_TAG: str(record.step or 0)} if record.stopped_by else {}
        tags |= {ERROR_TAG: record.error} if record.error else {}
        tags |= {AS_TRAINED_TAG: json.dumps(record.as_trained)} if record.as_trained else {}
        texts = {"traceback.txt": traceback} if traceback else {}
        self.queue.end(record.id, ENDS[record.status], tags=tags, texts=texts)
        self._open.discard(record.id)

    def close(self, seconds: float | None = None) -> None:
        """Write everything, in so many seconds at most; what is still open was aborted with the search.

        Raises:
            UserError: as `WriteQueue.flush`.
        """
        for trial in sorted(self._open):
            killed = RunStatus.to_string(RunStatus.KILLED)
            self.queue.end(trial, killed, tags={STOPPED_TAG: ABORTED}, texts={})
        self._open.clear()
        self.queue.flush(seconds)
        if self.queue.refused:
            said = f"{len(self.queue.refused)} writes were refused by the tracking store: {self.queue.refused[0]}"
            print(said, file=sys.stderr, flush=True)


def name_best(best: TrialRecord, run: tracking.Run, *, of: int) -> None:
    """Say on the search's run which trial is best: its name, its run, its hyperparameters.

    A store never changes a parameter: a search that went on to more trials says `best_of_40.learning_rate`.

    Args:
        of: trials that there are.
    """
    tags = {BEST_TRIAL_TAG: best.name, BEST_RUN_TAG: _run_of(best, run) or "", TRIALS_TAG: str(of)}
    tracking.set_tags({name: value for name, value in tags.items() if value})
    params = {f"best.{name}": str(value) for name, value in best.values.items()}
    there = tracking.client().get_run(run.id).data.params
    if {name: value for name, value in there.items() if name.startswith("best.")} in ({}, params):
        tracking.log_params(params)
    else:
        tracking.log_params({f"best_of_{of}.{name}": value for name, value in best.values.items()})


def _run_of(record: TrialRecord, run: tracking.Run) -> str | None:
    wanted = f"tags.`{PARENT_TAG}` = '{run.id}' and tags.`{TRIAL_TAG}` = '{record.id}'"
    found = tracking.client().search_runs([run.experiment_id], wanted, max_results=1)
    return found[0].info.run_id if found else None


def forget_best(run: tracking.Run) -> None:
    """A search that goes on may come to another best trial: take away the tags that name the last one."""
    client = tracking.client()
    there = client.get_run(run.id).data.tags
    for name in (BEST_TRIAL_TAG, BEST_RUN_TAG):
        if name in there:
            client.delete_tag(run.id, name)
