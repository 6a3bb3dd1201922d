"""Processes of the command line that start within milliseconds: forked from one that has imported everything.

    python forking.py                     reads orders from stdin, a JSON object a line, and answers each with one

An order: `arguments` of the command line, `folder` to work in, `environment` and `constants` (`module:NAME`) that
change; `at`, a function as `module:name` in which the process is when its moment has come, after `calls` of it; or
nothing. At that moment it gets `signals`, numbers, with `between` seconds between them, but for those that are
`ignored` from the start; `hold` seconds pass, `deaf`ly: with no chance for a handler. The answer: `status`, `stdout`,
`stderr`, and of these what came after the first signal, `last_words`; `seconds` from there to the end; how many of the
processes that it had started were `left`.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

LEFT_S = 5.0
ENDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PRELOADED = (
    *("mlflow", "torch", "transformers", "edgequant.__main__", "edgequant.training.loop", "edgequant.api"),
    *(
        "edgequant.tracking",
        "edgequant.workflows.finetune",
        "edgequant.workflows.ptq",
        "edgequant.workflows.steps.data",
    ),
    *("edgequant.evaluation.suite", "edgequant.workflows.steps.summary", "edgequant.workflows.steps.register"),
    *("edgequant.workflows.adaptation.selection", "mlflow.store.tracking.sqlalchemy_store", "peft", "pandas"),
)


class Forking:
    """The process that forks, seen from a test."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments: str, folder: Any, **order: Any) -> dict[str, Any]:
        order |= {"arguments": list(arguments), "folder": str(folder)}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.kill()  # it has nothing to clean up, which takes seconds with all that it has imported
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(_done(json.loads(line))), flush=True)


def _done(order: dict[str, Any]) -> dict[str, Any]:
    files = {name: os.path.join(order["folder"], f"{name}.txt") for name in ("stdout", "stderr")}
    for path in files.values():
        Path(path).write_bytes(b"")
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(ready)
        _be(order, files, tell)
    os.close(tell)
    if "at" in order:
        os.read(ready, 1)
    started = psutil.Process(child).children(recursive=True)
    before, began = os.path.getsize(files["stderr"]), time.monotonic()
    for number in order.get("signals", ()):
        try:
            os.kill(child, number)
        except ProcessLookupError:
            break
        time.sleep(order.get("between", 0))
    _, status = os.waitpid(child, 0)
    os.close(ready)
    took = time.monotonic() - began
    _, left = psutil.wait_procs(started, timeout=LEFT_S)
    said = {name: Path(path).read_bytes() for name, path in files.items()}
    said["last_words"] = said["stderr"][before:]
    told = {name: text.decode(errors="replace") for name, text in said.items()}
    return {"status": os.waitstatus_to_exitcode(status), "seconds": took, "left": len(left), **told}


def _be(order: dict[str, Any], files: dict[str, str], tell: int) -> None:
    """The process of the command line; never returns."""
    status = 70
    try:
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        for number in order.get("ignored", ()):
            signal.signal(number, signal.SIG_IGN)
        os.chdir(order["folder"])
        os.environ.update(order.get("environment", {}))
        sys.argv = ["edgequant", *order["arguments"]]
        for name, value in order.get("constants", {}).items():
            module, _, constant = name.partition(":")
            setattr(importlib.import_module(module), constant, value)
        if "at" in order:
            _stop_at(order, tell)
        from edgequant.command_line.shell import run

        status = run()
        sys.stdout.flush()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _stop_at(order: dict[str, Any], tell: int) -> None:
    module, _, name = order["at"].partition(":")
    owner: Any = importlib.import_module(module)
    *classes, function_name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function, left = getattr(owner, function_name), [order.get("calls", 0)]

    @functools.wraps(function)
    def told(*given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            os.write(tell, b"!")
            _pass(order.get("hold", 0.3), deaf=order.get("deaf", False))
        return function(*given, **more)

    told.__module__ = function.__module__
    setattr(owner, function_name, told)


def _pass(seconds: float, *, deaf: bool) -> None:
    until, ended = time.monotonic() + seconds, ENDED if deaf else ()
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)
    while time.monotonic() < until:
        time.sleep(0.05)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ended)


if __name__ == "__main__":
    main()
