"""Temporary files and folders that a kill cannot make eternal: each is locked by the process that made it.

The kernel frees the lock with the process, on whatever ends it, in whatever container it ran; so the next run knows
what of its kind nobody needs any more, and removes that and nothing else: what has our mark in its name, belongs to
this user, is older than this process, and is locked by nobody. Where a disk knows no locks, all of it stays.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MARK = "edgequant-scratch-"
NAME = re.compile(rf"(\..+\.|[\w.-]+\.new-|\.?[\w.-]*-)?{MARK}[a-z0-9_]{{8}}(\.\w+)?")
_own: set[str] = set()
DEPTH = 4  # of folders below outputs/ in which results are written


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder, gone with its block, its process or, after a kill, with the next run.

    Args:
        place: where; None: the system's own place.
        before: put before the mark, as `.checkpoint.`.
    """

    def __init__(self, place: Path | str | None = None, before: str = "") -> None:
        super().__init__(prefix=f"{before}{MARK}", dir=place, ignore_cleanup_errors=True)
        self._lock = _lock(Path(self.name))
        _own.add(os.path.realpath(self.name))

    def cleanup(self) -> None:
        super().cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        _own.discard(os.path.realpath(self.name))


def is_own_scratch(folder: Path) -> bool:
    """Whether a folder is a temporary one of this process."""
    return os.path.realpath(folder) in _own


@contextmanager
def scratch_file(target: Path) -> Iterator[Path]:
    """A temporary file beside the one that it is to become, with its ending."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.{MARK}", suffix=target.suffix, dir=target.parent)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield Path(name)
    finally:
        os.close(descriptor)
        Path(name).unlink(missing_ok=True)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None where another process has it, or the disk knows none."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def remove_leftovers(*places: Path) -> list[Path]:
    """Remove what killed processes left in these folders, not below them; what was removed."""
    return [path for place in places for path in _marked(place) if _remove_if_dead(path)]


def remove_all_leftovers(cache: Path) -> list[Path]:
    """The same where runs of this working folder write: there, in outputs/, a cache and the system's own place."""
    here = [Path(), *_folders(Path("outputs"), DEPTH), *_folders(cache, 2)]
    return remove_leftovers(*here, *{Path(tempfile.gettempdir()), Path("/tmp")})


def _folders(root: Path, depth: int) -> Iterator[Path]:
    if root.is_dir():
        yield root
        if depth:
            for entry in sorted(root.iterdir()):
                if entry.is_dir() and not entry.is_symlink() and MARK not in entry.name:
                    yield from _folders(entry, depth - 1)


def _marked(place: Path) -> Iterable[Path]:
    with suppress(OSError), os.scandir(place) as entries:
        return [Path(entry.path) for entry in entries if NAME.fullmatch(entry.name)]
    return []


def _remove_if_dead(path: Path) -> bool:
    lock = None
    try:
        told = path.lstat()
        if told.st_uid != os.getuid() or max(told.st_mtime, told.st_ctime) >= _began():
            return False
        lock = _lock(path)
        if lock is None:
            return False
        _end_processes_in(path)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return not path.exists()
    except OSError:
        return False
    finally:
        if lock is not None:
            os.close(lock)


def _began() -> float:
    """When this process did, in seconds since 1970; from /proc to the hundredth, elsewhere to the second."""
    with suppress(OSError, ValueError, IndexError, AttributeError):
        since_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
    return psutil.Process().create_time()


def _end_processes_in(folder: Path) -> None:
    """Ray's processes outlive a search that is killed: those that were started with this folder as theirs."""
    if not any(folder.glob("session_*")):
        return
    for process in psutil.process_iter(["cmdline", "uids"]):
        line, owner = " ".join(process.info["cmdline"] or ()), process.info["uids"]
        if owner is not None and owner.real == os.getuid() and f"{folder}/session_" in line and "/ray/" in line:
            with suppress(psutil.Error):
                process.kill()
