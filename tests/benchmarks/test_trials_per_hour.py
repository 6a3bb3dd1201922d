"""benchmarks/search/trials_per_hour.py: what it counts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks" / "search"))

import trials_per_hour as script

FAKE = """
import json, pathlib, sys, time
place = pathlib.Path("search/tune/run")
place.mkdir(parents=True)
lines = [{"number": n, "id": str(n), "values": {}, "status": STATUS, "seconds": 0.2} for n in (1, 2)]
(place / "trials.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
time.sleep(0.3)
print("trial 2/2  finished  domain/perplexity 9.1  1 s", flush=True)
time.sleep(0.5)
print("trial 1/2  finished  domain/perplexity 9.0  1 s", flush=True)
sys.exit(CODE)
"""


@pytest.fixture
def command(monkeypatch):
    """Runs a script of ours in the place of `edgequant tune`; the command lines that were asked for."""
    asked, real = [], script.subprocess.Popen

    def begin(wanted, **more):
        asked.append((wanted, more["env"]["CUDA_VISIBLE_DEVICES"]))
        return real([sys.executable, "-c", begin.source], **more)

    monkeypatch.setattr(script.subprocess, "Popen", begin)
    begin.asked = asked
    return begin


def options(**changes):
    given = {"model": "tiny", "rounds": 2, "steps": 4, "batch": 2, "length": 64} | changes
    return argparse.Namespace(**given)


def test_a_rate_is_from_the_first_beginning_to_the_last_end(command, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    command.source = FAKE.replace("STATUS", json.dumps("finished")).replace("CODE", "0")
    found = script.searched(script.Side(2, 3), options())
    assert found.trials == 2 and 0.6 < found.seconds < 1.5, "0.2 s before the first end, half a second to the next"
    assert found.per_hour == pytest.approx(7200 / found.seconds)
    ((wanted, shown),) = command.asked
    assert shown == "5,6" and wanted[wanted.index("--trials") + 1] == "12"
    assert wanted[wanted.index("--gpus_per_trial") + 1] == "0.333"


@pytest.mark.parametrize(("status", "code", "said"), [("failed", "0", "is failed"), ("finished", "3", "ended with 3")])
def test_a_search_that_failed_is_no_figure(command, status, code, said):
    command.source = FAKE.replace("STATUS", json.dumps(status)).replace("CODE", code)
    with pytest.raises(SystemExit, match=said):
        script.searched(script.Side(0, 1), options())
