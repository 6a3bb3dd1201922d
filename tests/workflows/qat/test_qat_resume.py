"""`edgequant qat`, killed with SIGKILL in mid-training and started again: the same run, the same numbers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

pytestmark = pytest.mark.long  # a kill of each kind is in tests/benchmarks/test_fault_campaign.py

ARGUMENTS = {
    "model": "tiny",
    "scheme": "w8a8-static",
    "device": "cpu",
    "dtype": "float32",
    "seed": "3",
    "training.steps": "24",
    "qat.trainable": "all",
    "training.batch_size": "2",
    "training.sequence_length": "64",
    "training.precision": "float32",
    "evaluation.tasks": "[domain_perplexity]",
    "evaluation.limit": "20",
    "evaluation.window": "256",
    "evaluation.bootstrap_resamples": "20",
}
# What depends on the machine's mood and not on the model.
NOISY = ("tokens_per_second", "latency/", "system/", "peak_rss")


def command(resume: bool) -> list[str]:
    options = [part for key, value in ARGUMENTS.items() for part in (f"--{key}", value)]
    return [sys.executable, "-m", "edgequant", "qat", *options, "--resume", str(resume).lower()]


def environment_in(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {"cwd": folder, "env": environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}}


def run_to_the_end(folder: Path, environment: dict[str, str], *, resume: bool) -> None:
    done = subprocess.run(command(resume), **environment_in(folder, environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def kill_in_mid_training(folder: Path, environment: dict[str, str]) -> None:
    """SIGKILL as soon as a checkpoint is complete; from there on there is something to resume from."""
    with open(folder / "killed.log", "w") as log:
        process = subprocess.Popen(command(False), **environment_in(folder, environment), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            state = "outputs/qat/*/qat-training/checkpoint-6/trainer_state.json"
            while not any(file.read_text().rstrip().endswith("}") for file in folder.glob(state)):
                assert process.poll() is None, (folder / "killed.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL


def runs_in(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The one parent run, and its children by variant."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len({run.data.tags["edgequant.variant"] for run in children})  # none was begun twice
    return parent, {run.data.tags["edgequant.variant"]: run for run in children}


def steady(run: Any) -> dict[str, float]:
    return {name: value for name, value in run.data.metrics.items() if not any(noise in name for noise in NOISY)}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, root):
    """(folder of the run that was killed and resumed, its state in between, folder of the uninterrupted run)"""
    import os

    paths = os.pathsep.join(str(root / source) for source in ("platform", "tune", "registry"))
    environment = {**os.environ, "PYTHONPATH": paths}
    folder = tmp_path_factory.mktemp("resume")
    (folder / "cut").mkdir()
    kill_in_mid_training(folder / "cut", environment)
    between = runs_in(folder / "cut")
    run_to_the_end(folder / "cut", environment, resume=True)
    run_to_the_end(folder / "whole", environment, resume=False)
    return folder / "cut", between, folder / "whole"


def test_the_killed_run_was_left_running_with_its_training_begun(resumed):
    _, (parent, children), _ = resumed
    assert parent.info.status == children["qat"].info.status == "RUNNING"
    assert children["baseline"].info.status == children["ptq"].info.status == "FINISHED"


def test_the_same_runs_are_continued_and_finished(resumed):
    cut, (before, begun), _ = resumed
    parent, children = runs_in(cut)
    assert (parent.info.run_id, parent.info.status) == (before.info.run_id, "FINISHED")
    assert {variant: run.info.run_id for variant, run in children.items()} == {
        variant: run.info.run_id for variant, run in begun.items()
    }
    assert {run.info.status for run in children.values()} == {"FINISHED"}


def test_all_metrics_are_those_of_the_uninterrupted_run(resumed):
    cut, _, whole = resumed
    (one, its), (other, others) = runs_in(cut), runs_in(whole)
    assert steady(one) == steady(other)
    assert "domain/perplexity" in steady(one) and "train/loss" in steady(its["qat"])
    for variant in ("baseline", "ptq", "qat"):
        assert steady(its[variant]) == steady(others[variant])


def test_the_training_curve_has_every_step(resumed):
    cut, _, whole = resumed
    curves = []
    for folder in (cut, whole):
        client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        history = client.get_metric_history(runs_in(folder)[1]["qat"].info.run_id, "train/loss")
        curves.append({point.step: point.value for point in history if point.step > 0})
    assert curves[0] == curves[1]
    assert set(curves[0]) == set(range(1, 25))


def test_the_checkpoints_are_equal_to_the_last_bit(resumed):
    cut, _, whole = resumed
    files = [next(folder.glob("outputs/qat/*/checkpoint/model.safetensors")) for folder in (cut, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_it_is_registered_once(resumed):
    cut, *_ = resumed
    client = mlflow.MlflowClient(f"sqlite:///{cut}/mlflow.db")
    assert [str(version.version) for version in client.search_model_versions("name = 'edgequant-tiny'")] == ["1"]
