"""A disk that fills up: a file system in memory where tries run, with room for a part of what a command writes.

Mounting needs a namespace of its own, which root may have, and others where the system lets them be root in one.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path
from random import Random
from typing import Any

from faults.entry_points import EntryPoint
from faults.forking import Ended
from faults.interruptions import given_again
from faults.outcome import Reference, last_line
from faults.places import Place, leave_files

PLENTY = 512_000_000  # bytes
PAGE = 4096
OWN_MOUNTS, OWN_USERS = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER


def may_mount() -> bool:
    """Whether this process, just forked, has got a namespace in which it may mount, and nobody else sees what."""
    library, who = ctypes.CDLL(None, use_errno=True), (os.getuid(), os.getgid())
    if library.unshare(OWN_MOUNTS | (0 if who[0] == 0 else OWN_USERS)):
        return False
    if who[0] != 0:
        Path("/proc/self/setgroups").write_text("deny")
        for name, number in zip(("uid_map", "gid_map"), who, strict=True):
            Path("/proc/self", name).write_text(f"0 {number} 1")
    return subprocess.run(["mount", "--make-rprivate", "/"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def mount(folder: Path) -> None:
    """A file system of its own, for this process and what it starts."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "none", str(folder)], check=True)


def resize(folder: Path, size: int) -> None:
    """Give the mounted file system so many bytes in all."""
    subprocess.run(["mount", "-o", f"remount,size={size // PAGE * PAGE}", str(folder)], check=True)


def used(folder: Path) -> int:
    """Bytes of a mounted file system that are taken."""
    told = os.statvfs(folder)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def filled(
    entry: EntryPoint, place: Place, template: Path, known: Reference, grown: int, draw: Random, mark: str
) -> dict[str, Any]:
    """One try: the disk has room for a part of what the command writes; then it has, and the command is given again.

    Args:
        grown: bytes that the undisturbed command needs.
    """
    resize(place.root, PLENTY)
    place.like(template)
    theirs = leave_files(place)
    room = int(draw.uniform(0.02, 0.85) * grown)
    resize(place.root, used(place.root) + room)
    ended = place.begin(entry.command(), mark).wait(300)
    lost = ["a full disk: the command does not end"] if ended is None else told_of(ended)
    resize(place.root, PLENTY)
    about = {"room": room, "of": grown, "said": "" if ended is None else last_line(ended.said)}
    return given_again(entry, place, known, theirs, mark, False, lost, about)


def told_of(ended: Ended) -> list[str]:
    """Whether it was said in one line that the disk is full, which, and how much is free."""
    if ended.status == 0:
        return []  # there was room enough
    line = last_line(ended.said)
    lost = [] if ended.status > 0 else [f"a full disk: ended by signal {-ended.status}"]
    if "Traceback" in ended.said:
        lost.append(f"a full disk: a traceback: {line}")
    elif not (re.search(r"\d[\d,.]* ?(bytes|kB|KB|MB|GB|B)\b", line) and "/" in line):
        lost.append(f"a full disk: the line names no path or no free bytes: {line}")
    return lost
