"""How threads wait for each other while the machine does other work too. Light: before torch is loaded.

OpenMP's threads spin where they wait, for some milliseconds. On cores that are free this costs nothing; where another
process wants one, every operation of a layer then takes as long as the system lets that process run, and the layers of
a small model take ten times as long as with threads that sleep. Other work may begin at any time: so they spin briefly,
and where it is there already, hardly at all.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from edgequant.machine.cores import physical_cores, wait_spinning_briefly, wait_without_spinning

_STAT = Path("/proc/stat")
LOOK_S = 0.1
NOTHING = 0.5  # of a core: what a desktop does by the way
_IDLE, _WAITING_FOR_DISKS = 4, 5  # columns of /proc/stat, in ticks


def wait_as_other_work_allows() -> None:
    """Let threads that wait sleep at once, and say so, if other processes take a core that this one would compute on;
    else after they have spun briefly."""
    threads = _threads()
    if threads == 1:
        return
    idle = idle_cores()
    if idle is None or idle > threads - NOTHING:
        wait_spinning_briefly()
        return
    if not wait_without_spinning():
        return
    print(
        f"other work leaves {idle:.1f} of {threads} cores: threads sleep while they wait for each other; "
        "times that are measured now are those of a busy machine",
        file=sys.stderr,
        flush=True,
    )


def idle_cores() -> float | None:
    """How many of the CPUs that this process may use were idle for the last tenth of a second; None: not to be had."""
    before, begun = _idle_ticks(), time.monotonic()
    if before is None:
        return None
    time.sleep(LOOK_S)
    after, seconds = _idle_ticks(), time.monotonic() - begun
    return None if after is None else (after - before) / (seconds * os.sysconf("SC_CLK_TCK"))


def _idle_ticks() -> int | None:
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines()]
        allowed = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        return sum(int(line[_IDLE]) + int(line[_WAITING_FOR_DISKS]) for line in lines if line and line[0] in allowed)
    except (OSError, AttributeError, ValueError, IndexError):
        return None


def _threads() -> int:
    """With which torch computes: those asked for, else the physical cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) else physical_cores()
