"""`Ledger`: which phases of a pipeline are done, with which inputs. Light.

A phase is noted when it has ended, atomically: a process that is killed anywhere leaves either the note or the phase to
do. One whose inputs are what they were, whose results are there and whose run is in the store, is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import edgequant
from edgequant.files import sha256_of, sha256_of_bytes, write_atomically
from edgequant.folders import MANIFEST, MARKER

FILE = "phases.json"


class Done(NamedTuple):
    """A phase that has ended.

    Attributes:
        inputs: their digest.
        run: id of its run, empty where it made none.
        result: the file or folder that it left, empty where it left none.
        state: `sha256` of what lies there, as `state_of` says it.
        minutes: that it took.
    """

    inputs: str
    run: str
    result: str
    state: str
    minutes: float


class Ledger:
    """The notes on one model's phases, in one file of its folder.

    Args:
        folder: of the model; need not be there yet.
        has_run: whether a run of this id is in the store, finished.
    """

    def __init__(self, folder: Path, has_run: Callable[[str], bool]) -> None:
        self._file, self._has_run = folder / FILE, has_run

    def done(self, phase: str, inputs: str) -> Done | None:
        """The note on a phase, if it need not be done again."""
        note = self._notes().get(phase)
        if note is None or note.inputs != inputs or (note.run and not self._has_run(note.run)):
            return None
        return note if not note.result or state_of(note.result) == note.state else None

    def note(self, phase: str, inputs: str, *, run: str, result: str, minutes: float) -> Done:
        """Write down that a phase has ended."""
        made = Done(inputs, run, result, state_of(result) if result else "", minutes)
        notes = {name: done._asdict() for name, done in self._notes().items()} | {phase: made._asdict()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, json.dumps(notes, indent=1))
        return made

    def _notes(self) -> dict[str, Done]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return {name: Done(**note) for name, note in found.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # none yet, or not ours to read: everything is done again


def digest_of(settings: Mapping[str, Any], reads: Iterable[str | None]) -> str:
    """Of all that a phase's result depends on.

    Args:
        settings: values, mappings and settings objects.
        reads: models, files and folders by name or path.
    """
    plain = {key: asdict(value) if is_dataclass(value) else value for key, value in settings.items()}  # type: ignore[arg-type]
    told = {"version": edgequant.__version__, "settings": plain, "reads": [state_of(name or "") for name in reads]}
    return sha256_of_bytes(json.dumps(told, sort_keys=True, default=str))


def state_of(name: str) -> str:
    """What tells whether something that is read has changed: of our folders their manifest, of others each file's name,
    size and time; a name that is no path stands for itself."""
    path = Path(name).expanduser()
    if not name or not path.exists():
        return name
    if path.is_file():
        return sha256_of(path)
    for listed in (MANIFEST, MARKER):
        if (path / listed).is_file():
            return sha256_of(path / listed)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != FILE)
    facts = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256_of_bytes(json.dumps(facts))
