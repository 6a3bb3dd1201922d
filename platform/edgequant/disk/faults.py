"""A disk that is full, fails or may not be written to: which one, how much is free, whatever library met it first."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgequant.errors import UserError

SPACE = "free some space, or name another place"
KINDS = {
    errno.ENOSPC: ("the disk is full", SPACE),
    errno.EDQUOT: ("your quota on that disk is used up", SPACE),
    errno.EFBIG: (
        "it is larger than a file may be (`ulimit -f`)",
        "raise the limit, or name another place",
    ),
    errno.EROFS: ("the disk is read-only", "name a place that can be written to"),
    errno.EIO: ("the disk fails (input/output error)", "look at the system's log, or name a place on another disk"),
}
# How libraries say it that raise no OSError: safetensors, torch, numpy and gguf, SQLite, pyarrow.
SAID = (
    (re.compile(r"No space left on device|os error 28\b|database or disk is full"), errno.ENOSPC),
    (re.compile(r"Disk quota exceeded|os error 122\b"), errno.EDQUOT),
    (re.compile(r"File too large|os error 27\b"), errno.EFBIG),
    (re.compile(r"Read-only file system|os error 30\b"), errno.EROFS),
    (re.compile(r"Input/output error|os error 5\b|disk I/O error"), errno.EIO),
)
CUT_SHORT = re.compile(r"\d+ requested and \d+ written|PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+")


class DiskError(UserError):
    """Something could not be written: names it, the disk's fault, the free bytes and what to do."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Inside, a disk that is full or fails ends what writes `target`, or a file in it, by a DiskError."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:  # of whichever library writes
        if (number := fault(error)) is None:
            raise
        raise told(number, target) from error


def fault(error: BaseException) -> int | None:
    """The number of the disk's fault that an error, or one that it came from, tells of; None where it is no disk's."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, DiskError):
            return errno.ENOSPC
        if isinstance(cause, OSError) and cause.errno in KINDS:
            return cause.errno
        if isinstance(cause, OSError | RuntimeError | sqlite3.Error) or _is_a_librarys(cause):
            text = str(cause)
            found = next((number for said, number in SAID if said.search(text)), None)
            if found is not None or CUT_SHORT.search(text):
                return found or errno.ENOSPC
        cause = cause.__cause__ or cause.__context__
    return None


def _is_a_librarys(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0].removesuffix("_rust")
    return library in ("safetensors", "mlflow", "sqlalchemy", "pyarrow", "datasets")


def told_of(error: BaseException, *stores: Path) -> DiskError | None:
    """The line for an error of a disk, wherever it came from; None for any other error.

    Args:
        stores: files and folders that are written by libraries, such as the tracking store's.
    """
    if isinstance(error, DiskError):
        return error
    if (number := fault(error)) is None:
        return None
    return told(number, _named(error) or _fullest(*stores))


def told(number: int, path: Path) -> DiskError:
    """The error that names a path, the fault of its disk by its number, and the free bytes."""
    what, fix = KINDS[number]
    return DiskError(f"{str(path)!r} could not be written: {what} ({free_bytes(path):,} bytes free); {fix}")


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse work whose results plainly will not fit.

    Args:
        folder: where they go.
        needed: bytes, at least.
        what: they are, in words.

    Raises:
        DiskError: names folder, bytes needed and bytes free.
    """
    free = free_bytes(folder)
    if needed > free:
        raise DiskError(
            f"{str(folder)!r} has no room for {what}: about {needed:,} bytes are needed, {free:,} are free; {SPACE}"
        )


def free_bytes(path: Path) -> int:
    """What this user can still write on the disk of a path, or of what there is of it."""
    try:
        return shutil.disk_usage(existing(path)).free
    except OSError:
        return 0


def existing(path: Path) -> Path:
    """The path, or what there is of it."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))


def _named(error: BaseException) -> Path | None:
    """The file that an error, or one that it came from, names: of a copy, where it was to go."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in KINDS and (cause.filename2 or cause.filename):
            name = cause.filename2 or cause.filename
            return None if isinstance(name, int) else Path(os.fsdecode(name))
        cause = cause.__cause__ or cause.__context__
    return None


def _fullest(*stores: Path) -> Path:
    """Of the places that a run writes to, the one with the least room."""
    return min((*stores, Path("outputs").resolve(), Path(tempfile.gettempdir())), key=free_bytes)
