"""What a run reads from this machine's disk, so that one that goes on with it reads the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgequant.errors import UserError
from edgequant.files import sha256_of, sha256_of_bytes
from edgequant.outputs import RUNS, STORES, TELLTALES, Place

TAG = "edgequant.reads"
BENCHMARKS = ("wikitext-2", "boolq", "squad")  # of a data_dir, which may hold anything beside
PASSED_OVER = {*STORES, *TELLTALES, RUNS}  # of a working folder that is read
WHOLE_BYTES = 2 << 30  # files beyond are known by their size and time: nobody waits for their digest twice


def digests(reads: Sequence[Place]) -> dict[str, str]:
    """SHA-256 of what each place holds, by its option: `dataset`, `model`."""
    found: dict[str, list[str]] = {}
    for place in reads:
        found.setdefault(_option(place), []).append(_digest(place))
    return {option: "+".join(parts) for option, parts in found.items()}


def check_unchanged(run_id: str, tags: Mapping[str, str], reads: Sequence[Place], now: Mapping[str, str]) -> None:
    """Refuse to go on with a run that has read something else.

    Args:
        tags: of the run; one of an earlier version says nothing of what it read.
        now: as `digests`.

    Raises:
        UserError: names what has changed.
    """
    before = json.loads(tags.get(TAG, "null"))
    if before is None:
        return
    for option in {**before, **now}:
        if before.get(option) != now.get(option):
            named = next((_named(place) for place in reads if _option(place) == option), option)
            raise UserError(
                f"{named} has changed since run {run_id} was interrupted, which cannot go on with it; bring back what "
                "it was, or begin anew without --resume true"
            )


def _named(place: Place) -> str:
    return place.what.partition(", which ")[0]


def _option(place: Place) -> str:
    return place.what.partition(" '")[0].partition(", which ")[0]


def _digest(place: Place) -> str:
    path = place.path
    if path.is_file():
        return _file_digest(path)[:32]
    folders = [path / name for name in BENCHMARKS] if _option(place) == "data_dir" else [path]
    files = [file for folder in folders for file in _files(folder)]
    return sha256_of_bytes("".join(f"{file.relative_to(path)}:{_file_digest(file)}\n" for file in files))[:32]


def _files(folder: Path) -> list[Path]:
    """Without hidden ones, and without what this program writes into a working folder."""
    inside = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in inside if not any(_is_passed_over(part) for part in path.relative_to(folder).parts))


def _is_passed_over(name: str) -> bool:
    return name[0] == "." or name in PASSED_OVER or name.startswith("mlflow.db")


def _file_digest(path: Path) -> str:
    facts = path.stat()
    return sha256_of(path) if facts.st_size <= WHOLE_BYTES else f"{facts.st_size}:{facts.st_mtime_ns}"
