"""Repetitions in processes of their own: what the first one tells the others, and what a process that ended tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgequant.errors import UserError
from edgequant.evaluation.backends import alone
from edgequant.evaluation.backends.llama_cpp import timed_alone


class Process:
    """What is left of a process that was to tell figures."""

    def __init__(self, code: int) -> None:
        self.returncode, self.stderr = code, "" if code <= 0 else "no such file"
        self.stdout = '{"load": 1, "first_token": 1, "total": 2, "new_tokens": 2, "peak_rss": 10}\n'


@pytest.mark.parametrize(
    ("codes", "repacked"), [([0, 0, 0], [True, True, True]), ([-11, 0, 0], [True, False, False])], ids=["works", "dies"]
)
def test_the_first_repetition_tells_whether_weights_may_be_repacked(monkeypatch, codes, repacked):
    """A signal to it, as of a CPU that announces what it has not: no process of its own has to find that out."""
    asked = []
    left = iter(codes)

    def run(module, told, within=()):
        asked.append(told["repack"])
        return Process(next(left))

    monkeypatch.setattr(alone, "run_alone", run)
    times = timed_alone.TimesAlone(Path("a.gguf"), threads=1, prompt_length=2, new_tokens=2)
    while len(asked) < len(codes):
        times(seed=len(asked))
    assert asked == repacked


def test_a_later_repetition_that_is_killed_and_a_refusal_are_told(monkeypatch):
    left = iter([0, -9, 1])
    monkeypatch.setattr(alone, "run_alone", lambda *_: Process(next(left)))
    times = timed_alone.TimesAlone(Path("a.gguf"), threads=1, prompt_length=2, new_tokens=2)
    times(seed=0)
    with pytest.raises(UserError, match=r"ended with code -9"):
        times(seed=1)
    with pytest.raises(UserError, match=r"a\.gguf could not be timed in llama\.cpp: no such file"):
        timed_alone.TimesAlone(Path("a.gguf"), threads=1, prompt_length=2, new_tokens=2)(seed=0)
