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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgequant.corpora.processed_file import ProcessedFile
from edgequant.corpora.settings import CorpusSettings
from edgequant.corpora.sources import SourceFile

_START_SECONDS = 120
Task = tuple[int, str, str, str | None]  # position, path, name, archive member


def process_in_workers(
    files: Sequence[SourceFile],
    tokenizer: Path,
    settings: CorpusSettings,
    on_result: Callable[[int, ProcessedFile], None],
) -> None:
    """Process files in `settings.workers` processes; call on_result(position, result) in this thread as they come.

    An archive gives one result per member, under the archive's position.
    """
    tasks: queue.Queue[Task | None] = queue.Queue()
    results: queue.Queue[tuple[int, ProcessedFile | None] | BaseException] = queue.Queue()
    sizes = {file.path: os.path.getsize(file.path) if os.path.isfile(file.path) else 0 for file in files}
    order = sorted(range(len(files)), key=lambda index: -sizes[files[index].path])  # long ones first: no late straggler
    for index in order:
        tasks.put((index, files[index].path, files[index].name, None))
    pool = [
        threading.Thread(target=_serve, args=(tasks, results, tokenizer, settings), daemon=True)
        for _ in range(settings.workers)
    ]
    for thread in pool:
        thread.start()
    open_tasks = len(files)
    try:
        while open_tasks:
            item = results.get()
            if isinstance(item, BaseException):
                raise item
            index, result = item
            if result is None:
                open_tasks -= 1
            else:
                on_result(index, result)
    finally:
        for _ in pool:
            tasks.put(None)
        for thread in pool:
            thread.join()


def _serve(tasks: queue.Queue, results: queue.Queue, tokenizer: Path, settings: CorpusSettings) -> None:
    """One thread per worker process: feed it, time it, replace it. None among the results marks a finished task."""
    worker = _Worker(tokenizer, settings)
    try:
        while (task := tasks.get()) is not None:
            index, path, name, member = task
            answer = worker.ask({"path": path, "name": name, "member": member})
            for extra in answer.get("refused", ()):
                results.put((index, ProcessedFile.from_json(extra)))
            if "members" in answer:
                for inner, shown in answer["members"]:
                    reply = worker.ask({"path": path, "name": shown, "member": inner})
                    results.put((index, _result(shown, reply)))
            else:
                results.put((index, _result(name, answer)))
            results.put((index, None))
    except BaseException as error:
        results.put(error)
    finally:
        worker.stop()


def _result(name: str, answer: dict[str, Any]) -> ProcessedFile:
    if "file" in answer:
        return ProcessedFile.from_json(answer["file"])
    return ProcessedFile(name, refused=answer.get("error", "archive in an archive; unpack it"))


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
