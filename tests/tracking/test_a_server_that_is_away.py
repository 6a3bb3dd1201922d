"""A tracking server that is away loses nothing: what is logged meanwhile waits on disk, and arrives in its order."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from served_store import Served

from edgequant import tracking
from edgequant.__main__ import main
from edgequant.tracking import store
from edgequant.tracking.away import current as away
from edgequant.tracking.away import leftovers, patience, stores
from edgequant.tracking.away.journal import ENTRIES, FOLDER, Journal


@pytest.fixture
def served(_empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server of the test's own; the working folder is another one."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    monkeypatch.setattr(patience, "PAUSE_S", 0.2)
    for name, value in stores.QUICKER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for folder in ("server", "work"):
        (tmp_path / folder).mkdir()
    server = Served(Path(shutil.copy(_empty_store, tmp_path / "server")))
    with server.in_environment(), chdir(tmp_path / "work"):
        server.start()
        yield server
        server.stop()
    stores.server.cache_clear()
    store._check.cache_clear()


def files_of(served: Served, run_id: str) -> dict[str, str]:
    place = next((served.folder / "artifacts").glob(f"*/{run_id}/artifacts"), served.folder / "none")
    return {path.relative_to(place).as_posix(): path.read_text() for path in place.rglob("*") if path.is_file()}


def wait_until_filed(served: Served) -> None:
    server = away.current_server()
    assert server is not None and server._back.wait(20)


def log_a_variant() -> str:
    with tracking.variant_run("qat", model="tiny", scheme="w8", phase="qat") as child:
        tracking.log_metrics({"domain/perplexity": 3.0, "domain/perplexity_ci_low": 2.0})
        tracking.log_text("hello", "notes/a.txt")
        tracking.log_dataset("wikitext-2/test", "abc", "here", rows=3, context="evaluation")
        assert tracking.asked_settings()["seed"] == "3"
    return child.id


@pytest.mark.long
def test_what_is_logged_while_the_server_is_away_arrives_with_its_steps_times_and_files(served, capfd):
    with tracking.workflow_run("qat", {"model": "tiny", "seed": 3}) as run:
        tracking.log_metrics({"train/loss": 1.0}, step=1)
        tracking.log_metrics({"domain/perplexity": 4.0, "domain/perplexity_ci_low": 3.0})
        served.stop()
        went = time.time()
        for step in range(2, 400):
            tracking.log_metrics({"train/loss": 1.0 / step}, step=step)
        child = log_a_variant()
        tracking.log_metrics({"boolq/accuracy": 4.0, "boolq/accuracy_ci_low": 3.0})  # behind the rows of before
        assert [one.id for one in tracking.find_runs(parent=run.id)] == [child]
        assert tracking.details_of(run.id) == {
            "domain/perplexity": 4.0, "domain/perplexity_ci_low": 3.0,
            "boolq/accuracy": 4.0, "boolq/accuracy_ci_low": 3.0,
        }  # fmt: skip
        came = time.time()
        time.sleep(0.5)
        before = len(served.requests)
        served.start()
        wait_until_filed(served)
        assert len(served.requests) - before < 60  # and not one for each of 398 steps
        tracking.log_metrics({"train/loss": 0.0}, step=400)
    (found,) = [one for one in served.client.search_runs(["1"]) if "mlflow.parentRunId" in one.data.tags]
    assert found.data.tags["mlflow.parentRunId"] == run.id and found.info.status == "FINISHED"
    assert found.data.params["model"] == "tiny" and found.data.metrics == {"domain/perplexity": 3.0}
    assert [one.dataset.name for one in found.inputs.dataset_inputs] == ["wikitext-2/test"]
    assert files_of(served, found.info.run_id)["notes/a.txt"] == "hello"
    assert found.info.run_id in served.client.get_run(run.id).info.run_id + tracking.run_url("1", child)
    curve = served.client.get_metric_history(run.id, "train/loss")
    assert [point.step for point in curve] == list(range(1, 401))
    assert all(went - 1 <= point.timestamp / 1000 <= came + 1 for point in curve[1:-1])
    assert served.client.get_run(run.id).info.status == "FINISHED"
    assert tracking.details_of(run.id)["domain/perplexity_ci_low"] == 3.0
    assert list(Path("outputs").rglob(ENTRIES)) == []
    said = [line for line in capfd.readouterr().err.splitlines() if "tracking server" in line]
    assert len(said) == 2 and "away since" in said[0] and "entries filed" in said[1]


def test_a_version_is_registered_when_the_server_is_back(served, tmp_path):
    for name, file in (("checkpoint", "weights"), ("evidence", "evidence.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    with tracking.workflow_run("qat", {"model": "tiny"}) as run:
        served.stop()
        version = tracking.register_checkpoint(
            tmp_path / "checkpoint", "edgequant-tiny", tags={"a": "b"}, about={"description": "small"},
            evidence=tmp_path / "evidence",
        )  # fmt: skip
        assert version == "unfiled"
        shutil.rmtree(tmp_path / "checkpoint")
        served.start()
    (made,) = served.client.search_model_versions("name = 'edgequant-tiny'")
    assert made.source == f"runs:/{run.id}/checkpoint" and made.tags["a"] == "b"
    assert tracking.filed_evidence("edgequant-tiny", "1", run.id).digest == made.tags["edgequant.evidence"]
    assert files_of(served, run.id)["checkpoint/weights"] == "{}"


@pytest.mark.parametrize("retries", ["0", "2"])
def test_a_run_whose_beginning_was_done_and_not_answered_is_begun_once(served, monkeypatch, retries):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", retries)
    with tracking.workflow_run("qat", {"model": "tiny", "seed": 3}) as run:
        served.unanswered.append("/runs/create")
        child = log_a_variant()
        tracking.log_metrics({"train/loss": 1.0})
    (found,) = [one for one in served.client.search_runs(["1"]) if one.info.run_id != run.id]
    assert not served.unanswered and found.info.status == "FINISHED"
    assert found.data.metrics == {"domain/perplexity": 3.0} and found.info.run_id in tracking.run_url("1", child)


def test_what_is_asked_before_a_run_bears_one_failure(served, monkeypatch):
    for name, value in stores.QUICKER.items():
        monkeypatch.setenv(name, value)
    served.unanswered.append("/experiments/search")
    store.check_store()
    assert not served.unanswered


@pytest.mark.long
def test_gone_for_good_costs_one_line_and_status_1_and_one_command_files_it(served, monkeypatch, capfd):
    monkeypatch.setenv(patience.VARIABLE, "0")

    def working(**_: object) -> None:
        with tracking.workflow_run("qat", {"model": "tiny"}):
            served.stop()
            for step in range(1001):
                tracking.log_metrics({"train/loss": 1.0}, step=step)

    monkeypatch.setattr("edgequant.__main__.workflow", lambda _: working)
    monkeypatch.setattr("edgequant.__main__.parse", lambda *_: {})
    assert main(["qat"]) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if "INFO" not in line and "going on" not in line]
    assert len(said) == 1 and "is kept in 'outputs/qat/" in said[0] and "sync --folder outputs/qat/" in said[0]
    monkeypatch.undo()

    (run,) = served.client.search_runs(["1"])
    assert run.info.status == "RUNNING" and "train/loss" not in run.data.metrics
    with served.in_environment():
        old = away.current_server()
        old._file = lambda: True  # the process that kept it has ended, and its thread
        for thread in threading.enumerate():
            if thread.name == "to the tracking server":
                thread.join()
        old._journal.close()
        served.start()
        stores.server.cache_clear(), store._check.cache_clear()
        tracking.file_kept(Path("outputs"))
        (run,) = served.client.search_runs(["1"])
        assert run.info.status == "FINISHED"
        assert len(served.client.get_metric_history(run.info.run_id, "train/loss")) == 1001
        assert main(["sync"]) == 0 and "nothing waits" in capfd.readouterr().out


def test_what_a_killed_process_kept_is_filed_by_the_next_and_a_living_ones_is_not(served, capfd):
    with tracking.workflow_run("qat", {"model": "tiny"}) as run:
        pass
    bodies = [{"run_id": run.id, "key": f"after/{n}", "value": 1.0, "timestamp": n, "step": 0} for n in range(3)]
    journal = Journal(tracking.run_folder("qat", run.id) / FOLDER, served.uri)
    for body in bodies:
        journal.append({"api": "LogMetric", "body": body})
    assert leftovers.file_left(Path("outputs"), served.uri) == 0  # its process lives
    journal._entries.close()  # as a kill does
    with (journal.folder / ENTRIES).open("a") as opened:
        opened.write('{"api": "LogMet')
    assert leftovers.file_left(Path("outputs"), "http://another:1") == 0
    store._check.cache_clear()
    tracking.client()
    assert {"after/0", "after/1", "after/2"} <= {*served.client.get_run(run.id).data.metrics}
    assert not journal.folder.exists() and "3 entries" in capfd.readouterr().err


def test_what_the_server_refuses_is_kept_and_the_rest_is_filed(served):
    with tracking.workflow_run("qat", {"model": "tiny"}) as run:
        served.stop()
        tracking.log_params({"cfg.model": "other"})
        away.current_server().write(lambda: None, lambda _: {"api": "LogParam", "body": {"run_id": "nope"}})
        tracking.log_metrics({"train/loss": 1.0})
        served.start()
    assert served.client.get_run(run.id).data.metrics == {"train/loss": 1.0}
    refused = list(Path("outputs").rglob("refused.jsonl"))
    assert len(refused) == 1 and "nope" in refused[0].read_text()


def test_patience_must_be_a_number_of_seconds(monkeypatch):
    monkeypatch.setenv(patience.VARIABLE, "5 minutes")
    with pytest.raises(patience.UserError, match=r"EDGEQUANT_TRACKING_PATIENCE must be .* got '5 minutes'"):
        patience.patience_s()
