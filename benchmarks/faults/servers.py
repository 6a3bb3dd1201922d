"""A tracking server that is cut off, says 503, hangs or is gone; a store that is locked by another process, or new."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.request import urlopen

from faults.entry_points import EntryPoint
from faults.forking import MARK, Child, Ended
from faults.interruptions import STOPS_WITHIN_S
from faults.outcome import Outcome, Reference, ended_processes, last_line, shortened
from faults.places import Place, Run, leave_files, left_by, runs_of, touched

MOST_LINES = 60  # that a command may print whose server is gone
ENDS_WITHIN_S = 540.0


class Fault(NamedTuple):
    """What happens at a random moment, for how many seconds (None: for good), and whether a SIGTERM follows."""

    mode: str
    seconds: float | None
    stopped: bool = False


FAULTS = {
    "away for 5 s": Fault("away", 5), "503 for 5 s": Fault("503", 5), "hanging for 5 s": Fault("hang", 5),
    "away for 5 minutes": Fault("away", 300), "gone for good": Fault("away", None),
    "hanging for good": Fault("hang", None), "SIGTERM while it is away": Fault("away", None, stopped=True),
    "store locked for 5 s": Fault("locked", 5), "store locked for 60 s": Fault("locked", 60),
    "two first runs in a new store": Fault("new", None),
}  # fmt: skip


class Server(NamedTuple):
    """An MLflow server, the proxy before it, and the file that says what the proxy does."""

    address: str
    database: Path
    told: Path


@contextmanager
def server(folder: Path, empty_store: Path) -> Iterator[Server]:
    """Both run until the end of the block."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    port, before, told = _free_port(), _free_port(), folder / "told"
    told.write_text("pass")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1",
               "--artifacts-destination", str(folder / "artifacts"), "--port", str(port)]  # fmt: skip
    proxy = [sys.executable, str(Path(__file__).with_name("proxy.py")), str(before), str(port), str(told)]
    with (folder / "log").open("wb") as log:
        options: dict[str, Any] = {"cwd": folder, "stdout": log, "stderr": log, "start_new_session": True}
        options["env"] = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        processes = [subprocess.Popen(each, **options) for each in (command, proxy)]
    try:
        _wait(f"http://127.0.0.1:{before}/health", folder / "log")
        yield Server(f"http://127.0.0.1:{before}", folder / "mlflow.db", told)
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(address: str, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urlopen(address, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.3)
    raise TimeoutError(f"the server does not answer: {log.read_text()[-1000:]}")


def unserved(
    name: str, entry: EntryPoint, place: Place, template: Path, known: Reference, there: Server, draw: Random, mark: str
) -> dict[str, Any]:
    """One try with a server: the fault at a random moment; where the command did not end well, it is given again."""
    fault, at = FAULTS[name], draw.uniform(0.1, 0.95) * known.seconds
    place.like(template)
    theirs, where = leave_files(place), {"MLFLOW_TRACKING_URI": there.address, MARK: mark}
    named = ["--experiment", f"{mark}-{time.time_ns()}"]
    child = place.begin([*entry.command(), *named], mark, **where)
    child.wait(at)
    there.told.write_text(fault.mode)
    lost, ended = _while_away(child, fault, there)
    about = {"at": at, "of": known.seconds, "said": "" if ended is None else last_line(ended.said)}
    there.told.write_text("pass")
    if ended is not None and (ended.status != 0 or fault.seconds is None):
        ended = place.run([*entry.command(again=True), *named], mark, **where)
    lost += [] if ended is not None and ended.status == 0 else [f"it ends with {_status(ended)}"]
    runs = runs_of(there.database, named[1])
    lost += _differing(place, known, runs) + [f"a user's file is gone: {name}" for name in touched(place, theirs)]
    return about | Outcome(lost, ended_processes(mark))._asdict()


def _while_away(child: Child, fault: Fault, there: Server) -> tuple[list[str], Ended | None]:
    """What is lost while the server is away, and how the command ended."""
    if fault.stopped:
        child.wait(1)
        child.send(signal.SIGTERM)
        ended = child.wait(STOPS_WITHIN_S)
        if ended is None:
            return [f"still there {STOPS_WITHIN_S:.0f} s after SIGTERM"], child.end()
        return ([] if ended.as_shell in (0, 143) else [f"exit status {ended.as_shell} after SIGTERM"]), ended
    if fault.seconds is not None:
        child.wait(fault.seconds)
        there.told.write_text("pass")
    ended = child.wait(ENDS_WITHIN_S)
    if ended is None:
        return [f"still there after {ENDS_WITHIN_S:.0f} s"], child.end()
    lost = [] if len(ended.said.splitlines()) <= MOST_LINES else [f"{len(ended.said.splitlines())} lines are printed"]
    lost += ["a traceback"] if "Traceback" in ended.said else []
    if fault.seconds is not None and ended.status != 0:
        lost.append(f"a fault of {fault.seconds:.0f} s ends it with {ended.status}: {last_line(ended.said)}")
    return lost, ended


def _status(ended: Ended | None) -> str:
    return "nothing" if ended is None else f"{ended.status}: {last_line(ended.said)}"


def _differing(place: Place, known: Reference, runs: list[Run]) -> list[str]:
    """Results and figures that are not those of the undisturbed command."""
    found = left_by(place, runs)
    expected = {
        name: value
        for name, value in known.stable.items()
        if name.startswith(("work/made/", "run qat", "run b", "run ptq"))
    }
    lost = [
        f"{name} {'differs' if name in found else 'is missing'}"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    running = [run.title for run in runs if run.status == "RUNNING"]
    return [*shortened(lost), *(f"a run is still RUNNING: {title}" for title in running)]


def locked(
    name: str, entry: EntryPoint, place: Place, template: Path, known: Reference, draw: Random, mark: str
) -> dict[str, Any]:
    """One try: another process holds the store's write lock for a while."""
    place.like(template)
    at, seconds = draw.uniform(0.1, 0.9) * known.seconds, FAULTS[name].seconds
    child = place.begin(entry.command(), mark)
    child.wait(at)
    with closing(sqlite3.connect(place.database, timeout=30, isolation_level=None)) as store:
        store.execute("BEGIN IMMEDIATE")
        child.wait(seconds or 0)
        store.execute("ROLLBACK")
    ended = child.wait(300) or child.end()
    lost = [] if ended.status == 0 else [f"it ends with {_status(ended)}"]
    lost += _differing(place, known, runs_of(place.database, but=known.earlier))
    return {"at": at, "said": last_line(ended.said)} | Outcome(lost, ended_processes(mark))._asdict()


def first_at_once(entry: EntryPoint, place: Place, template: Path, draw: Random, mark: str) -> dict[str, Any]:
    """One try: two commands begin where there is no store yet."""
    place.like(template)
    place.database.unlink()
    commands = [[*entry.command(), "--output", name] for name in ("made", "made-too")]
    children = [place.begin(command, mark, log=command[-1]) for command in commands]
    ends = [child.wait(180) or child.end() for child in children]
    lost = [f"one of two ends with {_status(end)}" for end in ends if end.status != 0]
    runs = [run for run in runs_of(place.database) if run.workflow == entry.name and not run.parent]
    lost += [] if [run.status for run in runs] == ["FINISHED"] * 2 else [f"runs are {[run.status for run in runs]}"]
    return {"of": draw.random()} | Outcome(lost, ended_processes(mark))._asdict()
