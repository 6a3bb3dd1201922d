"""Cells made by several processes, each on one of the visible GPUs in turn. Light: no torch in the parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from qat_quality.cells import Cell, Store

PAUSE, REPORT = 0.5, 60.0  # seconds between looks at the workers, and between lines
TRIES = 2  # of a cell whose process dies


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[str]
    log: Path
    cell: Cell | None = None
    since: float = 0.0

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: it and what it started
        self.process.wait()


@dataclass
class Workers:
    """Makes what a store lacks, at most `jobs` cells at a time.

    Attributes:
        command: of a worker; its number is added.
        stop_after: seconds after which nothing more is made; None: until all is.
    """

    store: Store
    command: Sequence[str]
    jobs: int
    logs: Path
    stop_after: float | None = None
    started: float = field(default_factory=time.monotonic)
    died: dict[str, int] = field(default_factory=dict)
    workers: list[_Worker] = field(default_factory=list)

    def make(self, cells: Sequence[Cell]) -> None:
        """Returns when everything is made or has failed, or when the time is up; the workers are gone then."""
        waiting = [cell for cell in cells if not self.store.has(cell)]
        total, reported = len(cells), time.monotonic()
        print(f"{total} cells, {total - len(waiting)} made before, {self.jobs} at a time", flush=True)
        for cell in waiting:
            self.store.forget_failure(cell)
        try:
            while (waiting or self._busy()) and not self._time_is_up():
                self._collect(waiting)
                self._give(waiting)
                if time.monotonic() - reported > REPORT:
                    reported = time.monotonic()
                    self._report(cells)
                time.sleep(PAUSE)
        finally:
            for worker in self.workers:
                worker.stop()
            self._report(cells)

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.cell is not None]

    def _time_is_up(self) -> bool:
        return self.stop_after is not None and time.monotonic() - self.started > self.stop_after

    def _collect(self, waiting: list[Cell]) -> None:
        for worker in self._busy():
            cell, code = worker.cell, worker.process.poll()
            assert cell is not None
            if self.store.has(cell) or self.store.error(cell):
                self._tell(worker, cell)
                worker.cell = None
            elif code is not None:
                self.died[cell.key] = self.died.get(cell.key, 0) + 1
                if self.died[cell.key] < TRIES:
                    waiting.insert(0, cell)
                else:
                    self.store.fail(cell, f"its process ended with {code}; see {worker.log}")
                worker.cell = None
        self.workers = [worker for worker in self.workers if worker.process.poll() is None]

    def _give(self, waiting: list[Cell]) -> None:
        pending = {cell.key for cell in waiting} | {worker.cell.key for worker in self._busy() if worker.cell}
        for cell in list(waiting):
            idle = next((worker for worker in self.workers if worker.cell is None), None)
            if idle is None and len(self.workers) >= self.jobs:
                return
            if pending & set(cell.needs):
                continue
            worker = idle or self._begin()
            worker.cell, worker.since = cell, time.monotonic()
            waiting.remove(cell)
            assert worker.process.stdin is not None
            worker.process.stdin.write(cell.key + "\n")
            worker.process.stdin.flush()

    def _begin(self) -> _Worker:
        number = min(set(range(self.jobs)) - {worker.number for worker in self.workers})
        gpus, log = visible_gpus(), self.logs / f"worker-{number}.log"
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        self.logs.mkdir(parents=True, exist_ok=True)
        with log.open("a") as opened:
            process = subprocess.Popen(
                [*self.command, str(number)], stdin=subprocess.PIPE, stdout=opened, stderr=subprocess.STDOUT,
                env=environment, text=True, start_new_session=True,
            )  # fmt: skip
        worker = _Worker(number, process, log)
        self.workers.append(worker)
        return worker

    def _tell(self, worker: _Worker, cell: Cell) -> None:
        error = self.store.error(cell)
        what = f"FAILED: {error.splitlines()[-1][:160]}" if error and not self.store.has(cell) else "made"
        print(f"{_named(cell)}: {what} ({time.monotonic() - worker.since:.0f} s)", flush=True)

    def _report(self, cells: Sequence[Cell]) -> None:
        made = sum(self.store.has(cell) for cell in cells)
        running = [f"{_named(w.cell)} ({time.monotonic() - w.since:.0f} s)" for w in self._busy() if w.cell]
        failed = sum(bool(self.store.error(cell)) for cell in cells if not self.store.has(cell))
        seconds = time.monotonic() - self.started
        now = ", ".join(running) or "nothing"
        print(f"[{seconds:.0f} s] {made} of {len(cells)} made, {failed} failed, at work: {now}", flush=True)


def _named(cell: Cell) -> str:
    return f"{cell.variant} {cell.scheme} seed {cell.seed}"


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES would name each; without a GPU none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number, line in enumerate(row for row in listed.splitlines() if row.startswith("GPU "))]


def serve(keys: IO[str], cells: Sequence[Cell], store: Store, make: Callable[[Cell], list[dict[str, Any]]]) -> None:
    """A worker's life: make each cell whose key comes in, keep its rows or its error; ends with its parent."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    by_key = {cell.key: cell for cell in cells}
    for line in keys:
        cell = by_key[line.strip()]
        print(f"\n== {_named(cell)}", flush=True)
        try:
            store.keep(cell, make(cell))
        except Exception:
            traceback.print_exc()
            store.fail(cell, traceback.format_exc())
            if "CUDA error" in traceback.format_exc():  # nothing works in this process any more
                sys.exit(1)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
