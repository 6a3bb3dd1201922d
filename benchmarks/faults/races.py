"""Two promotions of one model at once: one of them wins, the other one says so, and the history holds both."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random
from typing import Any

from faults.entry_points import PROMOTE
from faults.forking import Ended
from faults.outcome import Outcome, ended_processes, runs_between
from faults.places import Place, is_sound, leave_files, registered, touched

OVERTAKEN = 3
KILLED_SHARE = 1 / 3
APART_S = 0.4  # at most, between the two beginnings


def raced(place: Place, template: Path, seconds: float, draw: Random, mark: str) -> dict[str, Any]:
    """One try: versions 1 and 2, or 2 twice, promoted at once; in a third of tries one of the two is killed."""
    place.like(template)
    theirs = leave_files(place)
    versions = draw.choice((("1", "2"), ("2", "1"), ("2", "2")))
    kills = draw.random() < KILLED_SHARE
    first = place.begin([*PROMOTE.split(), "--version", versions[0]], mark)
    early = first.wait(draw.uniform(0, APART_S))
    second = place.begin([*PROMOTE.split(), "--version", versions[1]], mark, log="said-second")
    if kills and early is None:
        first.wait(draw.uniform(0, seconds))
        first.send(signal.SIGKILL)
    ends = [first.wait(120), second.wait(120)]
    about = {"versions": versions, "killed": kills, "ended": [end.status if end else None for end in ends]}
    lost = _lost(ends, kills, versions, place)
    settled = place.run(
        [*PROMOTE.split(), "--version", "2"], mark
    )  # whatever was left half done is settled by the next one
    if settled.status != 0 or registered(place.database).get("edgequant-tiny@champion") != "2":
        lost.append(f"the next promotion ends with {settled.status}: {settled.said.strip()[-200:]}")
    history = place.run(["promote", "--model", "tiny", "--history", "true"], mark)
    if history.status != 0:
        lost.append(f"the history cannot be told: {history.said.strip()[-200:]}")
    running = [run.title for run in runs_between(place) if run.status == "RUNNING"]
    lost += [f"a run is still RUNNING: {title}" for title in running]
    lost += [f"a user's file is gone or changed: {name}" for name in touched(place, theirs)]
    lost += [] if is_sound(place.database) else ["the store is damaged"]
    return about | Outcome(lost, ended_processes(mark))._asdict()


def _lost(ends: list[Ended | None], kills: bool, versions: tuple[str, str], place: Place) -> list[str]:
    lost = []
    for number, end in enumerate(ends):
        if end is None:
            lost.append(f"promotion of version {versions[number]} does not end")
        elif not (end.status in (0, OVERTAKEN) or (kills and number == 0 and end.status == -signal.SIGKILL)):
            lost.append(f"promotion of version {versions[number]} ends with {end.status}: {end.said.strip()[-200:]}")
    won = [version for end, version in zip(ends, versions, strict=True) if end is not None and end.status == 0]
    champion = registered(place.database).get("edgequant-tiny@champion")
    allowed = {*won} or {"1", *versions}
    allowed |= {versions[0]} if kills else set()
    if champion not in allowed:
        lost.append(f"version {champion} is champion, and {won or 'none'} was told that it is")
    return lost
