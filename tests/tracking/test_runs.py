"""What a run leaves in the store, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import mlflow
import pytest
from stored_artifacts import artifact

from edgequant import tracking
from edgequant.errors import UserError


def test_variants_are_nested_runs_with_the_contracts_tags(store):
    with tracking.workflow_run("qat", {}) as parent:
        with tracking.variant_run("baseline", model="tiny", scheme="none", phase="qat") as child:
            tracking.log_metrics({"domain/perplexity": 3.0})
        tracking.log_metrics({"domain/perplexity": 4.0})
    tags = store.get_run(child.id).data.tags
    expected = {"variant": "baseline", "model": "tiny", "scheme": "none", "phase": "qat"}
    assert {key: tags[f"edgequant.{key}"] for key in expected} == expected
    assert tags["mlflow.parentRunId"] == parent.id
    assert store.get_run(child.id).data.metrics == {"domain/perplexity": 3.0}
    assert store.get_run(parent.id).data.metrics["domain/perplexity"] == 4.0
    assert store.get_run(parent.id).data.tags["edgequant.workflow"] == "qat"


def test_a_workflow_inside_another_nests_under_it(store):
    with tracking.workflow_run("pipeline", {}) as outer, tracking.workflow_run("qat", {"a": 1}) as inner:
        pass
    assert store.get_run(inner.id).data.tags["mlflow.parentRunId"] == outer.id
    assert {run.id for run in tracking.find_runs(parent=outer.id)} == {inner.id}


def test_an_error_ends_the_run_as_failed_with_its_traceback(store):
    with (
        pytest.raises(ZeroDivisionError),
        tracking.workflow_run("qat", {}) as parent,
        tracking.variant_run("qat", model="tiny", scheme="w8", phase="qat") as child,
    ):
        1 / 0  # noqa: B018
    for run in (parent, child):
        assert store.get_run(run.id).info.status == "FAILED"
        assert "ZeroDivisionError: division by zero" in artifact(run.id, "traceback.txt")
    assert mlflow.active_run() is None


def test_interruption_by_the_user_ends_all_runs_as_killed(store):
    with (
        pytest.raises(KeyboardInterrupt),
        tracking.workflow_run("qat", {}) as parent,
        tracking.variant_run("qat", model="tiny", scheme="w8", phase="qat") as child,
    ):
        raise KeyboardInterrupt
    assert [store.get_run(run.id).info.status for run in (parent, child)] == ["KILLED", "KILLED"]


def test_an_error_is_reported_even_if_the_store_fails_meanwhile(store, monkeypatch):
    def gone(*_args, **_more):
        raise OSError("store is gone")

    with pytest.raises(ZeroDivisionError), tracking.workflow_run("qat", {}):
        monkeypatch.setattr(mlflow, "log_text", gone)
        1 / 0  # noqa: B018


WORKING = """
import sys, time
sys.path[:0] = {path!r}
from edgequant import tracking
with tracking.workflow_run("qat", {{"a": 1}}) as run:
    with tracking.variant_run("qat", model="tiny", scheme="w8", phase="qat") as child:
        print(run.id, child.id, flush=True)
        time.sleep(120)
"""


@pytest.fixture
def working(store, environment, tmp_path):
    """A process inside a variant of a workflow, and the ids of its runs."""
    code = WORKING.format(path=[path for path in sys.path if path])
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]
        yield process, line.split()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_sigterm_ends_the_runs_as_killed(working, store):
    process, ids = working
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert [store.get_run(run).info.status for run in ids] == ["KILLED", "KILLED"]


def test_a_run_whose_process_was_killed_outright_is_closed_by_the_next_workflow(working, store):
    process, ids = working
    with tracking.workflow_run("evaluate", {}):
        assert {store.get_run(run).info.status for run in ids} == {"RUNNING"}  # its process lives: left alone
    process.kill()
    process.wait()
    assert {store.get_run(run).info.status for run in ids} == {"RUNNING"}  # nobody told the store
    with tracking.workflow_run("evaluate", {}):
        pass
    assert {store.get_run(run).info.status for run in ids} == {"KILLED"}


def test_resume_continues_the_killed_run_and_its_variant(working, store):
    process, (parent, child) = working
    process.kill()
    process.wait()
    with tracking.workflow_run("qat", {"a": 1}, resume=True) as run:
        assert (run.id, run.resumed) == (parent, True)
        with tracking.variant_run("qat", model="tiny", scheme="w8", phase="qat") as again:
            assert (again.id, again.resumed) == (child, True)
    assert [store.get_run(run_id).info.status for run_id in (parent, child)] == ["FINISHED", "FINISHED"]


def test_a_live_run_is_never_taken_over(working, store):
    _, ids = working
    told = rf"run {ids[0]} of this configuration is still running .* or begin another without --resume true"
    with pytest.raises(UserError, match=told), tracking.workflow_run("qat", {"a": 1}, resume=True):
        pass
    assert [store.get_run(run).info.status for run in ids] == ["RUNNING", "RUNNING"]


def test_resume_takes_only_a_run_of_the_same_configuration(store):
    ids = []
    for config in ({"a": 1}, {"a": 2}):
        with pytest.raises(RuntimeError), tracking.workflow_run("qat", config) as run:
            ids.append(run.id)
            raise RuntimeError
    with tracking.workflow_run("qat", {"a": 1, "resume": True}, resume=True) as run:
        assert run.id == ids[0]
    with tracking.workflow_run("qat", {"a": 1}, resume=True) as run:
        assert run.id not in ids  # finished now: a new one
    with tracking.workflow_run("qat", {"a": 3}, resume=True) as run:
        assert run.id not in ids


def test_a_resumed_run_gets_rid_of_its_failure(store):
    with pytest.raises(RuntimeError), tracking.workflow_run("qat", {}) as run:
        raise RuntimeError
    with tracking.workflow_run("qat", {}, resume=True) as again:
        assert again.id == run.id
        assert store.get_run(run.id).info.status == "RUNNING"
    assert store.get_run(run.id).info.status == "FINISHED"


def test_the_run_that_mlflow_run_made_is_used_and_keeps_its_experiment(store, monkeypatch):
    launched = store.create_run(store.create_experiment("chosen"), run_name="mlflow's own")
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    with tracking.workflow_run("qat", {}, experiment="edgequant") as run:
        assert run.id == launched.info.run_id
    assert store.get_run(run.id).info.experiment_id == launched.info.experiment_id
    assert store.get_run(run.id).info.status == "FINISHED"


def test_resuming_under_mlflow_run_continues_the_old_run_and_says_so_on_the_new(store, monkeypatch):
    with pytest.raises(RuntimeError), tracking.workflow_run("qat", {}) as old:
        raise RuntimeError
    launched = store.create_run(store.get_run(old.id).info.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)
    with tracking.workflow_run("qat", {}, resume=True) as run:
        assert run.id == old.id
    found = store.get_run(launched.info.run_id)
    assert found.data.tags["edgequant.resumed_run"] == old.id and found.info.status == "FINISHED"


def test_runs_are_found_newest_first_by_workflow_in_every_experiment(store):
    ids = []
    for number, experiment in enumerate(("one", "two", "one")):
        with tracking.workflow_run("qat", {"number": number}, experiment=experiment) as run:
            tracking.log_metrics({"domain/perplexity": float(number)})
        ids.append(run.id)
        time.sleep(0.002)  # start times are in milliseconds
    with tracking.workflow_run("ptq", {}):
        pass
    assert [run.id for run in tracking.find_runs(workflow="qat")] == ids[::-1]
    assert [run.id for run in tracking.find_runs(workflow="qat", experiment="one")] == [ids[2], ids[0]]
    newest = tracking.find_runs(workflow="qat")[0]
    assert (newest.metrics, newest.params["cfg.number"], newest.status) == ({"domain/perplexity": 2.0}, "2", "FINISHED")
    with pytest.raises(UserError, match=r"experiment 'three' not found in sqlite.*there are: Default, .*one, two"):
        tracking.find_runs(experiment="three")


def test_an_url_opens_the_run_in_the_ui_or_on_its_server(store, monkeypatch):
    with tracking.workflow_run("qat", {}) as run:
        page = f"#/experiments/{run.experiment_id}/runs/{run.id}?workflowType=machine_learning"
    assert run.url == f"http://127.0.0.1:5000/{page}"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://mlflow.example.org/")
    assert tracking.run_url("1", "abc").startswith("https://mlflow.example.org/#/experiments/1/runs/abc?")
    assert tracking.ui_command() is None


def test_a_registered_checkpoint_carries_tags_on_its_version(store, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text("{}")
    for expected in ("1", "2"):
        with tracking.workflow_run("qat", {"n": expected}) as run:
            tags = {"boolq/accuracy": "0.5", "edgequant.scheme": "w8"}
            version = tracking.register_checkpoint(tmp_path / "c", "edgequant-tiny", tags=tags)
        assert version == expected
    found = store.get_model_version("edgequant-tiny", "2")
    assert found.tags == {"boolq/accuracy": "0.5", "edgequant.scheme": "w8"}
    assert found.run_id == run.id
    assert (tracking.download("models:/edgequant-tiny/2") / "config.json").read_text() == "{}"


@pytest.mark.long
def test_what_was_fetched_is_gone_when_the_process_ends(environment, tmp_path):
    code = textwrap.dedent("""
        from edgequant import tracking
        with tracking.workflow_run("qat", {}) as run: pass
        print(tracking.download(f"runs:/{run.id}/config.yaml").is_file())
    """)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    changed = environment | {"TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", code], env=changed, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip().endswith("True"), done.stderr
    assert not list(temporary.glob("edgequant-*"))


def test_the_users_tracking_uri_is_honoured(environment, tmp_path):
    code = textwrap.dedent("""
        from edgequant import tracking
        with tracking.workflow_run("qat", {}): pass
    """)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    changed = environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{elsewhere}/own.db"}
    done = subprocess.run([sys.executable, "-c", code], env=changed, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "own.db").is_file() and not (tmp_path / "mlflow.db").exists()
