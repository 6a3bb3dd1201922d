"""Figures of a process that holds nothing else: what they are, how such a process is run, its peak of memory. Light."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgequant.errors import UserError
from edgequant.machine.cores import as_llama_cpp_comes


class Alone(NamedTuple):
    """One repetition: seconds to load and warm up, to the first token and to the last; bytes of memory at the most.

    Attributes:
        load: from opening the file until one token was computed, with which the runtime warms up.
        peak_rss: of the whole process, the interpreter's 10 MB or so with it.
    """

    load: float
    first_token: float
    total: float
    new_tokens: int
    peak_rss: int


class Killed(UserError):
    """A process that was to tell figures was ended by a signal."""


def run_alone(module: str, asked: dict[str, Any], within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a module with what is asked for as its one argument, in JSON; `within`: a command that runs it."""
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    environment = as_llama_cpp_comes() | {"PYTHONPATH": paths}
    command = [*within, sys.executable, "-m", module, json.dumps(asked)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def figures_alone(module: str, asked: dict[str, Any], runtime: str, within: Sequence[str] = ()) -> Alone:
    """What the module printed last.

    Raises:
        Killed: a signal ended the process.
        UserError: the process found no figures; its last line says why.
    """
    done = run_alone(module, asked, within)
    if done.returncode:
        refusal = Killed if done.returncode < 0 else UserError
        told = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise refusal(f"{Path(asked['path']).name} could not be timed in {runtime}: {told}")
    return Alone(**json.loads(done.stdout.splitlines()[-1]))


def tell_figures(timed: Callable[..., Alone]) -> None:
    """What the module that `run_alone` started does: print the figures of what is asked for, or end with why not."""
    try:
        print(json.dumps(timed(**json.loads(sys.argv[1]))._asdict()))
    except UserError as error:
        sys.exit(str(error))


def peak_rss() -> int:
    """Linux's ru_maxrss is inherited from whoever started the process; VmHWM is this process's own."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
