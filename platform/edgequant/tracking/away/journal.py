"""What waits for a tracking server, on disk: requests in their order, one to a line, and files beside them.

A kill at any moment costs at most the line that was being written. `filed.jsonl` says how far filing came.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FOLDER, ENTRIES, FILED, FILES, REFUSED = "unfiled", "entries.jsonl", "filed.jsonl", "files", "refused.jsonl"
COPIED = 1 << 20  # bytes up to which a file is copied; a larger one is linked, where the disk can
Entry = dict[str, Any]


class Waiting(NamedTuple):
    """An entry, and where in the file the next one begins."""

    entry: Entry
    end: int


class Journal:
    """The folder of one process's entries, locked as long as the process lives.

    Args:
        folder: made here, or left by a process that is gone.
        store: address of the store that the entries are for, without a password.

    Raises:
        BlockingIOError: a living process writes there.
    """

    def __init__(self, folder: Path, store: str = "") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._entries = (folder / ENTRIES).open("ab")
        fcntl.flock(self._entries, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if self._entries.tell() == 0:
            self._write(self._entries.fileno(), {"store": store})
        else:
            self._cut_half_a_line()
        self.store = str(next(_lines(folder / ENTRIES), Waiting({}, 0)).entry.get("store", ""))
        told = [each.entry for each in _lines(folder / FILED)]
        self.ids: dict[str, str] = dict(each["run"] for each in told if "run" in each)
        self._at = max((each["at"] for each in told if "at" in each), default=self._first())
        self._lock = threading.Lock()
        self.count = sum(1 for _ in self.waiting())

    def append(self, entry: Entry) -> None:
        """One more entry, on disk when this returns."""
        with self._lock:
            self._write(self._entries.fileno(), entry)
            self.count += 1

    def stage(self, file: Path) -> str:
        """Keep a file as it is now; its path in the folder."""
        place = self.folder / FILES
        number = len(os.listdir(place)) if place.is_dir() else 0
        while True:
            try:
                (place / str(number)).mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
        kept = place / str(number) / file.name
        try:
            if file.stat().st_size <= COPIED:
                raise OSError
            os.link(file, kept)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, kept)
        return kept.relative_to(self.folder).as_posix()

    def waiting(self) -> Iterator[Waiting]:
        """Entries that are not filed yet, those included that come in the meantime."""
        return _lines(self.folder / ENTRIES, self._at)

    def filed(self, upto: int, number: int) -> None:
        """So many entries, up to a place in the file, are in the store."""
        self._note({"at": upto})
        with self._lock:
            self._at = upto
            self.count -= number

    def note_run(self, local: str, real: str) -> None:
        """A run that was begun while the server was away has its id there."""
        self.ids[local] = real
        self._note({"run": [local, real]})

    def refuse(self, entry: Entry, why: str) -> None:
        """Keep what the store will not take."""
        with (self.folder / REFUSED).open("ab") as opened:
            self._write(opened.fileno(), {"why": why, "entry": entry})

    def close(self) -> None:
        """Leave the folder; where all is filed it goes, but for what was refused."""
        if self.count == 0:
            for name in (ENTRIES, FILED):
                (self.folder / name).unlink(missing_ok=True)
            shutil.rmtree(self.folder / FILES, ignore_errors=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._entries.close()

    def _first(self) -> int:
        return next((each.end for each in _lines(self.folder / ENTRIES)), 0)

    def _note(self, told: Entry) -> None:
        with (self.folder / FILED).open("ab") as opened:
            self._write(opened.fileno(), told)

    def _write(self, descriptor: int, entry: Entry) -> None:
        line = json.dumps(entry).encode() + b"\n"
        while line:
            line = line[os.write(descriptor, line) :]

    def _cut_half_a_line(self) -> None:
        text = (self.folder / ENTRIES).read_bytes()
        os.truncate(self.folder / ENTRIES, text.rfind(b"\n") + 1)


def _lines(file: Path, at: int = 0) -> Iterator[Waiting]:
    """Whole lines from a place on."""
    if not file.is_file():
        return
    with file.open("rb") as opened:
        opened.seek(at)
        while (line := opened.readline()).endswith(b"\n"):
            yield Waiting(json.loads(line), opened.tell())
