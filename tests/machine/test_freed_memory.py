"""Memory that a tensor has freed serves the next one, up to a bound, and is given back before memory is measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has rules of its own")

# Rounds of eight tensors of 8 MB: the faults of all but the first two rounds, then bytes resident before and after.
ROUNDS = """
import ctypes, resource, sys, torch
from edgequant.evaluation.backends.footprint import _peak_rss, _reset_peak_rss
from edgequant.machine.freed_memory import keep_freed
def rounds(count):
    for _ in range(count):
        tensors = [torch.ones(2 << 20) for _ in range(8)]
        del tensors
for threshold in (-1, -3):  # as glibc begins; left alone it adapts, to where blocks happen to lie
    ctypes.CDLL(None).mallopt(threshold, 128 << 10)
if sys.argv[1] == "kept":
    keep_freed()
rounds(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
_reset_peak_rss()
lean = _peak_rss()
rounds(1)
print(_peak_rss() - lean)
"""


def measured(how, **environment):
    """Page faults of ten rounds, and by how many bytes the peak of one more lies above what was resident."""
    given = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"}
    given["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-c", ROUNDS, how]
    done = subprocess.run(command, capture_output=True, text=True, env=given | environment, check=True)
    return [int(line) for line in done.stdout.split()]


def test_tensors_get_the_memory_of_those_before_them_without_asking_the_system():
    (kept, _), (returned, _) = measured("kept"), measured("returned")
    assert 10 * kept < returned  # a round's 64 MB are 16,384 pages of 4 KB


def test_what_was_kept_is_given_back_before_a_peak_is_measured():
    _, above = measured("kept")
    assert above > 0.9 * (64 << 20)  # none of the 64 MB was resident still


def test_who_has_set_the_allocator_keeps_the_setting():
    faults, _ = measured("kept", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert faults > 10 * 16_000


def test_the_command_line_begins_with_it(monkeypatch):
    from edgequant.command_line import shell

    begun = []

    def work(*_):
        raise SystemExit

    monkeypatch.setattr(shell, "keep_freed", lambda: begun.append(True))
    monkeypatch.setattr(shell, "_status", work)
    with pytest.raises(SystemExit):
        shell.run()
    assert begun == [True]
