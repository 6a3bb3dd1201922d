"""Whose process a run is, whether that lives, and what goes on with it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time

import mlflow
import pytest

from edgequant import interruption, tracking
from edgequant.errors import UserError
from edgequant.outputs import places
from edgequant.tracking.lifetime import heartbeat, process, resumption
from edgequant.tracking.lifetime.ending import end_own_runs

CONFIG = {"a": 1}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    for name, seconds in {"BEAT_S": 0.05, "SILENT_S": 0.6, "WATCH_S": 0.05, "ORPHANED_S": 0.2}.items():
        monkeypatch.setattr(heartbeat, name, seconds)


def elsewhere(**changed: str) -> str:
    """This process as it would be called in another place."""
    found = process.parse_process(process.this_process())
    assert found is not None
    return ":".join(found._replace(**changed))


@pytest.fixture
def begun(store):
    """Begins a run of a process, as that would have left it: RUNNING; returns its id."""

    def begin(of: str, config=CONFIG) -> str:
        with contextlib.suppress(RuntimeError), tracking.workflow_run("qat", config) as run:
            raise RuntimeError
        store.set_tag(run.id, "edgequant.process", of)
        store.update_run(run.id, "RUNNING")
        resumption._own.clear()
        return run.id

    return begin


@contextlib.contextmanager
def giving_signs(store, run_id):
    ended = threading.Event()

    def give():
        while not ended.wait(0.05):
            store.set_tag(run_id, heartbeat.TAG, heartbeat.sign())

    thread = threading.Thread(target=give)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_process_is_seen_by_its_id_and_start_and_only_within_its_boot_and_namespace():
    assert process.seen_alive(process.this_process()) is True
    assert process.seen_alive(elsewhere(started="1")) is False, "its id belongs to another process now"
    assert process.seen_alive(elsewhere(host="renamed")) is True
    for unseen in (elsewhere(namespace="1"), elsewhere(boot="another"), "host:1:2", "", elsewhere(boot="")):
        assert process.seen_alive(unseen) is None and tracking.is_alive(unseen)


def test_a_process_that_has_ended_is_gone_even_while_its_parent_does_not_ask_for_it():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    named = elsewhere(pid=str(child.pid), started=process._started(str(child.pid)) or "")
    assert process.seen_alive(named) is True
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=0)
    until = time.monotonic() + 10
    while process.seen_alive(named) and time.monotonic() < until:
        time.sleep(0.01)
    assert process.seen_alive(named) is False
    child.wait()
    assert process.seen_alive(named) is False


def test_what_proc_says_is_of_no_use_where_it_counts_in_another_namespace(tmp_path, monkeypatch):
    """As in `unshare --pid --fork` without a mount of its own."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").write_text("99999999 (python) " + " ".join(map(str, range(50))))
    monkeypatch.setattr(process, "PROC", tmp_path)
    process._place_of.cache_clear()
    try:
        assert process.seen_alive(process.this_process()) is None
    finally:
        process._place_of.cache_clear()


def test_a_run_gives_signs_from_its_first_moment_to_its_end(store):
    with tracking.workflow_run("qat", CONFIG) as run:
        seen = {store.get_run(run.id).data.tags[heartbeat.TAG]}
        until = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < until:
            seen.add(store.get_run(run.id).data.tags[heartbeat.TAG])
    assert len(seen) >= 3
    last = store.get_run(run.id).data.tags[heartbeat.TAG]
    time.sleep(0.3)
    assert store.get_run(run.id).data.tags[heartbeat.TAG] == last


def test_no_run_is_without_the_name_of_its_process_from_its_creation_on(store, monkeypatch):
    made, create = [], mlflow.MlflowClient.create_run

    def noted(client, experiment_id, *given, **more):
        run = create(client, experiment_id, *given, **more)
        made.append(store.get_run(run.info.run_id).data.tags)
        return run

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", noted)
    with tracking.workflow_run("qat", CONFIG), tracking.variant_run("qat", model="tiny", scheme="w8", phase="qat"):
        pass
    assert len(made) == 2 and {tags["edgequant.process"] for tags in made} == {tracking.this_process()}
    assert made[0]["edgequant.workflow"] == "qat" and made[0][heartbeat.TAG] and made[1]["edgequant.variant"] == "qat"


def test_a_store_that_is_away_for_a_while_ends_no_signs(store, monkeypatch):
    away, tried, set_tag = [True], [], heartbeat._set_tag

    def sometimes(*given):
        tried.append(given)
        if away[0]:
            raise OSError("away")
        set_tag(*given)

    monkeypatch.setattr(heartbeat, "_set_tag", sometimes)
    with tracking.workflow_run("qat", CONFIG) as run:
        first = store.get_run(run.id).data.tags[heartbeat.TAG]
        until = time.monotonic() + 20
        while len(tried) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        away[0] = False
        while store.get_run(run.id).data.tags[heartbeat.TAG] == first and time.monotonic() < until:
            time.sleep(0.01)
    assert store.get_run(run.id).data.tags[heartbeat.TAG] > first


@pytest.mark.parametrize("changed", [{"boot": "another", "host": "restarted"}, {"namespace": "1"}])
def test_a_silent_run_of_another_container_is_gone_on_with(store, begun, capsys, changed):
    left = begun(elsewhere(**changed))
    with tracking.workflow_run("qat", CONFIG, resume=True) as run:
        assert (run.id, run.resumed) == (left, True)
        assert store.get_run(left).data.tags["edgequant.process"] == tracking.this_process()
    said = capsys.readouterr().out.splitlines()
    assert f"resume: run {left} is RUNNING, by process " in said[0] and " s for a sign of life" in said[0]
    assert said[1].startswith(f"resume: goes on with run {left} (qat), which is RUNNING, but its process is gone; ")


def test_a_run_that_gives_signs_in_another_container_is_neither_killed_nor_gone_on_with(store, begun):
    live = begun(elsewhere(namespace="1"))
    told = rf"run {live} of this configuration is still running \(process .*, last sign of life \d s ago\); wait for it"
    with giving_signs(store, live):
        with pytest.raises(UserError, match=told), tracking.workflow_run("qat", CONFIG, resume=True):
            pass
        with tracking.workflow_run("evaluate", {}):
            time.sleep(0.8)  # longer than what gives no sign is left open
        assert store.get_run(live).info.status == "RUNNING"
    assert len(tracking.find_runs(workflow="qat")) == 1


def test_a_long_run_closes_what_gives_no_signs_and_cannot_be_seen(store, begun):
    left = begun(elsewhere(boot="another"))
    with tracking.workflow_run("evaluate", {}) as own:
        until = time.monotonic() + 20
        while store.get_run(left).info.status == "RUNNING" and time.monotonic() < until:
            time.sleep(0.05)
        assert store.get_run(own.id).info.status == "RUNNING"
    assert store.get_run(left).info.status == "KILLED"


def test_a_process_that_stood_still_while_another_took_its_run_over_leaves_it_alone(store, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(interruption, "leave", said.append)
    monkeypatch.setattr(heartbeat, "SILENT_S", -1.0)  # as if it had been
    with tracking.workflow_run("qat", CONFIG) as run:
        time.sleep(0.3)
        assert said == []
        store.set_tag(run.id, "edgequant.process", elsewhere(host="other"))
        until = time.monotonic() + 20
        while not said and time.monotonic() < until:
            time.sleep(0.01)
    assert said[0] == f"run {run.id} goes on in another process, as this one stood still; it ends here"


def test_it_is_said_where_there_is_nothing_to_go_on_with(store, capsys):
    with tracking.workflow_run("qat", CONFIG, resume=True) as first:
        pass
    assert capsys.readouterr().out == "resume: no interrupted run of this configuration; begins anew\n"
    with tracking.workflow_run("qat", CONFIG, resume=True) as run:
        assert run.id != first.id
    last = f"(the last one, {first.id}, is FINISHED)"
    assert capsys.readouterr().out == f"resume: no interrupted run of this configuration {last}; begins anew\n"


def test_what_has_changed_since_the_interruption_is_refused_before_the_run_goes_on(store, tmp_path):
    text = tmp_path / "papers"
    text.mkdir()
    (text / "one.md").write_text("water")
    (text / ".hidden").write_text("1")
    reads = places({"dataset": str(text)})
    with pytest.raises(RuntimeError), tracking.workflow_run("qat", CONFIG, reads) as run:
        raise RuntimeError
    (text / ".hidden").write_text("2")
    with pytest.raises(RuntimeError), tracking.workflow_run("qat", CONFIG, reads, resume=True) as again:
        raise RuntimeError
    assert again.id == run.id
    (text / "one.md").write_text("Water")
    refused = rf"dataset '.*papers' has changed since run {run.id} was interrupted.*without --resume true"
    with pytest.raises(UserError, match=refused), tracking.workflow_run("qat", CONFIG, reads, resume=True):
        pass
    assert store.get_run(run.id).info.status == "FAILED" and mlflow.active_run() is None
    with tracking.workflow_run("qat", CONFIG, reads) as anew:
        assert anew.id != run.id


def another_process(monkeypatch) -> None:
    """What follows is another process's."""
    resumption._own.clear()
    from edgequant.tracking import runs

    monkeypatch.setattr(runs, "_continued", set())


def test_a_resumed_run_has_no_nested_run_twice_and_no_table_with_rows_twice(store, monkeypatch):
    children = []
    for resume in (False, True):
        another_process(monkeypatch)
        ids = []
        with contextlib.suppress(RuntimeError), tracking.workflow_run("ptq", CONFIG, resume=resume):
            for loss in (1.0, 2.0):  # two models of one name
                with tracking.variant_run("baseline", model="tiny", scheme="none", phase="ptq") as child:
                    tracking.log_metrics({"domain/perplexity": loss, "domain/perplexity_ci_low": 0.5})
                    tracking.log_table([{"item": loss}], "items/domain.json")
                ids.append(child.id)
            with tracking.workflow_run("report", {"b": 2}) as nested:
                pass
            if not resume:
                raise RuntimeError
        children.append([*ids, nested.id])
    assert children[0] == children[1] and len({*children[0]}) == 3
    assert len(tracking.find_runs()) == 4
    for id, loss in zip(children[0], (1.0, 2.0), strict=False):
        assert mlflow.load_table("items/domain.json", [id])["item"].tolist() == [loss]
        assert len(mlflow.load_table("metrics.json", [id])) == 1


def test_a_run_that_was_killed_before_its_configuration_was_filed_gets_it_when_it_goes_on(store, monkeypatch):
    from edgequant.tracking import runs

    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(runs, "log_config", lambda _: (_ for _ in ()).throw(RuntimeError))
        with tracking.workflow_run("qat", CONFIG):
            pass
    with tracking.workflow_run("qat", CONFIG, resume=True) as run:
        pass
    assert store.get_run(run.id).data.params["cfg.a"] == "1"
    assert "a: 1" in mlflow.artifacts.load_text(f"runs:/{run.id}/config.yaml")


def test_whatever_a_process_has_left_open_is_ended(store, monkeypatch):
    monkeypatch.setattr(heartbeat, "ORPHANED_S", 600.0)
    other = store.create_run("0", tags={"edgequant.process": elsewhere(namespace="1")}).info.run_id
    variant = {"model": "tiny", "scheme": "w8", "phase": "qat"}
    with tracking.workflow_run("qat", CONFIG) as run, tracking.variant_run("qat", **variant) as child:
        end_own_runs()
        assert {store.get_run(one).info.status for one in (run.id, child.id)} == {"KILLED"}
    assert store.get_run(other).info.status == "RUNNING"
