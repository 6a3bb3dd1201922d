"""How a run ends: FINISHED, FAILED with its traceback, or KILLED by a signal, whatever the store says to that."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import psutil

from edgequant import interruption
from edgequant.disk.faults import fault
from edgequant.errors import first_line
from edgequant.redaction import without_secrets
from edgequant.tracking.lifetime.heartbeat import close_runs
from edgequant.tracking.lifetime.process import this_process
from edgequant.tracking.store_errors import told_alone

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
CORRECTED_S = 0.2  # between two looks


@contextmanager
@interruption.uninterrupted
def ended_with_its_status(*run_ids: str) -> Iterator[None]:
    """End runs as FINISHED, FAILED or KILLED, whatever happens inside.

    Args:
        run_ids: the active run, and others that end with it.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        _end_without_masking(run_ids, KILLED)
        raise
    except BaseException:
        if interruption.received() is not None:  # what it ended by is the signal's doing
            _end_without_masking(run_ids, KILLED)
        else:
            _end_without_masking(run_ids, FAILED, without_secrets(traceback.format_exc()))
        raise
    else:
        for run_id in run_ids:
            _end(run_id, FINISHED)
            interruption.note_end(run_id, f"is {FINISHED}")


def end_own_runs() -> None:
    """End whatever this process has left open in the store as KILLED."""
    for run_id in close_runs(this_process()):
        interruption.note_end(run_id, f"is {KILLED}")


def keep_killed(run_id: str, launcher: int, seconds: float) -> None:
    """Write KILLED over what `mlflow run` says of its run; in a process that was forked for that.

    Args:
        launcher: the process of `mlflow run`; once it has ended, it says nothing more.
        seconds: to wait for that.
    """
    client, until = mlflow.MlflowClient(), time.monotonic() + seconds
    engine = getattr(client._tracking_client.store, "engine", None)
    if engine is not None:
        engine.dispose(close=False)  # its connections are the other process's
    while time.monotonic() < until:
        is_over = not psutil.pid_exists(launcher)
        if client.get_run(run_id).info.status != KILLED:
            client.set_terminated(run_id, KILLED)
        if is_over:
            return
        time.sleep(CORRECTED_S)


def _end(run_id: str, status: str) -> None:
    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        mlflow.end_run(status)
    else:
        mlflow.MlflowClient().set_terminated(run_id, status)


def _end_without_masking(run_ids: tuple[str, ...], status: str, traceback_text: str = "") -> None:
    """Where ending them fails too (a server that is gone), the first error stays the one that is told."""
    with told_alone("traceback.txt could not be filed with the run: {}"):
        if traceback_text:
            mlflow.MlflowClient().log_text(run_ids[0], traceback_text, "traceback.txt")
    for run_id in run_ids:
        try:
            _end(run_id, status)
            interruption.note_end(run_id, f"is {status}")
        except Exception as error:
            why = f"could not be ended in its store ({first_line(error)[:200]})"
            interruption.note_end(run_id, why)
            end = "the next workflow on this machine ends it, or --resume true goes on with it"
            if fault(error) is None:  # a disk's is what ended the run, and is told at its end
                print(f"run {run_id} {why}; {end}", file=sys.stderr, flush=True)
