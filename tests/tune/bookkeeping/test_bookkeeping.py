"""What a search remembers: numbers by id, ends by their cause, writes that wait for a store that is away."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from edgequant import tracking
from edgequant.tracking.away import patience
from edgequant_tune.bookkeeping import write_queue
from edgequant_tune.bookkeeping.ledger import Ledger
from edgequant_tune.bookkeeping.trial_runs import TrialRuns, forget_best, name_best
from edgequant_tune.callbacks import TimeBudget, TrialCallback
from edgequant_tune.objectives import Objective
from edgequant_tune.trial_records import read_records

GOAL = (Objective("domain/perplexity", "min"),)
SILENT = SimpleNamespace(update=lambda *_: None, ended=lambda *_: None, close=lambda: None)


def ray_trial(id, status="RUNNING", error=None, **last):
    return SimpleNamespace(
        config={"learning_rate": 1e-4, "edgequant_trial": id}, status=status, last_result=last, get_error=lambda: error
    )


def finished(ledger, perplexity):
    record = ledger.begin({"learning_rate": 1e-4})
    from dataclasses import replace

    return ledger.end(replace(record, status="finished", metrics={"domain/perplexity": perplexity}))


@pytest.fixture
def search(tmp_path, store):
    """A search of two sessions' bookkeeping: makes a ledger, runs and a callback for a run of its own."""

    def made(run, seconds=None):
        ledger = Ledger(tmp_path, GOAL, tmp_path / "trials")
        runs = TrialRuns(run, {"variant": "trial", "model": "tiny"}, "w8")
        return ledger, runs, TrialCallback(ledger, runs, SILENT, TimeBudget(seconds))

    return made


def runs_of(store, parent):
    found = store.search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.id}'")
    return {run.data.tags["edgequant.trial"]: run for run in found}


def test_a_trial_keeps_number_and_run_in_the_next_session_and_loses_the_tags_of_its_first_end(search, store):
    with tracking.workflow_run("tune", {}) as run:
        ledger, runs, callback = search(run)
        for id in ("0001", "0002", "0003"):
            ledger.begin({"learning_rate": 1e-4})
            callback.on_trial_start(0, [], ray_trial(id))
        # the third ends first: places in Ray's list say nothing
        callback.on_trial_complete(0, [], ray_trial("0003", complete=True, step=4, metrics={"domain/perplexity": 9.0}))
        runs.close(30)
        before = runs_of(store, run)
        assert before["0001"].data.tags["edgequant.stopped_by"] == "search aborted"
        assert {id: one.info.status for id, one in before.items()} == {
            "0001": "KILLED", "0002": "KILLED", "0003": "FINISHED",
        }  # fmt: skip

        ledger, runs, callback = search(run)
        assert [record.id for record in ledger.unfinished] == ["0001", "0002"]
        runs.file_missing(ledger.ended)
        callback.on_trial_start(0, [], ray_trial("0001"))
        callback.on_trial_complete(0, [], ray_trial("0001", complete=True, step=4, metrics={"domain/perplexity": 8.0}))
        runs.close(30)
        after = runs_of(store, run)
        assert {id: one.info.run_id for id, one in after.items()} == {id: one.info.run_id for id, one in before.items()}
        assert after["0001"].info.status == "FINISHED" and "edgequant.stopped_by" not in after["0001"].data.tags
        assert after["0001"].info.run_name == "trial 1" and ledger.best.number == 1

        name_best(ledger.best, run, of=3)
        tags = store.get_run(run.id).data.tags
        assert (tags["edgequant.best_trial"], tags["edgequant.best_run_id"]) == ("trial 1", after["0001"].info.run_id)
        forget_best(run)
        assert not {"edgequant.best_trial", "edgequant.best_run_id"} & {*store.get_run(run.id).data.tags}


@pytest.mark.parametrize(("seconds", "said"), [(0.0, "time budget"), (None, "search aborted")])
def test_what_ends_a_search_is_called_by_its_name(search, store, seconds, said):
    with tracking.workflow_run("tune", {}) as run:
        ledger, runs, callback = search(run, seconds)
        ledger.begin({"learning_rate": 1e-4})
        callback.on_trial_start(0, [], ray_trial("0001"))
        callback.budget.stop_all()
        callback.on_experiment_end([ray_trial("0001", status="TERMINATED", step=2)])
        runs.close(30)
        (found,) = runs_of(store, run).values()
        assert found.data.tags["edgequant.stopped_by"] == said
        assert found.info.status == ("FINISHED" if seconds == 0.0 else "KILLED")
        assert ledger.records["0001"].status == ("stopped" if seconds == 0.0 else "unfinished")


def test_what_a_crash_kept_from_the_store_is_filed_from_the_ledger(search, store):
    with tracking.workflow_run("tune", {}) as run:
        ledger, runs, _ = search(run)
        finished(ledger, 7.0)  # on disk; the process dies before the store has it
        _, runs, _ = search(run)
        runs.file_missing(ledger.ended)
        runs.close(30)
        (found,) = runs_of(store, run).values()
        assert found.info.status == "FINISHED" and found.data.metrics["domain/perplexity"] == 7.0


def test_a_store_that_is_away_holds_up_no_trial_and_loses_nothing(search, store, monkeypatch):
    monkeypatch.setattr(patience, "PAUSE_S", 0.05)
    monkeypatch.setattr(write_queue, "GATHERED_S", 0.01)
    with tracking.workflow_run("tune", {}) as run:
        ledger, runs, callback = search(run)
        real, away = runs.queue.client, threading.Event()
        away.set()

        class Sometimes:
            def __getattr__(self, name):
                if away.is_set():
                    raise ConnectionError("connection refused")
                return getattr(real, name)

        runs.queue.client = Sometimes()
        begun = time.monotonic()
        for number in range(1, 4):
            id = ledger.begin({"learning_rate": 1e-4}).id
            callback.on_trial_start(0, [], ray_trial(id))
            for step in (1, 2):
                callback.on_trial_result(0, [], ray_trial(id), {"step": step, "metrics": {"train/loss": step / number}})
            callback.on_trial_complete(0, [], ray_trial(id, complete=True, step=2, metrics={"domain/perplexity": 7.0}))
        assert time.monotonic() - begun < 1.0
        time.sleep(0.2)
        away.clear()
        runs.close(30)
        found = runs_of(store, run)
        assert sorted(found) == ["0001", "0002", "0003"] and {one.info.status for one in found.values()} == {"FINISHED"}
        curve = store.get_metric_history(found["0003"].info.run_id, "train/loss")
        assert [(point.step, point.value) for point in curve] == [(1, pytest.approx(1 / 3)), (2, pytest.approx(2 / 3))]


def test_a_run_that_somebody_deleted_is_told_and_does_not_end_the_search(search, store, capsys):
    with tracking.workflow_run("tune", {}) as run:
        ledger, runs, callback = search(run)
        ledger.begin({"learning_rate": 1e-4})
        callback.on_trial_start(0, [], ray_trial("0001"))
        runs.queue.flush()
        store.delete_run(runs_of(store, run)["0001"].info.run_id)
        callback.on_trial_complete(0, [], ray_trial("0001", complete=True, metrics={"domain/perplexity": 7.0}))
        runs.close(30)
    assert "1 writes were refused by the tracking store: trial 0001" in capsys.readouterr().err
    assert ledger.best.id == "0001"


def test_the_hundredth_trial_costs_the_driver_no_more_than_the_first(tmp_path):
    """In operations on records, which no busy machine disturbs."""
    ledger = Ledger(tmp_path, GOAL, tmp_path / "trials")
    looked_at: list[int] = []
    from edgequant_tune.bookkeeping import ledger as module

    real = module.ranked

    def counted(records, objectives):
        looked_at.append(len(records))
        return real(records, objectives)

    module.ranked = counted
    try:
        for number in range(100):
            finished(ledger, 100.0 - number)
    finally:
        module.ranked = real
    assert max(looked_at) <= 2 and len(ledger._front) == 1
    assert [record.number for record in read_records(tmp_path)] == list(range(1, 101))


def test_a_line_that_a_crash_cut_is_passed_over_and_spoils_none_after_it(tmp_path):
    ledger = Ledger(tmp_path, GOAL, tmp_path / "trials")
    finished(ledger, 7.0)
    with (tmp_path / "trials.jsonl").open("a") as opened:
        opened.write('{"number": 2, "id": "00')
    again = Ledger(tmp_path, GOAL, tmp_path / "trials")
    finished(again, 6.0)
    assert [(record.number, record.status) for record in read_records(tmp_path)] == [(1, "finished"), (2, "finished")]
