"""`mlflow run .` on a copy of the project: parameters pass through, and conda's commands are followed verbatim."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

MLFLOW = Path(sys.executable).with_name("mlflow")
# What answers as conda does to mlflow: one environment after `env create`, whose python is the one that runs this test.
CONDA = """#!/bin/bash
echo "conda $*" >> "$STUB/calls"
case "$1 $2" in
  "--help "* | "--version "*) echo "conda 25.1.0" ;;
  "info --json") echo '{"conda_prefix": "'$STUB'"}' ;;
  "env list") echo '{"envs": ["'$(cat "$STUB/environment" 2>/dev/null)'"]}' ;;
  "env create") echo "$STUB/envs/$4" > "$STUB/environment" && cp "$6" "$STUB/created.yaml" ;;
  *) exit 64 ;;
esac
"""
ACTIVATE = """echo "activate $1" >> "$STUB/calls"
[ "$STUB/envs/$1" = "$(cat "$STUB/environment")" ] || exit 65
export PATH="$STUB/python:$PATH"
"""


@pytest.fixture
def project(tmp_path, root) -> Path:
    """What a fresh clone holds, as far as a run needs it."""
    folder = tmp_path / "edgequant"
    folder.mkdir()
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(root / name, folder)
    for name in ("platform", "tune", "registry", "experiments"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def clean_environment(*first_on_path: Path) -> dict[str, str]:
    """Without our sources on the path and without a chosen store: the project has to see to both."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "CONDA_EXE")
        # mlflow.set_experiment in another test leaves its experiment in the environment
        and not (key.startswith("MLFLOW_") and key.endswith(("_ID", "_URI", "_NAME")))
    }
    path = os.pathsep.join([*map(str, first_on_path), str(MLFLOW.parent), kept["PATH"]])
    return kept | {"PATH": path}


def mlflow_run(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(MLFLOW), "run", ".", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=280)


def the_run(project: Path, workflow: str = "qat"):
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (run,) = [run for run in runs if run.data.tags.get("edgequant.workflow") == workflow]
    return client, run


def test_parameters_pass_through_plain_and_nested(project):
    done = mlflow_run(
        project, "-e", "qat", "-P", "model=tiny", "-P", "training.steps=3", "-P", "training.batch_size=2",
        "-P", "adapt=true", "-P", "evaluation.limit=20", "-P", "evaluation.tasks=[domain_perplexity]",
        "--env-manager", "local", **clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    client, run = the_run(project)
    assert run.info.status == "FINISHED"
    config = yaml.safe_load(Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text())
    assert (config["model"], config["adapt"]) == ("tiny", True)
    assert (config["training"]["steps"], config["training"]["batch_size"]) == (3, 2)
    assert config["evaluation"]["limit"] == 20
    recipe = yaml.safe_load((project / "experiments" / "qat.yaml").read_text())
    assert config["training"]["learning_rate"] == recipe["training"]["learning_rate"]
    assert run.data.tags["mlflow.project.entryPoint"] == "qat"  # the run that mlflow made is the workflow's
    assert client.get_model_version("edgequant-tiny", "1").run_id == run.info.run_id


def test_a_wrong_parameter_fails_the_run_and_says_why(project):
    done = mlflow_run(project, "-e", "qat", "-P", "training.stepps=3", "--env-manager", "local", **clean_environment())
    assert done.returncode != 0
    assert "--training.stepps is unknown" in done.stderr + done.stdout


@pytest.fixture
def stub(tmp_path) -> Path:
    """A folder with `conda`, `activate`, and the python that the activated environment has."""
    folder = tmp_path / "stub"
    for name, text in (
        ("bin/conda", CONDA),
        ("bin/activate", ACTIVATE),
        ("python/python", f'#!/bin/bash\necho "python $*" >> "$STUB/calls"\nexec {sys.executable} "$@"\n'),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.long
def test_the_verbatim_command_runs_in_the_environment_that_conda_makes(project, stub):
    """`mlflow run . -e qat -P model=tiny`, with the recipe's own numbers."""
    done = mlflow_run(project, "-e", "qat", "-P", "model=tiny", **clean_environment(stub / "bin"), STUB=str(stub))
    assert done.returncode == 0, done.stderr
    calls = (stub / "calls").read_text().splitlines()
    (created,) = [call for call in calls if call.startswith("conda env create")]
    environment = created.split()[4]
    assert environment.startswith("mlflow-") and created.endswith("conda.yaml")
    assert (stub / "created.yaml").read_bytes() == (project / "conda.yaml").read_bytes()
    activated = calls.index(f"activate {environment}")
    ran = next(place for place, call in enumerate(calls) if call.startswith("python -m edgequant qat"))
    assert calls.index(created) < activated < ran
    assert "--config experiments/qat.yaml" in calls[ran] and "--model tiny" in calls[ran]
    client, run = the_run(project)
    assert run.info.status == "FINISHED"
    variants = [
        child.data.tags["edgequant.variant"]
        for child in client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    ]
    assert set(variants) == {"baseline", "ptq", "qat"}
    assert {"domain/perplexity", "size/reduction_vs_fp16", "latency/decode_ms_per_token"} <= set(run.data.metrics)
    assert run.data.metrics["size/reduction_vs_fp16"] > 70
