"""Writes to MLflow off Ray's loop: queued, gathered per run, and kept while the store does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag

from edgequant.errors import UserError, first_line
from edgequant.tracking.away.patience import is_away, patience_s, patiently

GATHERED_S = 1.0  # how long writes are gathered: a trial that ends within it costs the store three requests
MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100  # of one of MLflow's batches
LONGEST_PARAM, LONGEST_TAG = 6000, 5000  # characters


@dataclass
class Pending:
    """What is still to be written of one trial's run."""

    name: str = ""
    begun_ms: int = 0
    is_begun: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    status: str = ""
    ended_ms: int = 0


@dataclass(frozen=True)
class KnownRun:
    """A run of the store: its id, its status, its tags."""

    id: str
    status: str
    tags: Mapping[str, str]


class WriteQueue:
    """Runs of trials, written by a thread of its own; all methods but `flush` and `existing` return at once.

    A database that is away costs nothing as long as it is back before patience is over (`tracking.away`, which keeps
    on disk what is for a server): what was to be written waits. What the store refuses (a run that somebody deleted,
    say) is left out, and kept in `refused`.

    Args:
        client: of the store.
        experiment_id: of the runs.
        parent: tags that all of them have, the parent's among them.
        identity: name of the tag that holds a trial's id, by which its run is found again.
        stale: names of tags that say how a run ended; a run that goes on loses them.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        *,
        parent: Mapping[str, str],
        identity: str,
        stale: tuple[str, ...] = (),
    ) -> None:
        self.client, self.experiment_id = client, experiment_id
        self.parent, self.identity, self.stale = dict(parent), identity, stale
        self.refused: list[str] = []
        self._runs: dict[str, KnownRun] = {}
        self._waiting: dict[str, Pending] = {}
        self._lock, self._work, self._hurry, self._idle = (threading.Lock(), *(threading.Event() for _ in range(3)))
        self._idle.set()
        self._lost: Exception | None = None
        self._thread: threading.Thread | None = None

    def existing(self) -> dict[str, KnownRun]:
        """The runs that the store has already, by trial."""
        self._runs |= self._find(self.parent)
        return dict(self._runs)

    def begin(self, trial: str, *, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> None:
        """Begin a trial's run, or go on with it."""
        with self._changed(trial) as pending:
            pending.name, pending.begun_ms, pending.is_begun, pending.status = name, _now_ms(), True, ""
            pending.tags |= tags
            pending.params |= params

    def log(self, trial: str, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a step, as of now."""
        now = _now_ms()
        with self._changed(trial) as pending:
            pending.metrics += [Metric(name, value, now, step) for name, value in metrics.items()]

    def end(self, trial: str, status: str, *, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """End a trial's run, as of now.

        Args:
            status: one of MLflow's.
            tags: how it ended.
            texts: text artifacts by name.
        """
        with self._changed(trial) as pending:
            pending.status, pending.ended_ms = status, _now_ms()
            pending.tags |= tags
            pending.texts |= texts

    def flush(self, seconds: float | None = None) -> None:
        """Wait until everything is written, so long at most; None: as long as patience lasts.

        Raises:
            UserError: the store did not answer for so long; what was to be written is lost to it.
        """
        self._hurry.set()
        seconds = patience_s() if seconds is None else seconds
        written = self._idle.wait(seconds)
        self._hurry.clear()
        if self._lost is not None or not written:
            why = first_line(self._lost) if self._lost is not None else f"no answer within {seconds:.0f} s"
            raise UserError(
                f"trials could not be written to the tracking store: {why}; start it again, then repeat the search "
                "with --resume true, which trains none of them again"
            )

    # ------------------------------------------------------------------------------------------------------ the thread

    @contextmanager
    def _changed(self, trial: str) -> Iterator[Pending]:
        with self._lock:
            yield self._waiting.setdefault(trial, Pending())
            self._idle.clear()
            self._work.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trials to MLflow", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            self._work.wait()
            self._hurry.wait(GATHERED_S)
            with self._lock:
                batch, self._waiting = self._waiting, {}
                self._work.clear()
            for trial, pending in batch.items():
                self._write_patiently(trial, pending)
            with self._lock:
                if not self._waiting:
                    self._idle.set()

    def _write_patiently(self, trial: str, pending: Pending) -> None:
        def look_again() -> None:  # created before, but the answer was lost?
            self._runs |= self._find(self.parent | {self.identity: trial})

        if self._lost is not None:
            return
        try:
            patiently(lambda: self._write(trial, pending), look_again)
        except Exception as error:  # of whichever library speaks to the store
            if is_away(error):
                self._lost = error
            else:
                self.refused.append(f"trial {trial}: {first_line(error)}")

    def _write(self, trial: str, pending: Pending) -> None:
        if pending.is_begun:
            self._begin(trial, pending)
        run = self._runs[trial].id
        tags = [RunTag(name, value[:LONGEST_TAG]) for name, value in pending.tags.items()]
        params = [Param(name, value[:LONGEST_PARAM]) for name, value in pending.params.items()]
        most = max(len(pending.metrics) / MOST_METRICS, len(params) / MOST_PARAMS, len(tags) / MOST_TAGS)
        for i in range(-int(-most // 1)):
            self.client.log_batch(
                run,
                metrics=pending.metrics[i * MOST_METRICS : (i + 1) * MOST_METRICS],
                params=params[i * MOST_PARAMS : (i + 1) * MOST_PARAMS],
                tags=tags[i * MOST_TAGS : (i + 1) * MOST_TAGS],
            )
        for name, text in pending.texts.items():
            self.client.log_text(run, text, name)
        if pending.status:
            self.client.set_terminated(run, pending.status, pending.ended_ms)

    def _begin(self, trial: str, pending: Pending) -> None:
        """A new run with all its tags, so that they cost no request of their own; or the one that there is."""
        known = self._runs.get(trial)
        if known is None:
            tags = self.parent | pending.tags | {self.identity: trial}
            cut = {name: value[:LONGEST_TAG] for name, value in tags.items()}
            made = self.client.create_run(self.experiment_id, pending.begun_ms, cut, pending.name)
            self._runs[trial] = KnownRun(made.info.run_id, "RUNNING", cut)
            pending.tags = {}
        else:
            if not pending.status:
                self.client.update_run(known.id, status=RunStatus.to_string(RunStatus.RUNNING))
            for name in self.stale:
                if name in known.tags and name not in pending.tags:
                    self.client.delete_tag(known.id, name)
            self._runs[trial] = KnownRun(known.id, "RUNNING", pending.tags)
        pending.is_begun = False

    def _find(self, tags: Mapping[str, str]) -> dict[str, KnownRun]:
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found: dict[str, KnownRun] = {}
        page = None
        while True:
            runs = self.client.search_runs([self.experiment_id], wanted, max_results=1000, page_token=page)
            for run in runs:
                if self.identity in run.data.tags:
                    found[run.data.tags[self.identity]] = KnownRun(run.info.run_id, run.info.status, run.data.tags)
            if not (page := runs.token):
                return found


def _now_ms() -> int:
    return int(time.time() * 1000)
