"""A search's ledger: one line on disk when a trial begins and one when it ends; what a resumed search goes on from."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from edgequant_tune.cluster.storage import delete_folder, fetch_folder, is_object_store
from edgequant_tune.objectives import Objective
from edgequant_tune.trial import stored
from edgequant_tune.trial_records import RECIPE, RECORDS_FILE, TrialRecord, prune_dominated, ranked, read_records


class Ledger:
    """The trials of a search by their ids, in the order in which they were begun.

    A trial's number is its place in that order and its id says it, in every session of the search. What a trial costs
    here does not grow with the trials that there are.

    Args:
        folder: the search's own; what it holds already is taken over.
        trials_folder: of their checkpoints, but where `storage`, an object store's address, has these.
    """

    def __init__(
        self, folder: Path, objectives: Sequence[Objective], trials_folder: Path, *, storage: str | None = None
    ) -> None:
        self.file, self.objectives, self.trials_folder = folder / RECORDS_FILE, tuple(objectives), trials_folder
        self.storage = storage
        self.records = {record.id: record for record in read_records(folder)}
        self.counts = Counter(record.status for record in self.records.values())
        self.best = next(iter(ranked(self.ended, self.objectives)), None)
        self._front = prune_dominated(self.trials_folder, self.ended, self.objectives)

    @property
    def ended(self) -> list[TrialRecord]:
        """Trials that are over, however they ended."""
        return [record for record in self.records.values() if record.status != "unfinished"]

    @property
    def unfinished(self) -> list[TrialRecord]:
        """Trials that were begun and not ended: those that run and, of an interrupted search, those that did."""
        return [record for record in self.records.values() if record.status == "unfinished"]

    @property
    def _kept(self) -> list[TrialRecord]:
        """Trials whose checkpoints are kept: the front's, and the recipe's."""
        return [*self._front, *(one for one in self.ended if one.number == RECIPE and one not in self._front)]

    def begin(self, values: Mapping[str, Any]) -> TrialRecord:
        """A new trial with the next number."""
        number = len(self.records) + 1
        record = TrialRecord(number=number, id=trial_id(number), values=dict(values), status="unfinished")
        return self._write(record, durably=False)  # a crash of the machine may lose a beginning, never an end

    def end(self, record: TrialRecord) -> TrialRecord:
        """A trial with its outcome; checkpoints that it dominates, or its own, are deleted."""
        self._write(record, durably=True)
        contenders = [*self._front, record]
        self._front = prune_dominated(self.trials_folder, contenders, self.objectives)
        if self.storage is not None:
            for dropped in (one for one in contenders if one.status == "finished" and one not in self._kept):
                delete_folder(stored(self.storage, dropped.id))
        contenders = [record] if self.best is None else [self.best, record]
        self.best = next(iter(ranked(contenders, self.objectives)), self.best)
        return record

    def fetch_front(self) -> None:
        """Bring checkpoints that no trial dominates from the object store, where there is one, into their folders."""
        for record in self._kept if self.storage is not None else ():
            place = Path(record.checkpoint or "")
            if is_object_store(record.checkpoint):
                local = fetch_folder(str(record.checkpoint), self.trials_folder / record.id / place.name)
                self._write(replace(record, checkpoint=str(local)), durably=True)

    def _write(self, record: TrialRecord, *, durably: bool) -> TrialRecord:
        before = self.records.get(record.id)
        self.counts.subtract([before.status] if before else [])
        self.counts[record.status] += 1
        self.records[record.id] = record
        append(self.file, json.dumps(asdict(record), default=str), durably=durably)
        return record


def trial_id(number: int) -> str:
    """Of the trial with this number: 0007; it names the trial's folder and its run's tag."""
    return f"{number:04d}"


def append(file: Path, line: str, *, durably: bool) -> None:
    """Add a line; a crash of this process leaves it whole or cut, never those before it.

    Args:
        durably: return when it is on disk.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as opened:
        if opened.tell() and not _ends_a_line(opened):
            opened.write(b"\n")
        opened.write(line.encode() + b"\n")
        opened.flush()
        if durably:
            os.fsync(opened.fileno())


def _ends_a_line(opened: BinaryIO) -> bool:
    opened.seek(-1, os.SEEK_END)
    return opened.read() == b"\n"
