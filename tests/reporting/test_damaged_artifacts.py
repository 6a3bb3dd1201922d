"""A file of a run that is cut off, of another tool or changed by hand costs a report what stood in it, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from stored_items import store_adapted
from stored_runs import store_qat

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.reporting.findings.artifacts import Artifacts
from edgequant.reporting.gathering import compare
from edgequant.reporting.model_card import card_of_version
from edgequant.workflows.report import report
from edgequant_tune.bookkeeping.warm_start import earlier_trials
from edgequant_tune.objectives import read_objectives

pytestmark = pytest.mark.usefixtures("store")
LEVELS = {"baseline": 3.0, "control": 2.9, "control-ptq": 3.2, "ptq": 3.3, "qat": 3.0}
NO_TABLE = [
    "",
    '{"columns": ["metric"',
    "[1, 2]",
    "null",
    "7",
    '"text"',
    '{"columns": 3, "data": [[1]]}',
    '{"data": [1]}',
]
NO_TABLE += ['{"columns": ["a", "b"], "data": [[1]]}', '{"columns": [["a"]], "data": [[1]]}', "[" * 100_000]


def overwrite(run_id: str, name: str, text: str | bytes) -> None:
    """In the place where the run keeps it."""
    folder = mlflow.MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("file://")
    file = Path(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def measured(workflow: str, variant: str) -> str:
    """The id of the run in which it measured a variant."""
    return next(run.id for run in tracking.find_runs(parent=workflow) if run.tags["edgequant.variant"] == variant)


def test_a_damaged_table_is_told_by_run_and_name_and_the_others_are_compared():
    workflow = store_adapted(LEVELS)
    broken = measured(workflow, "ptq")
    kept = tracking.download(f"runs:/{broken}/items/domain.json").read_text()
    for name in ("metrics.json", "items/domain.json"):
        for text in [*NO_TABLE, b"\xff\xfe\x00"]:
            overwrite(broken, name, text)
            compared = compare([workflow])
            assert len(compared.rows) == len(LEVELS)
            (told,) = [line for line in compared.warnings if "damaged" in line]
            assert told.startswith(f"run {broken[:12]}: {name} is damaged (") and "\n" not in told and len(told) < 250
            found = {pair.reference for pair in compared.pairs if pair.losses}
            assert {"baseline", "control", "control-ptq"} <= found
        overwrite(broken, name, kept)


def test_what_is_of_another_kind_is_told_in_one_line(tmp_path, capsys):
    workflow = store_adapted(LEVELS)
    ptq = measured(workflow, "ptq")
    for run, name, text in [
        (ptq, "items/domain.json", '{"columns": ["id", "nats", "tokens"], "data": [["a", "many", 3]]}'),
        (workflow, "verdict.json", "[]"),
        (workflow, "environment.json", '{"gpus": 3}'),
    ]:
        overwrite(run, name, text)
    result = report(runs=workflow, output=str(tmp_path / "report"))
    told = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert sorted(line.split(" is damaged (")[0] for line in told) == sorted(
        f"warning: run {run[:12]}: {name}"
        for run, name in [(ptq, "items/domain.json"), (workflow, "verdict.json"), (workflow, "environment.json")]
    )
    page = Path(str(result.checkpoint)).read_text()
    assert len(result.rows) == len(LEVELS) and all(f"run {run[:12]}: " in page for run in (ptq, workflow))


@pytest.mark.parametrize("text", ["[1]", "3", '{"packages": ["a"]}', '{"gpus": "one"}', '{"python'])
def test_an_environment_of_another_kind_is_none(tmp_path, monkeypatch, text):
    (tmp_path / "environment.json").write_text(text)
    monkeypatch.setattr(tracking, "download", lambda _: tmp_path / "environment.json")
    artifacts = Artifacts()
    assert artifacts.environment("0123456789abcdef") == artifacts.environment("0123456789abcdef") == {}
    assert len(artifacts.damaged) == 1


def test_what_no_run_wrote_is_not_missed():
    workflow = store_qat()
    assert not [line for line in compare([workflow]).warnings if "damaged" in line]


@pytest.mark.parametrize("copy", [b"{", b"\xff"])
def test_a_version_whose_evidence_is_damaged_has_a_card_of_its_tags(tmp_path, monkeypatch, capsys, copy):
    from edgequant.tracking.registry import FiledEvidence

    run = store_qat()
    client, name = tracking.client(), "edgequant-smollm2-135m"
    client.create_registered_model(name)
    tags = {"domain/perplexity": "22.4", "edgequant.baseline": "[1]"}
    client.create_model_version(name, f"runs:/{run}/checkpoint", run, tags=tags)
    monkeypatch.setattr(tracking, "filed_evidence", lambda *_: FiledEvidence("-", copy))
    report(output=str(tmp_path / "out"))
    assert "22.40" in (tmp_path / "out" / "cards" / f"{name}-v1.md").read_text()
    said = f"warning: run {run[:12]}: evidence of {name} version 1 cannot be read"
    assert said in capsys.readouterr().out and said[9:] in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("stated", ["[1]", "3", "{", "null"])
def test_a_tag_that_anybody_can_write_does_not_end_a_card(stated):
    assert card_of_version("m", "1", {"edgequant.baseline": stated}, None).baseline == {}


def test_a_search_whose_table_of_trials_is_damaged_is_no_start_of_another():
    with tracking.workflow_run("tune", {"model": "tiny"}) as run:
        pass
    for text in NO_TABLE:
        overwrite(run.id, "trials.json", text)
        with pytest.raises(
            UserError, match=rf"^warm_start '{run.id}' must be the id of a search's run in this store: "
        ):
            earlier_trials(run.id, {"model": "tiny"}, [], read_objectives(["domain/perplexity"]), "")


def test_details_of_a_damaged_table_are_none_for_whoever_asks():
    workflow = store_adapted(LEVELS)
    overwrite(measured(workflow, "qat"), "metrics.json", json.dumps([1]))
    assert tracking.details_of(measured(workflow, "qat")) == {}
    assert "domain/perplexity" in tracking.all_metrics(measured(workflow, "qat"))
