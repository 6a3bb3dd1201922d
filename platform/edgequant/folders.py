"""Folders that we write: whole or not at all, known by a manifest, and the only ones that we replace.

A checkpoint says with `edgequant.json` what it holds, every other folder with a marker of the same kind: the SHA-256 of
each file. What they do not list, or what was changed since, is somebody else's, and no folder is removed that holds it.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from edgequant.disk.faults import writing
from edgequant.disk.leftovers import Scratch, remove_leftovers
from edgequant.errors import UserError
from edgequant.files import one_at_a_time, settle, sha256_of, write_atomically

MARKER = "edgequant-output.json"
MANIFEST, CHECKPOINT = "edgequant.json", "checkpoint"  # of `models.manifest`, and the kind of folder that has it
CORPUS = "corpus"
FINETUNED = "finetune"  # kind of the folder that a fine-tuning's adapter/ and merged/ share
# What file managers and `datasets` leave behind by themselves.
BY_THEMSELVES = (".DS_Store", "Thumbs.db", "desktop.ini", f"cache-{'[0-9a-f]' * 16}*.arrow")


class Made(NamedTuple):
    """A folder of ours: `kind` is what made it; `sha256` of every file by its relative path ("": not known)."""

    kind: str
    sha256: Mapping[str, str]


def made_here(folder: Path) -> Made | None:
    """What a folder that we wrote says of itself; None for any other."""
    marker, manifest, corpus = (_json(folder / name) for name in (MARKER, MANIFEST, "manifest.json"))
    if isinstance(marker.get("made"), str) and isinstance(marker.get("sha256"), dict):
        return Made(marker["made"], marker["sha256"])
    if isinstance(manifest.get("sha256"), dict) and "scheme" in manifest:
        return Made(CHECKPOINT, manifest["sha256"])
    if "fingerprint" in corpus and isinstance(corpus.get("contents"), list):  # made before there were markers
        tops = {*corpus["contents"], "manifest.json"}
        return Made(CORPUS, {name: "" for name in _names(folder) if name.partition("/")[0] in tops})
    return None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _names(folder: Path) -> list[str]:
    """Relative paths of all files and links below a folder."""
    found = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found += [Path(root, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def mark_folder(folder: Path, kind: str, sha256: Mapping[str, str] | None = None) -> None:
    """Write the marker: what made the folder, and the SHA-256 of all that is in it, or of the files given alone."""
    listed = {name: sha256_of(folder / name) for name in _names(folder) if name != MARKER} if sha256 is None else sha256
    write_atomically(folder / MARKER, json.dumps({"made": kind, "sha256": dict(listed)}, indent=1))


# --------------------------------------------------------------------------------------------------------- what may go


def check_replaceable(
    folder: Path, kind: str, *, given: str | None = None, besides: Path | None = None, contents: bool = True
) -> None:
    """Refuse to replace a folder that is not ours, of another kind, or that holds what we did not write.

    Args:
        given: how the user named it.
        besides: an entry of it that does not count.
        contents: whether files are compared with their SHA-256 too.

    Raises:
        UserError: names the folder and the file.
    """
    why = _obstacle(folder, kind, besides, contents)
    if why:
        raise refusal(given or str(folder), kind, why)


def refusal(given: str, kind: str, why: str) -> UserError:
    """The line that says what an output must be, and why this one is not."""
    return UserError(
        f"output must be a new or empty folder, or an earlier result of the same kind ({kind}), got {given!r}, "
        f"which {why}; name another folder"
    )


def _obstacle(folder: Path, kind: str, besides: Path | None, contents: bool) -> str | None:
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file"
    names = sorted(entry.name for entry in folder.iterdir() if entry != besides)
    found = made_here(folder)
    if found is None:
        theirs = [name for name in names if made_here(folder / name) is None] or names
        return f"holds {theirs[0]!r}, which edgequant did not write" if theirs else None
    if found.kind != kind:
        return f"holds something else of edgequant's ({found.kind})"
    unlisted = [name for name in _names(folder) if not _is_ours(folder, name, found, besides)]
    if unlisted:
        return f"holds {unlisted[0]!r}, which edgequant did not write"
    changed = [name for name in found.sha256 if _is_changed(folder / name, found.sha256[name])] if contents else []
    return f"holds {changed[0]!r}, which was changed since edgequant wrote it" if changed else None


def _is_ours(folder: Path, name: str, found: Made, besides: Path | None) -> bool:
    path = folder / name
    if besides is not None and path.is_relative_to(besides):
        return True
    manifest = path.name in (MARKER, MANIFEST) and made_here(path.parent) is not None
    return name in found.sha256 or manifest or any(fnmatch(path.name, pattern) for pattern in BY_THEMSELVES)


def _is_changed(file: Path, sha256: str) -> bool:
    """A file that is gone was somebody's wish; one of which only the name is known counts as it is."""
    if not os.path.lexists(file) or not sha256:
        return False
    return not file.is_file() or sha256_of(file) != sha256


# ------------------------------------------------------------------------------------------- folders that results share


def check_shared(folder: Path, kind: str, *, given: str | None = None) -> None:
    """Refuse a folder to put results into beside others, unless it is new, empty or such a folder already.

    Nothing in it is replaced but what later checks let go; a user's own files stay.

    Raises:
        UserError: names the folder and what it holds.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    found = made_here(folder) if folder.is_dir() else None
    if (found is None or found.kind != kind) and not (found is None and _holds_results_alone(folder)):
        check_replaceable(folder, kind, given=given)


def _holds_results_alone(folder: Path) -> bool:
    """Results lie in it that were made before there were markers: checkpoints, corpora, searches."""
    entries = [entry for entry in folder.iterdir() if entry.name not in BY_THEMSELVES]
    return bool(entries) and all(made_here(entry) or _json(entry / "format.json") for entry in entries)


def check_own_file(file: Path, kind: str, *, given: str | None = None) -> None:
    """Refuse to replace a file in a shared folder that we did not write there, or that was changed since.

    Raises:
        UserError: names both.
    """
    found = made_here(file.parent)
    listed = found.sha256.get(file.name, "") if found else ""
    if os.path.lexists(file) and (not listed or _is_changed(file, listed)):
        author = "was changed since edgequant wrote it" if listed else "edgequant did not write"
        raise refusal(given or str(file.parent), kind, f"holds {file.name!r}, which {author}")


def share_folder(folder: Path, kind: str, sha256: Mapping[str, str] | None = None) -> None:
    """Make a folder that results share, or say of one that more files in it are ours."""
    folder.mkdir(parents=True, exist_ok=True)
    found = made_here(folder)
    mark_folder(folder, kind, {**(found.sha256 if found else {}), **(sha256 or {})})


# --------------------------------------------------------------------------------------------------------- replacing it


@contextmanager
def atomic_folder(path: str | os.PathLike[str], made: str = CHECKPOINT) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on an exception it is gone.

    What stood there is moved aside first and removed only once the new folder stands; it is put back where that fails.

    Args:
        path: a folder that is new, empty or of the same kind; a symbolic link stays one.
        made: what the folder is: `checkpoint`, which brings its own manifest, or another kind, whose marker is written.

    Raises:
        UserError: the folder holds something else, before anything is written; or does so by the end: what was made
            lies beside it then, and the message says where.
    """
    target = Path(path).resolve()
    place = working_place(target)
    _put_back(target, made)
    check_replaceable(target, made)
    with writing(target):
        place.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place)
        with Scratch(place, f".{target.name}.") as made_in:
            temporary = Path(made_in)
            yield temporary
            if made != CHECKPOINT:
                mark_folder(temporary, made)
            settle(temporary, lasting=target.exists())
            _check_again(temporary, target, made)
            (_exchange_entries if place == target else _exchange)(temporary, target)


def _put_back(target: Path, made: str) -> None:
    """What a kill between two renames left beside its place."""
    if working_place(target) == target or not target.parent.is_dir():
        return
    with one_at_a_time(target.parent):
        for aside in target.parent.glob(f"{glob.escape(target.name)}.replaced-????????/"):
            if not any(aside.iterdir()):
                aside.rmdir()
            elif not target.exists() and _obstacle(aside, made, None, contents=False) is None:
                aside.replace(target)


def working_place(target: Path) -> Path:
    """Where a folder is written until it is whole: beside its place, or in it where that cannot be moved."""
    fixed = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK))
    return target if fixed else target.parent


def _check_again(new: Path, target: Path, made: str) -> None:
    """Between the first check and now there may have been hours, in which somebody put something there."""
    try:
        check_replaceable(target, made, besides=new, contents=False)
    except UserError as error:
        kept = Path(tempfile.mkdtemp(prefix=f"{target.name}.new-", dir=new.parent))
        raise UserError(f"{error}; what was made meanwhile is in {str(new.replace(kept))!r}") from error


def _exchange(new: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        new.replace(target)
        return
    with one_at_a_time(target.parent):
        aside = Path(tempfile.mkdtemp(prefix=f"{target.name}.replaced-", dir=target.parent))
        try:
            _move(target, aside)
            new.replace(target)
        finally:
            if new.exists() and not target.exists():
                aside.replace(target)
            _discard(aside, unless_needed=new.exists())


def _move(folder: Path, empty: Path) -> None:
    """Rename; copy where a folder lies in the lower layer of an overlay, such as a container's image."""
    try:
        folder.replace(empty)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(folder, empty, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(folder)


def _exchange_entries(new: Path, target: Path) -> None:
    """For a mount point, or in a folder that cannot be written to: the folder stays, what is in it changes."""
    aside = Path(tempfile.mkdtemp(prefix=f"{target.name}.replaced-", dir=target))
    moves = [(entry, aside / entry.name) for entry in target.iterdir() if entry not in (new, aside)]
    moves += [(entry, target / entry.name) for entry in new.iterdir()]
    stands = False
    try:
        for before, after in moves:
            before.replace(after)
        stands = True
    finally:
        if not stands:
            for before, after in reversed(moves):
                if os.path.lexists(after) and not os.path.lexists(before):
                    after.replace(before)
        _discard(aside, unless_needed=not stands)


def _discard(aside: Path, *, unless_needed: bool) -> None:
    """Remove what was replaced; where the new folder does not stand, only if the old one is back in its place."""
    if not unless_needed:
        with Scratch(aside.parent, f".{aside.name}.") as going, suppress(OSError):  # for the next run, after a kill
            aside.replace(Path(going, "replaced"))
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists() and not any(aside.iterdir()):
        aside.rmdir()
