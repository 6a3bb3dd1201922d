"""A worker process: reads one request per line, processes one file under a memory limit, answers with one line of JSON.

Started by `sandbox`, never by hand. Imports neither torch nor transformers: two workers and their parent stay small.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from edgequant.corpora.settings import CorpusSettings


def main() -> None:
    answers = _private_stdout()
    start = json.loads(sys.stdin.readline())
    settings = CorpusSettings(**start["settings"])
    from edgequant.corpora.extraction import extract, markup, pdf, records  # noqa: F401
    from edgequant.corpora.processing import file_processing  # noqa: F401
    from edgequant.corpora.text import boilerplate, tokens  # noqa: F401

    count = tokens.TokenCounter(start["tokenizer"])
    _limit_memory(settings.file_memory_mb)
    _answer(answers, {"ready": True})
    opened = _Opened()
    for line in sys.stdin:
        _answer(answers, _handle(json.loads(line), settings, count, opened))


class _Opened:
    """The archive that was asked for last: its members are asked for one after the other."""

    def __init__(self) -> None:
        self._path = ""
        self._archive: Any = None

    def archive(self, path: str) -> Any:
        from edgequant.corpora.processing.archives.open_archive import open_archive

        if path != self._path:
            if self._archive is not None:
                self._archive.close()
            self._path, self._archive = "", None  # if it cannot be opened
            self._archive = open_archive(path)
            self._path = path
        return self._archive


def _handle(request: dict[str, Any], settings: CorpusSettings, count: Any, opened: _Opened) -> dict[str, Any]:
    from edgequant.corpora.extraction.extracted import ExtractionError

    try:
        return _answered(request, settings, count, opened)
    except ExtractionError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"needs more than file_memory_mb {settings.file_memory_mb}", "restart": True}
    except RecursionError:
        return {"error": "nested too deeply"}
    except OSError as error:
        return {"error": f"not readable: {error.strerror or error}"}
    except Exception as error:  # the last line of defence: one file must not end the run
        return {"error": f"could not be processed: {type(error).__name__}: {str(error)[:120]}", "restart": True}


def _answered(request: dict[str, Any], settings: CorpusSettings, count: Any, opened: _Opened) -> dict[str, Any]:
    """What came of a file, or of a member where its place is given; of an archive its members and their places."""
    from edgequant.corpora.processing.archives.open_archive import list_archive
    from edgequant.corpora.processing.file_processing import process_file, process_member

    path, name, place = request["path"], request["name"], request.get("place")
    archive = opened.archive(path)
    if place is not None:
        return {"file": process_member(archive, tuple(place), name, settings, count).to_json()}
    if archive is None:
        return {"file": process_file(path, name, settings, count).to_json()}
    listing = list_archive(archive, path, settings)
    return {"members": listing.members, "said": listing.said()}


def _private_stdout() -> TextIO:
    """Libraries that print must not write between the answers."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def _limit_memory(megabytes: int) -> None:
    """Limit private memory to what is used now plus `megabytes`; where the system cannot, time limits alone hold."""
    try:
        import resource

        with open("/proc/self/status") as status:
            used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
        limit = used + megabytes * 1_000_000
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except (ImportError, OSError, ValueError, StopIteration):
        pass


if __name__ == "__main__":
    main()
