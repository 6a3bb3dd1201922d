"""Commands as the user's shell runs them: the environment's programs are often not on its PATH."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

OURS = ("edgequant", "mlflow")
# make puts .venv/bin on the PATH of its commands, and MLflow an environment's of a project run: the shell has neither
# and MLflow takes its variable away when the run begins, so that they are looked at before
STARTED_BY = [name for name in ("MAKELEVEL", "MLFLOW_RUN_ID") if name in os.environ]


def runnable(command: str) -> str:
    """A command that begins with one of our programs, written so that it runs where the user stands.

    `edgequant report` stays as it is where the shell finds that program, and becomes `.venv/bin/edgequant report` where
    it lies in an environment that is not activated, or `PYTHONPATH=... python -m edgequant report` where only the
    sources are there, as in the environment that `mlflow run` makes. `open page.html` takes the program that shows
    pages here. Any other command is returned unchanged.
    """
    program, _, rest = command.partition(" ")
    if program == "open":
        return f"{_viewer()} {rest}"
    if program not in OURS or _is_on_path(program):
        return command
    beside = Path(sys.executable).parent / program
    begun = shlex.quote(_from_here(beside)) if beside.is_file() else _as_module(program)
    return f"{begun} {rest}".rstrip()


def with_runnable(text: str) -> str:
    """A message with the commands that stand in it between backticks as `runnable` writes them."""
    return re.sub(r"`([a-z]+ [^`]+)`", lambda found: f"`{runnable(found[1])}`", text)


def _viewer() -> str:
    """What shows a page: a desktop's xdg-open, macOS' open, or else the browser that Python finds."""
    found = next((name for name in ("xdg-open", "open") if shutil.which(name)), None)
    return found or f"{shlex.quote(_from_here(Path(sys.executable)))} -m webbrowser"


def _is_on_path(program: str) -> bool:
    """Whether the shell finds this environment's program; unknown where somebody changed the PATH in between."""
    found = shutil.which(program)
    if found is None or STARTED_BY:
        return False
    return Path(found).absolute().parent == Path(sys.executable).absolute().parent


def _as_module(program: str) -> str:
    places = [_from_here(Path(entry)) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    shown = f"PYTHONPATH={shlex.quote(os.pathsep.join(dict.fromkeys(places)))} " if places else ""
    return f"{shown}{shlex.quote(_from_here(Path(sys.executable)))} -m {program}"


def _from_here(path: Path) -> str:
    """Relative to the working directory where it lies in it; no link is followed, which would leave the environment."""
    here, there = Path.cwd(), Path(os.path.abspath(path))
    return str(there.relative_to(here)) if there.is_relative_to(here) else str(there)
