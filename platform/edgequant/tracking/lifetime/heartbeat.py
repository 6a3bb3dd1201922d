"""A run's signs of life: a tag that its process writes anew every few seconds, watched where that process is not seen.

No clocks are compared: whoever watches waits whether the tag changes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import mlflow
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.rest_utils import http_request

from edgequant import interruption
from edgequant.tracking.search import client, search_runs

TAG = "edgequant.heartbeat"
PROCESS_TAG = "edgequant.process"
BEAT_S = 10.0
SILENT_S = 35.0  # three beats and a slow store: a process that has not written for so long is gone
ORPHANED_S = 600.0  # the same, where nobody asks to go on and a server may have been away
WATCH_S = 1.0
STOP_S = 2.0


def sign() -> str:
    """A sign of life: no two are the same."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@contextlib.contextmanager
def beating(run_id: str, process: str, unseen: set[str]) -> Iterator[None]:
    """Inside, a run shows that its process lives; a store that is away, or a process that was stopped, makes a gap.

    Args:
        process: this one's name.
        unseen: processes with open runs that cannot be seen from here: runs of those that give no sign are closed.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(run_id, process, unseen, ended), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(STOP_S)


def _beat(run_id: str, process: str, unseen: set[str], ended: threading.Event) -> None:
    last = began = time.monotonic()
    known: dict[str, str] = {}
    while not ended.wait(BEAT_S):
        with contextlib.suppress(Exception):  # of whichever library speaks to the store: the next beat tries again
            if time.monotonic() > last + SILENT_S and _is_anothers(run_id, process):
                interruption.leave(f"run {run_id} goes on in another process, as this one stood still; it ends here")
            _set_tag(run_id, TAG, sign())
            last = time.monotonic()
            known = known or {one: last_sign(one) for one in unseen}
            if known and last > began + ORPHANED_S:
                for one in (one for one, sign in known.items() if last_sign(one) == sign):
                    close_runs(one)
                known, unseen = {}, set()


def _is_anothers(run_id: str, process: str) -> bool:
    """Whether another process goes on with the run: this one stood still for so long that it was taken for dead."""
    return client().get_run(run_id).data.tags.get(PROCESS_TAG) != process


def _set_tag(run_id: str, name: str, value: str) -> None:
    """At once or not at all: MLflow's own call to a server that is away would repeat itself for minutes."""
    store = client()._tracking_client.store
    if not isinstance(store, RestStore):
        client().set_tag(run_id, name, value)
        return
    body = {"run_id": run_id, "run_uuid": run_id, "key": name, "value": value}
    http_request(
        store.get_host_creds(), "/api/2.0/mlflow/runs/set-tag", "POST", json=body, max_retries=0, timeout=BEAT_S
    )


def last_sign(process: str) -> str:
    """The last sign of life of a process's runs; empty where there is none."""
    runs = search_runs(f"tags.`{PROCESS_TAG}` = '{process}' and tags.`{TAG}` LIKE '%'")
    return max((run.data.tags.get(TAG, "") for run in runs), default="")


def gives_signs(process: str) -> bool:
    """Watch a process that cannot be seen from here; True as soon as it gives a sign, False after SILENT_S."""
    first, until = last_sign(process), time.monotonic() + SILENT_S
    while time.monotonic() < until:
        time.sleep(min(WATCH_S, SILENT_S / 5))
        if last_sign(process) != first:
            return True
    return False


def seconds_since(sign: str) -> int:
    """How long ago a sign of life was given, by this machine's clock."""
    try:
        return max(0, round((datetime.now(UTC) - datetime.fromisoformat(sign)).total_seconds()))
    except ValueError:
        return 0


def close_runs(process: str, *, but: str | None = None) -> list[str]:
    """End all open runs of a process, but one, as KILLED; returns their ids."""
    found = search_runs(f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` = '{process}'")
    closed = [run.info.run_id for run in found if run.info.run_id != but]
    for run_id in closed:
        mlflow.MlflowClient().set_terminated(run_id, "KILLED")
    return closed
