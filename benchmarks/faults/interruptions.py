"""kill -9 and signals at random moments, then the same command again."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random
from typing import Any

from faults.entry_points import EntryPoint
from faults.forking import Child, Ended
from faults.outcome import Outcome, Reference, ended_processes, judge, last_line, runs_between
from faults.places import Place, Run, leave_files

START_S = 8.0  # of a process that imports everything itself
STOPS_WITHIN_S = 10.0
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
LATE, ATTEMPTS = " (after its end)", 4
TWICE = 0.15  # share of kills after which the second command is killed as well
GROUP = 0.5  # share of kills that take everything the command has started along, as an ended container does


def killed(
    entry: EntryPoint, place: Place, template: Path, known: Reference, draw: Random, mark: str, anew: bool
) -> dict[str, Any]:
    """One try: kill -9 at a random moment, in some tries of the second command as well."""
    theirs, child, moment = _running(entry, place, template, known, draw, mark, anew)
    moments = [f"{moment}{_killed(child, draw)}"]
    if draw.random() < TWICE:
        before = runs_between(place, known.earlier)
        at, child = _moment(known, draw, anew), place.begin(entry.command(again=True), mark, anew=anew)
        ended = child.wait(at)
        moments.append(f"{at:.2f} s{LATE if ended is not None else _killed(child, draw)}")
        if ended is not None:
            return looked_at(entry, place, known, theirs, mark, before, ended, [], {"at": moments, "of": known.seconds})
    return given_again(entry, place, known, theirs, mark, anew, [], {"at": moments, "of": known.seconds})


def _killed(child: Child, draw: Random) -> str:
    group = draw.random() < GROUP
    child.send(signal.SIGKILL, all_of_it=group)
    child.wait(30)
    return ", all that it started too" if group else ""


def signalled(
    entry: EntryPoint, place: Place, template: Path, known: Reference, draw: Random, mark: str, anew: bool
) -> dict[str, Any]:
    """One try: SIGINT, SIGTERM or SIGHUP at a random moment, once."""
    name = draw.choice(SIGNALS)
    theirs, child, moment = _running(entry, place, template, known, draw, mark, anew)
    number = signal.Signals[name]
    child.send(number)
    ended = child.wait(STOPS_WITHIN_S)
    runs = runs_between(place, known.earlier)
    lost = [] if moment.endswith(LATE) else _after_signal(child, ended, number, runs, entry)
    said = "" if ended is None else last_line(ended.said)
    about = {"at": [moment], "of": known.seconds, "signal": name, "said": said}
    return given_again(entry, place, known, theirs, mark, anew, lost, about)


def _running(
    entry: EntryPoint, place: Place, template: Path, known: Reference, draw: Random, mark: str, anew: bool
) -> tuple[dict[str, str], Child, str]:
    """A user's files, a command that runs at a random moment, and the moment; begun afresh where it was faster."""
    for _ in range(ATTEMPTS):
        place.like(template)
        theirs, at = leave_files(place), _moment(known, draw, anew)
        child = place.begin(entry.command(), mark, anew=anew)
        if child.wait(at) is None:
            return theirs, child, f"{at:.2f} s"
    return theirs, child, f"{at:.2f} s{LATE}"


def _moment(known: Reference, draw: Random, anew: bool) -> float:
    return draw.uniform(0, 0.97 * known.seconds + (START_S if anew and known.seconds < START_S else 0))


def _after_signal(
    child: Child, ended: Ended | None, number: signal.Signals, found: list[Run], entry: EntryPoint
) -> list[str]:
    if ended is None:
        child.end()
        return [f"still there {STOPS_WITHIN_S:.0f} s after {number.name}"]
    runs = [run for run in found if run.workflow == entry.name and not run.parent]
    if ended.status == 0 and runs and runs[-1].status == "FINISHED":
        return []  # it came when all was done
    lost = [] if ended.as_shell == 128 + number else [f"exit status {ended.as_shell} after {number.name}"]
    lost += [f"run {run.title} is {run.status} after {number.name}" for run in found if run.status == "RUNNING"]
    if not tells_how_to_go_on(ended.said, entry):
        lost.append(f"{number.name}: no line says how to continue: {last_line(ended.said)}")
    if "Traceback" in ended.said:
        lost.append(f"{number.name}: a traceback: {last_line(ended.said)}")
    return lost


def tells_how_to_go_on(said: str, entry: EntryPoint) -> bool:
    """Whether the last lines name the way: `--resume true`, or the same command again."""
    told = "\n".join(said.strip().splitlines()[-3:])
    return "--resume" in told if entry.resumes else "again" in told


def given_again(
    entry: EntryPoint, place: Place, known: Reference, theirs: dict[str, str], mark: str, anew: bool, lost: list[str],
    about: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    before = runs_between(place, known.earlier)
    try:
        ended: Ended | None = place.run(entry.command(again=True), mark, anew=anew)
    except TimeoutError:
        ended = None
    return looked_at(entry, place, known, theirs, mark, before, ended, lost, about)


def looked_at(
    entry: EntryPoint, place: Place, known: Reference, theirs: dict[str, str], mark: str, before: list[Run],
    ended: Ended | None, lost: list[str], about: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    left = ended_processes(mark)
    found = judge(entry, place, known, theirs, before, ended)
    return about | Outcome(lost + found.lost, found.litter + left)._asdict()
