"""A real disk of a few hundred kilobytes: a tmpfs in a namespace of its own, where the system lets users make one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run_on_small_disk(place: Path, kilobytes: int, code: str, environment: dict[str, str]) -> str:
    """What Python code prints whose working folder is such a disk."""
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$1" && cd "$1" && exec "$2" -c "$3"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(place), sys.executable, code]
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces for users here")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if "mount:" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
