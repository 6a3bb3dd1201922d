"""Which measured runs a report shows, and each model once; runs of other tools, deleted and circular ones."""

from __future__ import annotations

import mlflow
import pytest
from stored_runs import store_qat

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.reporting.gathering import compare
from edgequant.tracking import search
from edgequant.tracking.search import client

pytestmark = pytest.mark.usefixtures("store")
SCORES = {"domain/perplexity": 20.0}


def measured(workflow: str, *models: tuple[str, str, dict[str, float]]) -> str:
    """A workflow run that measured variants of `tiny` in schemes; its id."""
    with tracking.workflow_run(workflow, {"model": "tiny"}) as run:
        for variant, scheme, metrics in models:
            with tracking.variant_run(variant, model="tiny", scheme=scheme, phase=workflow):
                tracking.log_metrics(metrics)
    return run.id


def variants(compared) -> list[tuple[str, str]]:
    return [(row["variant"], row["scheme"]) for row in compared.rows]


def test_a_baseline_that_several_workflows_measured_is_one_model_with_all_that_they_measured_of_it():
    ids = [
        measured("baseline", ("baseline", "none", SCORES | {"latency/decode_ms_per_token": 3.0})),
        measured("ptq", ("baseline", "none", SCORES | {"latency/decode_ms_per_token": 4.0}), ("ptq", "w8", SCORES)),
        measured("qat", ("baseline", "none", SCORES | {"guard/perplexity": 7.0}), ("qat", "w8", SCORES)),
    ]
    compared = compare(ids)
    assert variants(compared) == [("baseline", "none"), ("ptq", "w8"), ("qat", "w8")]
    baseline = compared.rows[0]
    assert (baseline["latency/decode_ms_per_token"], baseline["guard/perplexity"]) == (3.0, 7.0)
    assert [len(pairs) for pairs in (compared.pairs, compared.measured)] == [2, 5]


def test_a_baseline_that_another_protocol_scored_otherwise_is_shown_beside_it():
    ids = [
        measured("ptq", ("baseline", "none", {"domain/perplexity": value}), ("ptq", "w8", SCORES)) for value in (20, 21)
    ]
    assert variants(compare(ids)) == [("baseline", "none")] * 2 + [("ptq", "w8")] * 2


def test_what_somebody_measured_by_itself_is_shown_though_it_scores_the_same():
    ids = [measured("evaluate", ("quantized", "w8", SCORES)) for _ in range(2)]
    assert len(compare(ids).rows) == 2


def test_two_models_of_one_name_that_one_workflow_measured_are_both_shown():
    measured(
        "baseline", ("baseline", "w8", {"domain/perplexity": 20.0}), ("baseline", "w8", {"domain/perplexity": 21.0})
    )
    assert sorted(row["domain/perplexity"] for row in compare().rows) == [20.0, 21.0]


def test_runs_that_are_parents_of_each_other_are_no_endless_search():
    one, other = (measured("ptq") for _ in range(2))
    for child, parent in ((one, other), (other, one), (one, one)):
        client().set_tag(child, "mlflow.parentRunId", parent)
        with pytest.raises(UserError, match="must be finished ones that measured a model"):
            compare([one])


def test_a_run_of_another_tool_is_no_measured_model():
    measured("ptq", ("ptq", "w8", SCORES))
    with mlflow.start_run(run_name="theirs") as theirs:
        mlflow.log_metric("eval/loss", 1.0)
    assert len(compare().rows) == 1
    with pytest.raises(UserError, match=r"got [0-9a-f]{12} \(theirs, FINISHED\)"):
        compare([theirs.info.run_id])


def test_a_deleted_run_is_told_with_the_command_that_restores_it():
    run = measured("ptq", ("ptq", "w8", SCORES))
    client().delete_run(run)
    with pytest.raises(UserError, match=f"was deleted; restore the run with `mlflow runs restore --run-id {run}`"):
        compare([run])
    client().restore_run(run)
    client().delete_experiment(client().get_run(run).info.experiment_id)
    with pytest.raises(UserError, match="was deleted; restore its experiment 'edgequant' with `mlflow experiments"):
        compare([run])
    with pytest.raises(UserError, match=r"run '0123abcd' not found"):
        compare(["0123abcd"])


def test_a_warning_of_several_lines_is_told_in_one():
    run = store_qat(warning="first\n\n# second")
    assert any(text.endswith(": first # second") for text in compare([run]).warnings)


def test_runs_are_found_behind_the_first_page_of_the_stores_answer(monkeypatch):
    ids = [measured(workflow, (workflow, "w8", SCORES)) for workflow in ("qat", "ptq")]
    monkeypatch.setattr(search, "RUNS_AT_ONCE", 1)
    assert len(tracking.find_runs()) == 4 and len(compare().rows) == 2
    assert [run.id for run in compare([ids[0][:12]]).parents] == [ids[0]]
