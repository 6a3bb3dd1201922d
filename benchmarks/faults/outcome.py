"""What is looked at after a try: everything that an undisturbed run leaves, to the byte, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from faults.entry_points import EntryPoint
from faults.forking import Ended, left_running
from faults.places import Place, Run, is_sound, leave_files, left_by, runs_of, touched

TOLD = "traceback.txt"  # of a first attempt that failed; its run has it rightly
KEPT = "cache/scores/"  # of what was measured, by its folder, which has the run's id: for the next measurement
SHOWN = 4  # of the same kind of loss, in a record
GONE_S = 3.0  # in which what a command has started ends with it


class Reference(NamedTuple):
    """Two undisturbed runs.

    Attributes:
        seconds: of the second one.
        stable: what both have left alike.
        names: all that one of them has left.
        earlier: ids of runs that were in the store before.
    """

    seconds: float
    stable: dict[str, Any]
    names: frozenset[str]
    earlier: frozenset[str]


class Outcome(NamedTuple):
    """What was lost, and what was left lying about."""

    lost: list[str]
    litter: list[str]


def reference(entry: EntryPoint, place: Place, template: Path) -> Reference:
    """Run an entry point twice without disturbing it.

    Raises:
        RuntimeError: it fails, or leaves nothing twice alike.
    """
    anew = entry.name == "tune"
    earlier = frozenset(run.id for run in runs_of(template / "work" / "mlflow.db"))
    found: list[dict[str, Any]] = []
    for _ in range(2):
        place.like(template)
        leave_files(place)
        ended = place.run(entry.command(), "reference", anew=anew)
        if ended.status != 0:
            raise RuntimeError(f"{entry.name} ended with {ended.status} undisturbed:\n{ended.said[-3000:]}")
        found.append(left_by(place, runs_of(place.database, but=earlier)))
    stable = {name: value for name, value in found[0].items() if found[1].get(name) == value}
    made = [name for name in stable if name.startswith("work/made") or name.startswith(("run ", "registry "))]
    if not made:
        raise RuntimeError(f"{entry.name} leaves nothing that two runs have alike")
    return Reference(ended.seconds, stable, frozenset(found[0]) | frozenset(found[1]), earlier)


def judge(
    entry: EntryPoint, place: Place, known: Reference, theirs: dict[str, str], before: list[Run], ended: Ended | None
) -> Outcome:
    """Look at a place after the command was given again.

    Args:
        before: runs as they were between the disturbance and that.
        ended: how that second command ended; None: it did not.
    """
    if ended is None:
        return Outcome([f"{entry.name} given again does not end"], [])
    lost = [] if ended.status == 0 else [f"given again it ends with {ended.status}: {last_line(ended.said)}"]
    lost += [f"a user's file is gone or changed: {name}" for name in touched(place, theirs)]
    if not is_sound(place.database):
        return Outcome([*lost, "the store is damaged"], [])
    runs = runs_of(place.database, but=known.earlier)
    lost += runs_lost(entry, runs, before)
    found = left_by(place, runs)
    differing = [name for name, value in known.stable.items() if found.get(name) != value]
    lost += shortened([f"{name} {'differs' if name in found else 'is missing'}" for name in differing])
    extra = [name for name in found if name not in known.names and not name.startswith(("run ", KEPT))]
    return Outcome(lost, shortened(sorted(name for name in extra if not name.endswith(TOLD))))


def shortened(lines: list[str]) -> list[str]:
    """The first few, and how many more there are."""
    return lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def runs_lost(entry: EntryPoint, runs: list[Run], before: list[Run]) -> list[str]:
    """Runs that nobody will end, begun twice, or not gone on with."""
    lost = [f"a run is still {run.status}: {run.title}" for run in runs if run.status in ("RUNNING", "SCHEDULED")]
    nested = Counter((run.parent, run.workflow, *run.names) for run in runs if run.parent)
    lost += [
        f"nested run {'/'.join(filter(None, key[1:]))} is there {count} times"
        for key, count in nested.items()
        if count > 1
    ]
    cut = [run.id for run in before if run.workflow == entry.name and not run.parent and run.status != "FINISHED"]
    ended = {run.id for run in runs if run.status == "FINISHED"}
    if entry.resumes and cut and not ended & {*cut}:
        lost.append("the interrupted run was not gone on with")
    return lost


def last_line(said: str) -> str:
    """Of what a command printed."""
    lines = said.strip().splitlines()
    return lines[-1][:300] if lines else "(nothing)"


def runs_between(place: Place, but: Collection[str] = ()) -> list[Run]:
    """Runs after a disturbance; none where there is no store yet."""
    with contextlib.suppress(sqlite3.Error):
        return runs_of(place.database, but=but)
    return []


def ended_processes(mark: str) -> list[str]:
    """What a try has left running is told, and ended."""
    until = time.monotonic() + GONE_S
    while left_running(mark) and time.monotonic() < until:
        time.sleep(0.1)
    found = left_running(mark)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [f"process {command}" for command in found.values()]
