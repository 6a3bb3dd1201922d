"""Files: written whole or not at all, and known by their SHA-256."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgequant.disk.faults import writing
from edgequant.disk.leftovers import is_own_scratch, scratch_file


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed onto `path`.

    A reader sees the old file or the new one, never a part. On an exception nothing is left behind.
    """
    target = Path(path)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_file(target) as temporary:
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.chmod(0o666 & ~umask())
            temporary.replace(target)


@contextmanager
def one_at_a_time(folder: Path, seconds: float = 60.0) -> Iterator[None]:
    """Inside, no other process is inside for the same folder; it is waited for so long, where the disk knows locks.

    For what goes well without, in all but moments: somebody else's lock on the folder costs a minute, and nothing else.
    """
    if is_own_scratch(folder):  # this process has locked it, against all others
        yield
        return
    descriptor, until = os.open(folder, os.O_RDONLY), time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    break
                time.sleep(0.05)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def settle(folder: Path, *, lasting: bool) -> None:
    """Ordinary permissions for all that is in it; on the disk, where something is about to be removed for it."""
    mask = umask()
    for root, _, names in os.walk(folder):
        inherited = os.stat(root).st_mode & stat.S_ISGID
        os.chmod(root, (0o777 & ~mask) | inherited)
        for name in names:
            file = Path(root, name)
            if file.is_symlink():
                continue
            file.chmod(0o666 & ~mask)
            if lasting:
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())


def umask() -> int:
    """Permissions that new files of this process do not get."""
    current = os.umask(0)
    os.umask(current)
    return current


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) to `path` through a temporary file, fsync and rename."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files of a folder."""
    parts = [path] if path.is_file() else path.rglob("*")
    return sum(part.stat().st_size for part in parts if part.is_file())


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, or of a folder's files, their names and bytes; wherever they lie."""
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return sha256_of_bytes("".join(f"{file.relative_to(path)} {sha256_of(file)}\n" for file in files))


def sha256_of_bytes(content: bytes | str) -> str:
    """Hexadecimal SHA-256 of bytes, or of a text's UTF-8 bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def source_digest(package: str, *others: str) -> str:
    """Hexadecimal SHA-256 over a package's source: every `.py` file in it and in its subpackages, names and contents.

    Args:
        package: importable name, such as `edgequant.evaluation`; wherever the code that asks stands.
        others: patterns of further files that decide what the code does, such as `disaster/*.yaml`.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{package!r} must be the name of a package")
    root = Path(spec.submodule_search_locations[0])
    files = sorted({path for pattern in ("**/*.py", *others) for path in root.glob(pattern)})
    return sha256_of_bytes("".join(f"{path.relative_to(root).as_posix()}:{sha256_of(path)}\n" for path in files))


def cache_dir() -> Path:
    """Where things that can be made again are kept: $EDGEQUANT_CACHE, else ~/.cache/edgequant."""
    return Path(os.environ.get("EDGEQUANT_CACHE") or Path.home() / ".cache" / "edgequant")


def read_json(path: Path) -> Any | None:
    """What a JSON file holds; None where there is none, or it is damaged, so that it has to be made again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
