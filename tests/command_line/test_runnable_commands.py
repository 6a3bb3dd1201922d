"""Commands that are printed run as they are printed, wherever the environment lies."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgequant import commands
from edgequant.__main__ import main
from edgequant.commands import runnable


@pytest.fixture
def environment(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """bin of an environment in .venv of the working directory, with both programs; not on the PATH."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "edgequant", "mlflow"):
        (folder / name).write_text(f"#!/bin/sh\necho this is {name} $1\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(commands, "STARTED_BY", [])
    return folder


def said_by_a_shell(command: str) -> str:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout.strip()


def test_a_program_that_is_not_on_the_path_is_named_by_its_place(environment):
    assert runnable("edgequant promote --model tiny") == ".venv/bin/edgequant promote --model tiny"
    assert said_by_a_shell(runnable("mlflow ui")) == "this is mlflow ui"


def test_a_command_that_an_error_names_is_named_by_its_place_too(store, environment, capsys):
    said = commands.with_runnable(
        "run `edgequant qat --model 'my model'` or `mlflow ui`; `qat` and `a b` are no commands"
    )
    assert said == (
        "run `.venv/bin/edgequant qat --model 'my model'` or `.venv/bin/mlflow ui`; `qat` and `a b` are no commands"
    )
    assert main(["promote"]) == 2
    assert (
        "no edgequant-* model is registered" in (told := capsys.readouterr().err)
        and "`.venv/bin/edgequant qat`" in told
    )


def test_in_an_activated_environment_the_name_is_enough(environment, monkeypatch):
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin:/bin")
    assert runnable("edgequant report") == "edgequant report"
    assert said_by_a_shell(runnable("edgequant report")) == "this is edgequant report"


@pytest.mark.parametrize("variable", ["MAKELEVEL", "MLFLOW_RUN_ID"])
def test_a_path_that_make_or_mlflow_changed_is_not_trusted(root, variable):
    """`make qat` puts .venv/bin on the PATH of its commands, which the shell that shows the line has not."""
    program = (
        "import os, edgequant.__main__; os.environ.clear(); from edgequant import commands; print(commands.STARTED_BY)"
    )
    environment = {"PYTHONPATH": str(root / "platform"), variable: "1"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == f"['{variable}']"


def test_then_the_place_of_the_program_is_told(environment, monkeypatch):
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin:/bin")
    monkeypatch.setattr(commands, "STARTED_BY", ["MAKELEVEL"])
    assert runnable("edgequant report") == ".venv/bin/edgequant report"


def test_another_environments_program_is_not_taken(environment, monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "edgequant").write_text("#!/bin/sh\n")
    (other / "edgequant").chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:/usr/bin:/bin")
    assert runnable("edgequant report") == ".venv/bin/edgequant report"


def test_an_environment_elsewhere_is_named_whole_and_quoted(environment, monkeypatch, tmp_path):
    place = tmp_path / "with space" / "bin"
    place.mkdir(parents=True)
    (environment / "edgequant").rename(place / "edgequant")
    monkeypatch.setattr(sys, "executable", str(place / "python"))
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert said_by_a_shell(runnable("edgequant doctor")) == "this is edgequant doctor"


def test_sources_that_are_not_installed_run_as_a_module(environment, monkeypatch, root):
    """As in the environment that `mlflow run` makes, which holds the dependencies alone."""
    (environment / "edgequant").unlink()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["platform", "tune", "", "platform"]))
    assert runnable("edgequant promote") == "PYTHONPATH=platform:tune .venv/bin/python -m edgequant promote"
    monkeypatch.undo()
    monkeypatch.setattr("edgequant.commands._is_on_path", lambda _: False)
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    monkeypatch.setenv("PYTHONPATH", str(root / "platform"))
    command = runnable("edgequant --help")
    monkeypatch.undo()
    assert "usage: edgequant" in said_by_a_shell(command)


def test_other_programs_are_left_alone():
    for command in ("llama-cli -m out/tiny.gguf", "vllm serve out", ""):
        assert runnable(command) == command


def test_a_page_is_opened_by_what_this_machine_has(environment):
    program, page = shlex.split(runnable("open out/report.html"))[0], "out/report.html"
    assert runnable("open out/report.html").endswith(page)
    assert program == ".venv/bin/python" or subprocess.run(["which", program], capture_output=True).returncode == 0
