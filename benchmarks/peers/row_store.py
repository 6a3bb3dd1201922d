"""Rows of a table as one JSON file each, so that an interrupted benchmark goes on, alone or in several processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from peers.ptq_rows import Row


class Job(NamedTuple):
    """One system under one scheme: a few rows of the table."""

    scheme: str
    system: str


class RowStore:
    """Finished rows by job; in memory alone where there is no folder. `key`: what rows depend on beside their job."""

    def __init__(self, folder: str | None, key: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self.run = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        self.kept: dict[Job, list[Row]] = {}

    def has(self, job: Job) -> bool:
        return self._read(job) is not None

    def rows(self, job: Job) -> list[Row]:
        """None yet: an empty list."""
        return self._read(job) or []

    def save(self, job: Job, rows: list[Row]) -> None:
        self.kept[job] = rows
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = self._file(job).with_suffix(f".{os.getpid()}")
            whole.write_text(json.dumps([asdict(row) for row in rows], indent=1))
            whole.replace(self._file(job))

    def _read(self, job: Job) -> list[Row] | None:
        if job not in self.kept and self.folder is not None and self._file(job).is_file():
            self.kept[job] = [Row(**values) for values in json.loads(self._file(job).read_text())]
        return self.kept.get(job)

    def _file(self, job: Job) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.run}-{job.scheme}-{job.system}.json"


def in_parallel(jobs: list[Job], processes: int, command: list[str]) -> None:
    """Measure jobs by calling the script anew for each, so many at a time; one that fails leaves no row."""
    waiting, lock = list(jobs), threading.Lock()
    threads_each = str(max(1, (os.cpu_count() or 1) // processes))

    environment = os.environ | {"OMP_NUM_THREADS": threads_each}

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                job = waiting.pop(0)
            found = subprocess.run([sys.executable, *command, "--processes", "1", "--only", *job], env=environment)
            if found.returncode:
                print(f"{job.system} {job.scheme} ended with {found.returncode}", flush=True)

    threads = [threading.Thread(target=work) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
