"""The workflow `report`: files that stand alone, from the newest runs or from named ones."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.evaluation.evidence_file import Evidence, Scores
from edgequant.tracking.registry import FiledEvidence
from edgequant.workflows.report import report, run_ids

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
from stored_runs import store_qat


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'store.db'}")


def test_the_newest_run_is_reported_and_its_files_are_artifacts_of_the_run(tmp_path) -> None:
    store_qat()
    newest = store_qat(better=1.0)
    report(output=str(tmp_path / "out"))
    (run,) = tracking.find_runs(workflow="report")
    page = (tmp_path / "out" / "report.html").read_text()
    assert newest[:8] in page and "21.40" in page
    assert tracking.download(f"runs:/{run.id}/report/report.html").read_text() == page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "report.csv").read_text())))
    assert [row["domain/perplexity"] for row in rows] == ["20.78", "32.1", "21.4"]
    assert "21.40" in (tmp_path / "out" / "report.md").read_text()
    summary = json.loads(tracking.download(f"runs:/{run.id}/summary.json").read_text())
    assert [row["variant"] for row in summary] == ["baseline", "ptq", "qat"]


def store_corpus() -> str:
    with tracking.workflow_run("corpus", {"model": "smollm2-135m"}) as run:
        tracking.log_metrics({"corpus/train_chunks": 70.0, "corpus/files_processed": 1.0})
    return run.id


def test_a_data_set_is_no_model_beside_models(tmp_path, capsys) -> None:
    result = report(runs=[store_corpus(), store_qat()], output=str(tmp_path / "out"))
    assert [row["variant"] for row in result.rows] == ["baseline", "ptq", "qat"]
    assert "3 models" in capsys.readouterr().out


def test_a_run_without_a_model_is_named_with_what_it_is() -> None:
    corpus = store_corpus()
    with pytest.raises(UserError, match=rf"measured a model, got {corpus[:12]} \(corpus, FINISHED\); name those of"):
        report(runs=corpus)


@pytest.mark.long
def test_named_runs_are_reported_by_the_first_characters_of_their_ids(tmp_path) -> None:
    first = store_qat(model="older")
    store_qat(model="newer")
    report(runs=first[:10], output=str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "older" in page and "newer" not in page


@pytest.mark.long
def test_a_registered_version_gets_its_card(tmp_path) -> None:
    run = store_qat()
    client = tracking.client()
    client.create_registered_model("edgequant-smollm2-135m")
    tags = {"domain/perplexity": "22.4", "edgequant.scheme": "w4a8-g32+emb4", "edgequant.model": "smollm2-135m"}
    client.create_model_version("edgequant-smollm2-135m", f"runs:/{run}/checkpoint", run, tags=tags)
    report(output=str(tmp_path / "out"))
    card = (tmp_path / "out" / "cards" / "edgequant-smollm2-135m-v1.md").read_text()
    assert "22.40" in card and "w4a8-g32+emb4" in card


@pytest.mark.long
def test_a_card_has_every_figure_of_the_evidence_and_not_the_few_of_the_tags(tmp_path, monkeypatch) -> None:
    run = store_qat()
    client = tracking.client()
    client.create_registered_model("edgequant-smollm2-135m")
    tags = {"domain/perplexity": "22.4", "edgequant.scheme": "w4a8-g32+emb4", "edgequant.model": "smollm2-135m"}
    client.create_model_version("edgequant-smollm2-135m", f"runs:/{run}/checkpoint", run, tags=tags)
    scores = Scores({"domain/perplexity": 21.25, "squad/f1": 51.5}), Scores({"domain/perplexity": 20.0})
    names = {"model": "smollm2-135m", "scheme": "w4a8-g32+emb4", "variant": "qat", "run": run}
    evidence = Evidence(**names, files={}, settings={}, measured=scores[0], baseline=scores[1], conditions=None)
    filed = FiledEvidence("-", evidence.to_json().encode())
    monkeypatch.setattr(tracking, "filed_evidence", lambda *_which: filed)
    report(output=str(tmp_path / "out"))
    card = (tmp_path / "out" / "cards" / "edgequant-smollm2-135m-v1.md").read_text()
    assert "21.25" in card and "51.5" in card and "20.00" in card and "22.40" not in card


def test_with_nothing_measured_the_error_says_what_to_run() -> None:
    with pytest.raises(UserError, match="edgequant qat"):
        report()
    assert tracking.find_runs(workflow="report") == []


def test_an_unknown_run_id_is_named_with_those_that_there_are() -> None:
    known = store_qat()
    with pytest.raises(UserError, match=rf"'zzz' not found.*{known[:12]}"):
        report(runs=["zzz"])


def test_ids_come_as_a_list_or_with_commas() -> None:
    assert run_ids("a1, b2,") == run_ids(["a1", "b2"]) == ["a1", "b2"]
    assert run_ids(None) == []
