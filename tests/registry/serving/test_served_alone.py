"""A version served in an environment of its own, made from its requirements: `make test-slow`, with a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgequant import models
from edgequant.export.shipped import ship
from edgequant_registry.packaging import make_servable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("pyenv") is None, reason="mlflow's virtualenv manager needs pyenv"),
]


@pytest.mark.parametrize("exported", [False, True])
def test_a_fresh_virtualenv_serves_it_with_no_checkout_near(
    exported: bool, root: Path, register: Any, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    if exported:
        ship(models.load(str(folder), device="cpu", dtype="float32"), folder, "gguf")
    register(folder=folder)
    make_servable("edgequant-tiny", "1")
    script = shutil.copy(root / "benchmarks" / "serving_load.py", tmp_path)
    command = [sys.executable, script, "--model", "models:/edgequant-tiny/1", "--env_manager", "virtualenv"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"MLFLOW_ENV_ROOT": str(tmp_path / "environments")}
    done = subprocess.run(
        [*command, "--seconds", "5", "--clients", "3"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    log = (tmp_path / "serving.log").read_text()
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log[-3000:]}"
    assert re.search(r"errors +0\n", done.stdout)
    (installed,) = (tmp_path / "environments").glob("*/lib/python*/site-packages")
    names = {path.name for path in installed.iterdir()}
    assert "torch" in names and ("xllamacpp" in names) == exported
    assert not [name for name in names if name.startswith("edgequant")]
