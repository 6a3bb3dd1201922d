"""Files in worker processes, each under a time and a memory limit; a worker that hangs or dies is replaced."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgequant.corpora.processed_file import ProcessedFile
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import SourceFile

_START_SECONDS = 120
_BATCH = 50  # members that a worker takes at a time


@dataclass(frozen=True)
class _File:
    """A task: to read a file, or find out what the archive holds that it is."""

    position: int
    path: str
    name: str


@dataclass
class _Archive:
    """What has come of an archive, whose members several workers read."""

    file: _File
    said: str
    found: list[ProcessedFile | None]
    seconds: float
    batches: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def spend(self, seconds: float) -> None:
        with self.lock:
            self.seconds -= seconds

    def finish_batch(self) -> bool:
        """Whether it was the last one."""
        with self.lock:
            self.batches -= 1
            return self.batches == 0

    def results(self, timeout_s: float) -> list[ProcessedFile]:
        """A line for what was left out, then what came of the members, in the archive's order."""
        read = [result for result in self.found if result is not None]
        left = len(self.found) - len(read)
        late = (
            f"{left:,} of {len(self.found):,} members not read within archive_timeout_s {timeout_s:g}" if left else ""
        )
        said = "; ".join(filter(None, [self.said, late])) or ("" if self.found else "no file in it")
        return [*([ProcessedFile(self.file.name, refused=said)] if said else []), *read]


@dataclass(frozen=True)
class _Batch:
    """A task: to read some members of an archive, the first of them being its `first`."""

    archive: _Archive
    first: int
    members: list[tuple[str, Sequence[int]]]


Task = _File | _Batch
Done = tuple[int, list[ProcessedFile]]


def process_in_workers(
    files: Sequence[SourceFile],
    tokenizer: Path,
    settings: CorpusSettings,
    on_result: Callable[[int, ProcessedFile], None],
) -> None:
    """Process files in `settings.workers` processes; call on_result(position, result) in this thread as they come.

    An archive gives one result per member, in its order and under the archive's position, and in front of them one
    that says what was left out, if anything was. Its members are shared among the workers.
    """
    tasks: queue.Queue[Task | None] = queue.Queue()
    results: queue.Queue[Done | BaseException] = queue.Queue()
    sizes = {file.path: os.path.getsize(file.path) if os.path.isfile(file.path) else 0 for file in files}
    order = sorted(range(len(files)), key=lambda index: -sizes[files[index].path])  # long ones first: no late straggler
    for index in order:
        tasks.put(_File(index, files[index].path, files[index].name))
    pool = [
        threading.Thread(target=_serve, args=(tasks, results, tokenizer, settings), daemon=True)
        for _ in range(settings.workers)
    ]
    for thread in pool:
        thread.start()
    try:
        for _ in files:
            item = results.get()
            if isinstance(item, BaseException):
                raise item
            position, found = item
            for result in found:
                on_result(position, result)
    finally:
        for _ in pool:
            tasks.put(None)
        for thread in pool:
            thread.join()


def _serve(tasks: queue.Queue, results: queue.Queue, tokenizer: Path, settings: CorpusSettings) -> None:
    """One thread per worker process: feed it, time it, replace it."""
    worker = _Worker(tokenizer, settings)
    try:
        while (task := tasks.get()) is not None:
            done = (
                _read(worker, task, tasks, settings) if isinstance(task, _File) else _read_batch(worker, task, settings)
            )
            if done is not None:
                results.put(done)
    except BaseException as error:
        results.put(error)
    finally:
        worker.stop()


def _read(worker: _Worker, file: _File, tasks: queue.Queue, settings: CorpusSettings) -> Done | None:
    """None for an archive that has members: they become tasks."""
    answer = worker.ask({"path": file.path, "name": file.name})
    if "members" not in answer:
        return file.position, [_result(file.name, answer)]
    members = [(f"{file.name}!/{inner}", place) for inner, place in answer["members"]]
    starts = range(0, len(members), _BATCH)
    archive = _Archive(file, answer["said"], [None] * len(members), settings.archive_timeout_s, len(starts))
    for first in starts:
        tasks.put(_Batch(archive, first, members[first : first + _BATCH]))
    return None if members else (file.position, archive.results(settings.archive_timeout_s))


def _read_batch(worker: _Worker, batch: _Batch, settings: CorpusSettings) -> Done | None:
    """What came of the whole archive, with its last batch."""
    archive = batch.archive
    for number, (name, place) in enumerate(batch.members, batch.first):
        if archive.seconds <= 0:
            break
        started = time.monotonic()
        answer = worker.ask({"path": archive.file.path, "name": name, "place": place})
        archive.found[number] = _result(name, answer)
        archive.spend(time.monotonic() - started)
    if not archive.finish_batch():
        return None
    return archive.file.position, archive.results(settings.archive_timeout_s)


def _result(name: str, answer: dict[str, Any]) -> ProcessedFile:
    if "file" in answer:
        return ProcessedFile.from_json(answer["file"])
    return ProcessedFile(name, refused=answer["error"])


class _Worker:
    """A worker process that starts at its first request and again after it was killed."""

    def __init__(self, tokenizer: Path, settings: CorpusSettings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._start()
        seconds = self._settings.file_timeout_s
        started = time.monotonic()
        try:
            answer = self._exchange(request, seconds)
        except TimeoutError:
            self.stop()
            return {"error": f"not done after file_timeout_s {seconds:g}"}
        except (OSError, EOFError):
            code = self._process.wait() if self._process else None
            self.stop()
            passed = time.monotonic() - started
            return {
                "error": f"broke its worker process after {passed:.0f} s (exit {code}; out of memory or a damaged file)"
            }
        if answer.get("restart"):
            self.stop()
        return answer

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
            self._process = None

    def _start(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MALLOC_ARENA_MAX": "2",
            "PYTHONHASHSEED": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgequant.corpora.processing.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        try:
            self._exchange({"settings": asdict(self._settings), "tokenizer": str(self._tokenizer)}, _START_SECONDS)
        except (OSError, EOFError, TimeoutError) as error:
            self.stop()
            raise RuntimeError(
                "the corpus worker process does not start; try `python -m edgequant.corpora.processing.worker`"
            ) from error

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process and self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._read_line(self._process.stdout.fileno(), time.monotonic() + seconds))

    def _read_line(self, descriptor: int, deadline: float) -> bytes:
        pieces = []
        while True:
            ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError
            piece = os.read(descriptor, 1 << 20)
            if not piece:
                raise EOFError
            pieces.append(piece)
            if piece.endswith(b"\n"):  # one answer per request: nothing follows the line end
                return b"".join(pieces)
