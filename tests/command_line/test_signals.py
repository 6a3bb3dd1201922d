"""SIGINT, SIGTERM and SIGHUP at any moment: runs KILLED, one line that says how to go on, status 128 + n."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent / "interrupted"))

from forking import Forking

from edgequant.__main__ import WORKFLOWS, workflow
from edgequant.command_line.options import options_of
from edgequant.command_line.shell import RESUMED

EVALUATE = (
    *("evaluate", "--model", "tiny", "--evaluation.tasks", "[domain_perplexity]", "--evaluation.limit", "4"),
    *("--evaluation.window", "64"),
)
FINETUNE = (
    *("finetune", "--training.steps", "6", "--training.save_steps", "2", "--training.batch_size", "2"),
    *("--training.sequence_length", "32", "--training.precision", "float32", *EVALUATE[1:]),
)
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.fixture(scope="module")
def forking(own_places, _empty_store):
    sources = [str(Path(__file__).resolve().parents[2] / name) for name in ("platform", "tune", "registry")]
    process = Forking({**os.environ, "PYTHONPATH": os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")])})
    yield process
    process.close()


@pytest.fixture
def tried(forking, store, tmp_path):
    """Run a command line up to a moment and signal it; its answer, and the statuses of all runs with their variants."""

    def run(*arguments: str, **order: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        store_of = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        order["environment"] = store_of | order.get("environment", {})
        answer = forking(*arguments, folder=tmp_path, **order)
        experiments = [experiment.experiment_id for experiment in store.search_experiments()]
        runs = store.search_runs(experiments)
        kind = ("edgequant.variant", "edgequant.workflow")
        return answer, sorted((next((run.data.tags[k] for k in kind if k in run.data.tags), ""), run.info.status)
                              for run in runs)  # fmt: skip

    return run


def how_to_go_on(answer: dict[str, Any], arguments: tuple[str, ...]) -> str:
    """The one line; asserts that its command is the same with `--resume true`."""
    (line,) = answer["last_words"].splitlines()
    told, _, command = line.partition("; go on with ")
    words = shlex.split(command)
    assert words[words.index(arguments[0]) :] == [*arguments, "--resume", "true"]
    assert words[words.index(arguments[0]) - 1].endswith("edgequant")
    return told


@pytest.mark.long
@pytest.mark.parametrize(
    ("at", "calls", "number", "runs"),
    [
        ("edgequant.workflows.evaluate:check_device", 0, INT, []),
        ("mlflow.tracking.client:MlflowClient.create_run", 0, TERM, [("evaluate", "KILLED")]),
        ("mlflow.tracking.client:MlflowClient.create_run", 1, HUP, [("baseline", "KILLED"), ("evaluate", "KILLED")]),
        ("edgequant.evaluation.suite:evaluate_model", 0, INT, [("baseline", "KILLED"), ("evaluate", "KILLED")]),
        ("mlflow:log_metrics", 0, TERM, [("baseline", "KILLED"), ("evaluate", "KILLED")]),
        ("edgequant.workflows.steps.summary:print_summary", 0, HUP, [("baseline", "FINISHED"), ("evaluate", "KILLED")]),
    ],
)
def test_a_signal_ends_the_runs_as_killed_and_says_how_to_go_on(tried, at, calls, number, runs):
    answer, found = tried(*EVALUATE, at=at, calls=calls, signals=[number])
    assert (answer["status"], found) == (128 + number, runs)
    told = how_to_go_on(answer, EVALUATE)
    assert told.startswith(f"edgequant evaluate: interrupted by {signal.Signals(number).name}; ")
    assert told.endswith(" is KILLED" if runs else "; no run had begun")
    assert answer["seconds"] < 10


def test_a_call_to_the_store_comes_to_its_end_but_is_not_waited_for_forever(tried):
    moment = {"at": "mlflow.tracking.client:MlflowClient.create_run", "calls": 1, "signals": [TERM]}
    answer, runs = tried(*EVALUATE, **moment, hold=60, constants={"edgequant.interruption:PATIENCE_S": 0.5})
    assert (answer["status"], runs) == (143, [("evaluate", "KILLED")])
    assert 0.4 < answer["seconds"] < 10


def test_a_process_that_computes_outside_python_is_ended_from_beside(tried):
    answer, runs = tried(
        *EVALUATE, at="edgequant.evaluation.suite:evaluate_model", signals=[TERM], hold=60, deaf=True,
        constants={"edgequant.interruption:UNWINDING_S": 0.5},
    )  # fmt: skip
    assert (answer["status"], runs) == (143, [("baseline", "KILLED"), ("evaluate", "KILLED")])
    assert how_to_go_on(answer, EVALUATE).endswith(" is KILLED")


def test_a_second_signal_ends_at_once_and_the_runs_are_killed_all_the_same(tried):
    moment = {"at": "edgequant.evaluation.suite:evaluate_model", "hold": 60, "deaf": True}
    answer, runs = tried(*EVALUATE, **moment, signals=[INT, INT], between=0.7)
    assert (answer["status"], runs) == (130, [("baseline", "KILLED"), ("evaluate", "KILLED")])
    assert answer["seconds"] < 5 and how_to_go_on(answer, EVALUATE)


def test_a_signal_that_is_ignored_from_the_start_as_under_nohup_stays_ignored(tried):
    moment = {"at": "edgequant.evaluation.suite:evaluate_model", "signals": [HUP], "ignored": [HUP]}
    answer, runs = tried(*EVALUATE, **moment)
    assert (answer["status"], runs) == (0, [("baseline", "FINISHED"), ("evaluate", "FINISHED")])


@pytest.mark.long
def test_killed_while_a_checkpoint_is_written_the_same_command_goes_on_to_the_same_numbers(tried, store):
    moment = "edgequant.training.trainer:LanguageModelTrainer._save_optimizer_and_scheduler"
    answer, runs = tried(*FINETUNE, at=moment, calls=1, signals=[TERM])
    assert runs == [("baseline", "FINISHED"), ("finetune", "KILLED"), ("finetuned", "KILLED")]
    assert how_to_go_on(answer, FINETUNE).endswith(" is KILLED")
    again, runs = tried(*FINETUNE, "--resume", "true")
    assert runs == [("baseline", "FINISHED"), ("finetune", "FINISHED"), ("finetuned", "FINISHED")], again["stderr"]
    said = again["stdout"].splitlines()
    assert any("resume: goes on with run" in line and "which is KILLED; training at step 2" in line for line in said)
    assert "finetune tiny: training checkpoint checkpoint-4 was not written to its end, and is passed over" in said
    assert "finetune tiny: goes on behind step 2, from checkpoint-2" in said
    tried(*FINETUNE)
    twice = store.search_runs(["1"], "tags.`edgequant.variant` = 'finetuned'")
    assert len(twice) == 2 and len({run.data.metrics["train/loss"] for run in twice}) == 1


def test_the_workflows_that_are_told_to_resume_are_those_that_can():
    assert {name for name in WORKFLOWS if "resume" in options_of(workflow(name))} == {*RESUMED}


def test_a_signal_before_anything_is_imported_is_one_line(environment, tmp_path):
    code = """
        import os, signal, sys
        from edgequant import interruption
        def begin(watch, begin=interruption.Watch.begin):
            begin(watch)
            os.kill(os.getpid(), signal.SIGTERM)
        interruption.Watch.begin, sys.argv = begin, ["edgequant", "qat"]
        from edgequant.command_line.shell import run
        sys.exit(run())
    """
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 143
    (line,) = done.stderr.splitlines()
    assert line.startswith("edgequant qat: interrupted by SIGTERM; no run had begun; go on with ")


def test_a_process_that_is_forked_dies_of_signals_alone(environment, tmp_path):
    code = """
        import multiprocessing, time
        from edgequant import interruption
        watch = interruption.Watch(line=lambda: "told")
        watch.begin()
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
        child.terminate()
        child.join()
        time.sleep(0.3)
        print(child.exitcode, interruption.received())
    """
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["-15", "None"], "")


TUNE = (
    *("tune", "--method", "finetune", "--trials", "3", "--concurrent_trials", "1", "--register", "false"),
    *("--training.steps", "40", "--training.batch_size", "2", "--training.sequence_length", "32", *EVALUATE[1:]),
)


@pytest.mark.long
@pytest.mark.parametrize(
    ("at", "number", "runs"),
    [
        ("ray._private.services:start_raylet", TERM, [("tune", "KILLED")]),
        ("ray._private.worker:connect", HUP, [("tune", "KILLED")]),
        ("edgequant_tune.callbacks:TrialCallback.on_trial_result", TERM, [("trial", "KILLED"), ("tune", "KILLED")]),
        ("ray:shutdown", INT, [*[("trial", "FINISHED")] * 3, ("tune", "KILLED")]),
    ],
)
def test_while_ray_starts_runs_or_ends_a_signal_leaves_no_process_and_no_open_run(tried, at, number, runs):
    answer, found = tried(*TUNE, at=at, signals=[number])
    assert (answer["status"], found, answer["left"]) == (128 + number, runs, 0)
    assert answer["seconds"] < 10 and how_to_go_on(answer, TUNE).endswith(" is KILLED")


@pytest.mark.long
@pytest.mark.parametrize("whole_group", [False, True])
def test_under_mlflow_run_the_run_stays_killed(environment, store, tmp_path, root, whole_group):
    """`mlflow run` would write FAILED over it; where that alone is ended, what it has started ends too."""
    given = dict(zip(FINETUNE[1::2], FINETUNE[2::2], strict=True)) | {"--training.steps": "100000"}
    options = [option for name, value in given.items() for option in ("-P", f"{name[2:]}={value}")]
    program = [shutil.which("mlflow") or "mlflow", "run", str(root), "-e", "finetune", "--env-manager", "local"]
    command = [*program, *options]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE)

    def statuses() -> list[str]:
        experiments = [experiment.experiment_id for experiment in store.search_experiments()]
        return sorted(run.info.status for run in store.search_runs(experiments))

    until = time.monotonic() + 120
    while len(statuses()) < 3 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.2)
    (os.killpg if whole_group else os.kill)(process.pid, INT if whole_group else TERM)
    _, said = process.communicate(timeout=30)
    until = time.monotonic() + 10
    while statuses() != ["FINISHED", "KILLED", "KILLED"] and time.monotonic() < until:
        time.sleep(0.2)
    assert statuses() == ["FINISHED", "KILLED", "KILLED"], said.decode()
    assert said.decode().count("; go on with ") == 1 and "Traceback" not in said.decode()


def test_a_signal_when_all_is_done_changes_no_exit_status_and_ends_what_libraries_do_last(tmp_path):
    code = """
        import atexit, sys, time
        import edgequant.__main__
        from edgequant.command_line import shell
        edgequant.__main__.main = lambda: print("the table") or 0
        atexit.register(lambda: (open("ending", "w").close(), time.sleep(60)))
        sys.exit(shell.run())
    """
    (tmp_path / "done.py").write_text(textwrap.dedent(code))
    unbuffered = {"PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "done"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ | unbuffered
    )
    until = time.monotonic() + 60
    while not (tmp_path / "ending").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(HUP)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and said == "the table\n"
