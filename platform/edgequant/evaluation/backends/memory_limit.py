"""A bound on the memory of a process that is timed: kept by a control group of Linux where one may be made.

Elsewhere nothing is enforced, and what was measured is compared with the bound. Light, as `llama_cpp.library`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HIERARCHY = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_ENTER = 'echo 0 > "$0/cgroup.procs" && exec "$@"'  # 0 is the shell itself, which then becomes the command


@dataclass(frozen=True)
class MemoryLimit:
    """Attributes:
    limit: in bytes.
    group: the control group's folder; None: there is none.
    because: why there is none.
    """

    limit: int
    group: Path | None
    because: str = ""

    @property
    def how(self) -> str:
        """In words, for tags and notes."""
        if self.group is not None:
            return "memory limit enforced by cgroup v2, and peak memory compared with it"
        return f"peak memory measured and compared with the limit, which nothing enforced ({self.because})"

    @property
    def within(self) -> tuple[str, ...]:
        """What goes in front of a command so that it runs within the limit."""
        return () if self.group is None else ("/bin/sh", "-c", _ENTER, str(self.group))

    @property
    def killed(self) -> bool:
        """Whether the kernel ended a process in the group for want of memory."""
        if self.group is None:
            return False
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in (self.group / "memory.events").read_text().splitlines())
            return int(counts.get("oom_kill", 0)) > 0
        return False


@contextlib.contextmanager
def memory_limit(gigabytes: float) -> Iterator[MemoryLimit]:
    """A limit of so many 10^9 bytes, without swap; its control group, if it is one, is gone afterwards."""
    limit = int(gigabytes * 1e9)
    group, because = _make_group(limit)
    try:
        yield MemoryLimit(limit, group, because)
    finally:
        if group is not None:
            _remove(group)


def _make_group(limit: int) -> tuple[Path | None, str]:
    """Below this process's own group or, where that may hold none since it holds processes, beside it."""
    if not (_HIERARCHY / "cgroup.controllers").is_file():
        return None, "cgroup v2 is not mounted here"
    why = "no control group with a memory controller is this user's"
    for parent in _parents():
        if "memory" not in _read(parent / "cgroup.subtree_control").split():
            continue
        group = parent / f"edgequant-{os.getpid()}-{time.monotonic_ns()}"
        try:
            group.mkdir()
        except OSError as error:
            why = f"a control group cannot be made: {error.strerror}"
            continue
        try:
            (group / "memory.max").write_text(str(limit))
            with contextlib.suppress(OSError):  # a kernel without swap accounting
                (group / "memory.swap.max").write_text("0")
            subprocess.run(["/bin/sh", "-c", _ENTER, str(group), "true"], check=True, capture_output=True)
            return group, ""
        except (OSError, subprocess.CalledProcessError) as error:
            why = f"a control group takes no limit or no process: {getattr(error, 'strerror', None) or 'not permitted'}"
            _remove(group)
    return None, why


def _parents() -> list[Path]:
    own = [line.removeprefix("0::/") for line in _read(_OWN).splitlines() if line.startswith("0::")]
    if not own:
        return []
    folder = _HIERARCHY / own[0]
    return [folder] if folder == _HIERARCHY else [folder, folder.parent]


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _remove(group: Path) -> None:
    """The kernel needs a moment behind the end of the last process."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.02)
