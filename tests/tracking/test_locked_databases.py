"""A database that another process holds is waited for; ten first runs at once make one store."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import time
from contextlib import chdir
from pathlib import Path

import mlflow
import pytest

from edgequant import tracking
from edgequant.tracking import sqlite_locks
from edgequant.tracking.away import patience


@pytest.fixture(autouse=True)
def _patient_from_the_first_connection_on() -> None:
    """As in a process of edgequant; a store that a fixture opened before would keep its own patience."""
    sqlite_locks.install()


def held(database: Path, seconds: float, begin: str) -> threading.Thread:
    """Another writer, or a reader whose answer is not read to its end."""
    ready = threading.Event()

    def hold() -> None:
        opened = sqlite3.connect(database, isolation_level=None)
        opened.execute(begin)
        rows = opened.execute("SELECT * FROM alembic_version UNION ALL SELECT name FROM sqlite_master")
        rows.fetchone()
        ready.set()
        time.sleep(seconds)
        rows.close()
        opened.rollback()
        opened.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert ready.wait(10)
    return thread


@pytest.mark.parametrize("begin", ["BEGIN EXCLUSIVE", "BEGIN IMMEDIATE", "BEGIN"])
def test_a_run_outlives_a_database_that_is_locked_for_longer_than_a_try(store, tmp_path, monkeypatch, begin):
    monkeypatch.setattr(sqlite_locks, "TRY_MS", 50)
    with tracking.workflow_run("qat", {"model": "tiny"}) as run:
        other = held(tmp_path / "mlflow.db", 1.0, begin)
        for step in range(3):
            tracking.log_metrics({"train/loss": 1.0}, step=step)
        other.join()
    assert len(store.get_metric_history(run.id, "train/loss")) == 3
    assert store.get_run(run.id).info.status == "FINISHED"


@pytest.mark.long
def test_a_database_that_stays_locked_is_told_when_patience_is_over(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_locks, "TRY_MS", 50)
    tracking.client()
    other = held(tmp_path / "mlflow.db", 4.0, "BEGIN EXCLUSIVE")
    monkeypatch.setenv(patience.VARIABLE, "0.3")
    with pytest.raises(mlflow.exceptions.MlflowException, match="database is locked"):
        tracking.client().search_experiments()
    other.join()


def first_run(folder: str, go) -> None:
    with chdir(folder):
        go.wait(30)
        with tracking.workflow_run("qat", {"model": "tiny"}):
            tracking.log_metrics({"train/loss": 1.0}, step=1)


@pytest.mark.long
def test_ten_first_runs_at_once_all_succeed_in_one_experiment(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    forked = multiprocessing.get_context("fork")
    go = forked.Event()
    runs = [forked.Process(target=first_run, args=(str(tmp_path), go)) for _ in range(10)]
    for run in runs:
        run.start()
    go.set()
    for run in runs:
        run.join(120)
    assert [run.exitcode for run in runs] == [0] * 10
    client = mlflow.MlflowClient(tracking_uri=uri)
    assert sorted(each.name for each in client.search_experiments()) == ["Default", "edgequant"]
    found = client.search_runs(["1"])
    assert len(found) == 10 and {run.info.status for run in found} == {"FINISHED"}
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlruns", "outputs"}
