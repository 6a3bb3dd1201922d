"""A process by name: this one's, and whether another one's still runs, as far as it can be seen from here.

Two containers may have one host name, and a process id means another process in each PID namespace, at each boot and
after each reuse. So a name says all of them, and only a process of this boot and this namespace is looked up.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

PROC = Path("/proc")
BOOT = PROC / "sys/kernel/random/boot_id"


class Process(NamedTuple):
    """What a process is known by.

    Attributes:
        host: name of its machine or container, for people.
        started: when, as the system counts.
        boot: of the machine, a new one whenever it starts.
        namespace: in which `pid` counts.
    """

    host: str
    pid: str
    started: str
    boot: str
    namespace: str

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


def this_process() -> str:
    """This process, so that a later one can tell whether it still runs: `host:pid:started:boot:namespace`."""
    boot, namespace = _place()
    host = socket.gethostname().replace(":", "-").replace("'", "")
    return ":".join(Process(host, str(os.getpid()), _started("self") or "0", boot, namespace))


def parse_process(process: str) -> Process | None:
    """A process by what `this_process` said of it; None where that is of another version, or of no process."""
    parts = process.split(":")
    return Process(*parts) if len(parts) == len(Process._fields) else None


def is_alive(process: str) -> bool:
    """Whether a process, as `this_process` names it, still runs; one that cannot be seen from here may."""
    return seen_alive(process) is not False


def seen_alive(process: str) -> bool | None:
    """As `is_alive`; None where it cannot be seen from here: another machine, container or PID namespace."""
    found = parse_process(process)
    if found is None or (found.boot, found.namespace) != _place() or not found.boot:
        return None
    return _started(found.pid) == found.started


@cache
def _place_of(pid: int) -> tuple[str, str]:
    try:
        if sys.platform != "linux":
            return f"{socket.gethostname()} {psutil.boot_time():.0f}".replace(":", "-"), "0"
        if (PROC / "self/stat").read_text().partition(" ")[0] != str(pid):
            return "", ""  # /proc is another namespace's: what it says of a number is of another process
        return BOOT.read_text().strip(), str(os.stat(PROC / "self/ns/pid").st_ino)
    except OSError:
        return "", ""


def _place() -> tuple[str, str]:
    """(boot, PID namespace); empty where that is unknown."""
    return _place_of(os.getpid())


def _started(pid: str) -> str | None:
    """When a process was started; None where there is none, or one that has ended and waits for its parent."""
    if sys.platform != "linux":
        return _started_elsewhere(pid)
    try:
        fields = (PROC / pid / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _started_elsewhere(pid: str) -> str | None:
    try:
        found = psutil.Process(None if pid == "self" else int(pid))
        return None if found.status() == psutil.STATUS_ZOMBIE else f"{found.create_time():.0f}"
    except psutil.Error:
        return None
