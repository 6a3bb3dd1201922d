"""`program`, which a shell starts: watches over signals from its first moment on, and tells how to go on. Light."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import traceback
from functools import partial
from typing import NoReturn

from edgequant import commands, interruption  # looks at the environment before MLflow changes it
from edgequant.machine.freed_memory import keep_freed
from edgequant.machine.other_work import wait_as_other_work_allows
from edgequant.redaction import without_secrets

RESUMED = ("baseline", "ptq", "qat", "finetune", "evaluate", "tune", "pipeline")  # workflows with an option `resume`
LAUNCHED = "MLFLOW_RUN_ID"  # the run that `mlflow run` has made for this process
ENDING = "edgequant.tracking.lifetime.ending"
CORRECTING_S = 10
LOST = 120  # Python's own status where the last of the output could not be written
# Between looks for garbage: among a million objects of MLflow and torch they took a tenth of a short run.
SELDOM = (50_000, 20, 50)


def program() -> NoReturn:
    """`run`, then the end of the process: what libraries have registered for it is done, and no more. Taking apart
    every object of torch and MLflow one by one would take seconds."""
    ended: list[int] = []
    atexit.register(_leave, ended)  # the first that is registered is the last that is done
    ended.append(run())
    sys.exit(ended[0])


def _leave(ended: list[int]) -> None:
    if ended:
        lost = _flush()
        if lost is not None:
            told = f"edgequant: output was lost: {lost.strerror}; make room where it goes, then start it again\n"
            with contextlib.suppress(OSError):
                os.write(2, told.encode())
        os._exit(ended[0] or (LOST if lost else 0))


def _flush() -> OSError | None:
    """Returns the fault that kept output back; a reader who has left is none."""
    fault = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):  # closed at the other end, or here
            pass
        except OSError as error:
            fault = error
    return fault


def run() -> int:
    """The command line for a shell, where 1 means that a workflow says no, 2 that an error ended it, 128 + n signal n.

    An error that nobody foresaw keeps its traceback; a signal's end is told in one line.
    """
    gc.set_threshold(*SELDOM)
    keep_freed()
    if sys.argv[1:2] and sys.argv[1] in RESUMED:  # those that compute
        wait_as_other_work_allows()
    launched = os.environ.get(LAUNCHED)
    last = None if launched is None else partial(_keep_killed, launched, os.getppid())
    watch = interruption.Watch(line=_how_to_go_on, last=last)
    status = _status(watch, launched)
    if watch.number is None or (status == 0 and not watch.is_raised):
        _flush()
        watch.stop(lambda *_: os._exit(status))  # all is done: what libraries do at the end may be cut short
        return status
    watch.end(atexit._run_exitfuncs)


def _status(watch: interruption.Watch, launched: str | None) -> int:
    try:
        watch.begin()
        if launched is not None:
            _end_with_parent()
        return int(
            importlib.import_module("edgequant.__main__").main()
        )  # by name: it starts this where it is the program
    except interruption.Interrupted as error:
        return int(error.code or 0)
    except SystemExit:
        if watch.number is None:
            watch.stop(signal.SIG_DFL)
            raise
        return 2
    except Exception as error:
        if watch.number is None:
            print(_of_another_python(error) or without_secrets(traceback.format_exc()), file=sys.stderr, end="")
        return 2


def _of_another_python(error: Exception) -> str:
    """One line where a package is missing altogether: `mlflow run` takes the first Python in PATH, whichever it is."""
    name = error.name if isinstance(error, ModuleNotFoundError) and error.name else "."
    if "." in name or importlib.util.find_spec(name) is not None:
        return ""
    return (
        f"edgequant: {sys.executable} has no package {name!r}, which edgequant needs; put the folder of the Python "
        "that edgequant is installed for first in PATH (of `make setup`: `source .venv/bin/activate`), or install it "
        "there\n"
    )


def _end_with_parent() -> None:
    """Get SIGTERM when `mlflow run` ends, where the system can tell (Linux): it passes no signal on."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _keep_killed(run_id: str, launcher: int) -> None:
    """`mlflow run` writes FAILED over whatever its run ended as: a process that outlives this one by a moment, and
    takes no part in its input and output, writes KILLED again."""
    if ENDING not in sys.modules:  # interrupted on the way there; what is half imported is of no use to a fork
        code = f"from edgequant.command_line import shell; shell.keep_killed({run_id!r}, {launcher})"
        nowhere = subprocess.DEVNULL
        subprocess.Popen(
            [sys.executable, "-c", code], start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere
        )
    elif not os.fork():
        os.setsid()
        stream = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(stream, number)
        keep_killed(run_id, launcher)


def keep_killed(run_id: str, launcher: int) -> NoReturn:
    """Until the process of `mlflow run` has ended, in a process of its own."""
    signal.alarm(2 * CORRECTING_S)
    try:
        importlib.import_module(ENDING).keep_killed(run_id, launcher, CORRECTING_S)
    finally:
        os._exit(0)


def _how_to_go_on() -> str:
    """`edgequant qat: interrupted by SIGTERM; run 1f… is KILLED; go on with ...`: one line."""
    name, *options = sys.argv[1:] or [""]
    by = signal.Signals(interruption.received() or signal.SIGINT).name
    told = "; ".join(interruption.told()) or "no run had begun"
    if name in RESUMED:
        return f"edgequant {name}: interrupted by {by}; {told}; go on with {_command(name, *_resumed(options))}"
    return f"edgequant {name}: interrupted by {by}; {told}; start it again with {_command(name, *options)}"


def _command(*words: str) -> str:
    return commands.runnable(shlex.join(("edgequant", *filter(None, words)))).replace("\n", " ")


def _resumed(options: list[str]) -> list[str]:
    """The same options with `--resume true`, wherever it was said to be something else."""
    kept, words = [], iter(options)
    for word in words:
        if word == "--resume":
            next(words, None)
        elif not word.startswith("--resume="):
            kept.append(word)
    return [*kept, "--resume", "true"]
