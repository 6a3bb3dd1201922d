"""How `make` runs the tests: a process of them that is killed fails the run, instead of being waited for for ever."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from source_trees import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
WORKERS = re.search(r"^WORKERS := (.+)$", MAKEFILE, re.M)
KILLED = "import os\n\ndef test_killed():\n    os.kill(os.getpid(), 9)\n\ndef test_behind_it():\n    pass\n"


def test_every_run_in_several_processes_has_the_same_options():
    lines = [line for line in MAKEFILE.splitlines() if "-m pytest" in line]
    several = [line for line in lines if "$(WORKERS)" in line]
    assert len(several) == 4 and not [line for line in lines if re.search(r"\s(-n|--dist|--numprocesses)\b", line)]


@pytest.mark.parametrize("more", [[], ["--no-loadscope-reorder"]])
def test_a_killed_process_fails_the_run(tmp_path: Path, more):
    (tmp_path / "test_killed.py").write_text(KILLED)
    for name in ("second", "third"):
        (tmp_path / f"test_{name}.py").write_text("def test_it():\n    pass\n")
    assert WORKERS
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *WORKERS[1].split(), *more, "."]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "crashed while running 'test_killed.py::test_killed'" in done.stdout
