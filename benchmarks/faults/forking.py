"""Commands of edgequant as forks of one process that has imported everything: a try costs its work, not its imports.

The parent never computes and starts no thread, so that a fork is whole. A child is a session of its own; it begins at
the command line's own entry point, its streams go to a file, and it ends as a Python process does.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
import tomllib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

MARK = "EDGEQUANT_FAULT_TRY"  # in the environment of all that a child starts
MODULES = "EDGEQUANT_FAULT_MODULES"  # file that receives the names of all modules that a child has imported
NOT_BEFORE_A_FORK = ("ray", "__main__", "faults", "onnxruntime")
# What a user's shell may hold and tests must not see.
UNSET = (
    "MLFLOW_RUN_ID",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_EXPERIMENT_ID",
    "EDGEQUANT_DATA",
    "MAKELEVEL",
)
QUIET = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1",
}  # fmt: skip
SOURCES = [str(Path(__file__).resolve().parents[2] / name) for name in ("platform", "tune", "registry")]
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
POLL_S = 0.005
DIES_WITH_ITS_PARENT = 1  # PR_SET_PDEATHSIG


class Ended(NamedTuple):
    """How a process ended: its exit status, negative for a signal; seconds that it took; what it said."""

    status: int
    seconds: float
    said: str

    @property
    def as_shell(self) -> int:
        """The status as a shell shows it."""
        return self.status if self.status >= 0 else 128 - self.status


class Child:
    """A command that runs, in a session of its own."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log, self.started = pid, log, time.monotonic()
        self.status: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.status is None:
            pid, raw = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status, self.seconds = os.waitstatus_to_exitcode(raw), time.monotonic() - self.started
        return self.status

    def wait(self, seconds: float) -> Ended | None:
        """How it ended; None where it still runs after so many seconds."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                return None
            time.sleep(POLL_S)
        return Ended(int(self.status or 0), self.seconds, self.log.read_text(errors="replace"))

    def send(self, number: int, *, all_of_it: bool = False) -> None:
        """A signal to the process alone, or to all of its session; none where it has ended."""
        if self.status is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if all_of_it else os.kill)(self.pid, number)

    def end(self) -> Ended:
        """Kill all of it and wait."""
        self.send(signal.SIGKILL, all_of_it=True)
        ended = self.wait(30)
        assert ended is not None
        return ended


def prepare(modules: Sequence[str]) -> None:
    """Import what commands import. Afterwards this process still has one thread.

    Raises:
        RuntimeError: an import has started a thread, with which a fork would not be whole.
    """
    for name in UNSET:
        os.environ.pop(name, None)
    os.environ.update(QUIET, PYTHONPATH=os.pathsep.join(SOURCES))
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # not sys.stderr, which loggers keep
    for name in (name for name in modules if not name.startswith(NOT_BEFORE_A_FORK)):
        with contextlib.suppress(Exception):  # what only a certain order of imports can load is loaded by the child
            importlib.import_module(name)
    os.dup2(kept, 2)
    for number in (kept, nowhere):
        os.close(number)
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    others = [name for name in names[1:] if name != "jemalloc_bg_thd"]  # pyarrow's, which jemalloc itself forks well
    if others:
        raise RuntimeError(f"threads run after the imports: {others}")


def fork(
    arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str], *, anew: bool = False
) -> Child:
    """Begin `edgequant ARGUMENTS` in a folder; what it says is added to `log`.

    Args:
        anew: as a process that imports everything itself, as a user's does.
    """
    return fork_function(lambda: _command_line(arguments, anew), folder, log, environment)


def fork_function(work: Callable[[], int], folder: Path, log: Path, environment: Mapping[str, str]) -> Child:
    """The same for a function, which returns an exit status."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _run(work, folder, log, environment)
    return Child(pid, log)


def _command_line(arguments: Sequence[str], anew: bool) -> int:
    if anew:
        os.execv(sys.executable, [sys.executable, "-m", "edgequant", *arguments])
    sys.argv = ["edgequant", *arguments]
    module, _, function = tomllib.loads(PROJECT.read_text())["project"]["scripts"]["edgequant"].partition(":")
    return int(getattr(importlib.import_module(module), function)())


def _run(work: Callable[[], int], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    """In the child: never returns."""
    status = 2
    try:
        _become(folder, log, environment)
        status = work()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        traceback.print_exc()
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(BaseException):
            _tell_modules()
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _tell_modules() -> None:
    if told := os.environ.get(MODULES):
        names = {*sys.modules} | {*(Path(told).read_text().split() if Path(told).exists() else ())}
        Path(told).write_text("\n".join(sorted(names)))


def _become(folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    """A process as a shell would have started it."""
    import numpy as np

    os.setsid()
    ctypes.CDLL(None).prctl(DIES_WITH_ITS_PARENT, signal.SIGKILL)  # so that an interrupted campaign leaves nobody
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        signal.signal(number, handler)
    os.chdir(folder)
    os.environ.update(environment)
    tempfile.tempdir = None
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, written), (2, written)):
        os.dup2(source, stream)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    np.random.seed(None)
    random.seed()


def left_running(mark: str) -> dict[int, str]:
    """Processes of a try that are still there: their command lines by id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found |= {int(entry.name): command[:100]} if command else {}
    return found
