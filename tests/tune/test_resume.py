import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def begin(folder, *arguments):
    paths = [HERE, *(ROOT / name for name in ("platform", "tune", "registry"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "FAKE_SECONDS_PER_STEP": "0.1"}
    command = [sys.executable, str(HERE / "interrupted_search.py"), str(folder), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def calls(folder):
    return [line.split()[0] for file in folder.glob("out/*/calls.txt") for line in file.read_text().splitlines()]


def kill(process):
    """SIGKILL to the driver alone, then to what it has left behind, as a crash of the machine would."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for member in family:
        if member.is_running():
            member.kill()


@pytest.mark.long
def test_a_killed_search_goes_on_in_the_same_run_without_repeating_finished_trials(tmp_path, store):
    first = begin(tmp_path)
    until = time.monotonic() + 120
    while len(calls(tmp_path)) < 3 and time.monotonic() < until and first.poll() is None:
        time.sleep(0.1)
    time.sleep(0.5)
    kill(first)
    assert len(calls(tmp_path)) == 3, first.stdout.read().decode()

    resumed = begin(tmp_path, "resume")
    output, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, output.decode()

    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    runs = store.search_runs(experiments)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1 and parents[0].info.status == "FINISHED"
    assert len(runs) == 5 and {run.info.status for run in runs} == {"FINISHED"}
    begun = calls(tmp_path)
    finished_before = begun[:2]
    assert len(set(begun)) == 4 and all(begun.count(trial) == 1 for trial in finished_before)
