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
    for line in sys.stdin:
        _answer(answers, _handle(json.loads(line), settings, count))


def _handle(request: dict[str, Any], settings: CorpusSettings, count: Any) -> dict[str, Any]:
    from edgequant.corpora.processing.file_processing import is_archive, list_members, process_file

    path, name, member = request["path"], request["name"], request.get("member")
    try:
        if member is None and is_archive(path):
            members, refused = list_members(path, name, settings)
            return {"members": members, "refused": [item.to_json() for item in refused]}
        return {"file": process_file(path, name, member, settings, count).to_json()}
    except MemoryError:
        return {"error": f"needs more than file_memory_mb {settings.file_memory_mb}", "restart": True}
    except RecursionError:
        return {"error": "nested too deeply"}
    except Exception as error:  # the last line of defence: one file must not end the run
        return {"error": f"could not be processed: {type(error).__name__}: {str(error)[:120]}", "restart": True}


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
