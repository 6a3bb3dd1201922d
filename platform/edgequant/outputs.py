"""`check_output`: may a run write where it was told to? The one check of every option `output`. Light.

The target must be new, empty, or an earlier result of the same kind, and none of the places that must not be lost.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from edgequant.disk.leftovers import remove_leftovers
from edgequant.errors import UserError
from edgequant.files import cache_dir
from edgequant.folders import CHECKPOINT, CORPUS, check_replaceable, check_shared, made_here, refusal, working_place

RUNS = "outputs"  # folder in the working directory where runs keep their files
WITH_RUN_FOLDERS = ("ptq", "qat", "finetune")
READ_WHOLE = (
    CHECKPOINT,
    CORPUS,
    "compressed-tensors",
    "onnx",
    "gptq",
)  # results that nothing else may lie in: they are loaded
STORES = ("mlruns", "mlartifacts")  # where MLflow keeps artifacts, in the working directory
TELLTALES = ("mlflow.db", "mlruns", "mlartifacts", ".git")


class Place(NamedTuple):
    """A file or folder that a run reads, or that something else lives in.

    Attributes:
        what: in words, after "is", "holds" or "lies in".
        inside: whether nothing may be written in it either.
    """

    what: str
    path: Path
    inside: bool = True


def places(named: Mapping[str, str | None]) -> list[Place]:
    """What options name, by option, where it is a path that exists; one may write beside the benchmarks' files."""
    found = {option: Path(text).expanduser() for option, text in named.items() if text}
    return [
        Place(f"{option} {named[option]!r}, which is read", path, inside=option != "data_dir")
        for option, path in found.items()
        if os.path.exists(path)
    ]


def check_output(
    output: str | os.PathLike[str], kind: str, *, reads: Sequence[Place] = (), shared: bool = False
) -> Path:
    """Where a result goes, symbolic links resolved. Called before a run exists; leaves nothing behind, and nothing
    that a killed run left there.

    Args:
        output: what the user said.
        kind: of the result: only an earlier one of the same kind is replaced.
        reads: what the run reads.
        shared: results go into the folder under names of their own, beside what is there.

    Raises:
        UserError: names the output, why it will not do, and what would.
    """
    given = os.fspath(output)
    try:
        target = _resolved(given)
        _check_places(target, given, kind, reads)
        remove_leftovers(target)  # of a run that was killed while it wrote there
        (check_shared if shared else check_replaceable)(target, kind, given=given)
        _check_writable(target, shared)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no permission, a circle of links, no such ~
        reason = getattr(error, "strerror", None) or error
        raise refusal(given, kind, f"cannot be written to ({reason})") from error
    return target


def check_own_folder(workflow: str) -> None:
    """Refuse a working folder in which a run cannot keep its files.

    Raises:
        UserError: names the folder.
    """
    folder = Path(RUNS).resolve() / workflow
    try:
        _check_writable(folder, shared=True)
    except OSError as error:
        raise UserError(
            f"folder of runs {RUNS}/{workflow} cannot be written to ({error.strerror}); work in another folder"
        ) from error


def _resolved(given: str) -> Path:
    if not given.strip():
        raise UserError(f"output must name a folder, got {given!r}; leave it out for {RUNS}/ in the working folder")
    if re.match(r"[A-Za-z][\w+.-]*:/", given):
        raise UserError(f"output must be a folder of this machine, got {given!r}, which is an address; name a folder")
    return Path(given).expanduser().resolve()


def _check_places(target: Path, given: str, kind: str, reads: Sequence[Place]) -> None:
    for place in (*_kept_places(), *reads):
        if _is_in(place.path, target):
            relation = "is" if _is_in(target, place.path) else "holds"
            raise refusal(given, kind, f"{relation} {place.what}")
        if place.inside and not place.path.is_file() and _is_in(target, place.path):
            raise refusal(given, kind, f"lies in {place.what}")
    for name in TELLTALES:
        if os.path.lexists(target / name):
            raise refusal(given, kind, f"holds {name}")
    for folder in target.parents:
        found = made_here(folder)
        if found is not None and found.kind in READ_WHOLE:
            raise refusal(given, kind, f"lies in the {found.kind} {str(folder)!r}")


def _kept_places() -> Iterator[Place]:
    """What an output must not be, wherever it is named from."""
    here = Path.cwd()
    yield Place("the root of the file system", Path(here.anchor), inside=False)
    yield Place("the working folder", here, inside=False)
    with suppress(RuntimeError):
        yield Place("your home folder", Path.home(), inside=False)
    for name in WITH_RUN_FOLDERS:
        yield Place(f"the folder of runs {RUNS}/{name}", here / RUNS / name, inside=False)
    for name in STORES:
        yield Place(f"MLflow's {name}", here / name)
    yield Place("edgequant's cache", cache_dir())


def _is_in(inner: Path, outer: Path) -> bool:
    """Whether a path is another one or lies in it: by their inodes, where the outer one exists."""
    inner, outer = inner.expanduser().resolve(), outer.expanduser().resolve()
    if not outer.exists():
        return inner.is_relative_to(outer)
    return any(path.exists() and path.samefile(outer) for path in (inner, *inner.parents))


def _check_writable(target: Path, shared: bool) -> None:
    """Try it: permissions alone say nothing of a file system that is read-only, or of the super-user."""
    found = next(path for path in (target, *target.parents) if os.path.lexists(path))
    if not found.is_dir():
        raise NotADirectoryError(0, f"{str(found)!r} is not a folder")
    place = working_place(target) if found == target and not shared else found
    os.rmdir(tempfile.mkdtemp(prefix=f"{target.name}.replaced-", dir=place))
