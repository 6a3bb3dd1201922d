"""What MLflow shows of a run: its name, its text, its parameters, few tags and metrics, and addresses that open."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest
from stored_artifacts import artifact

from edgequant import tracking
from edgequant.evaluation.tasks.registry import TASKS
from edgequant.reporting.columns import described_metrics
from edgequant.tracking.experiments import METRICS
from edgequant.tracking.names import asked_for, headline_parameters, is_generated, run_name

CONFIG = {"model": "smollm2-135m", "scheme": "w4a8-g32+emb4", "dataset": "disaster", "seed": 3, "limit": None}
MEASURED = {
    "domain/perplexity": 20.0,
    "domain/perplexity_ci_low": 19.0,
    "domain/perplexity_ci_high": 21.5,
    "domain/perplexity_shelter_housing": 23.0,
    "domain/perplexity_shelter_housing_ci_low": 20.0,
    "domain/tokens": 5000.0,
    "latency/decode_ms_per_token": 5.0,
    "latency/decode_ms_per_token_p90": 7.0,
}


def measured_run(metrics=MEASURED, **parameters):
    with tracking.workflow_run("qat", CONFIG) as parent:
        tracking.log_dataset("domain", "0" * 64, "bundled", rows=9, context="evaluation")
        tracking.log_dataset("disaster", "1" * 64, "bundled", rows=90, context="training")
        with tracking.variant_run("qat", model="m", scheme="w8", phase="qat", parameters=parameters) as child:
            tracking.log_metrics(metrics)
    return parent, child


@pytest.mark.parametrize(
    ("workflow", "config", "name"),
    [
        ("qat", CONFIG, "qat smollm2-135m w4a8-g32+emb4"),
        ("qat", CONFIG | {"size_budget": "megabytes=80"}, "qat smollm2-135m w4a8-g32+emb4 megabytes=80"),
        ("ptq", {"model": "Qwen/Qwen2.5-0.5B", "scheme": "w4-g32,q8_0"}, "ptq qwen2.5-0.5b w4-g32, q8_0"),
        ("pipeline", {"model": "phi-1.5", "models": "tiny,/data/A.gguf", "scheme": "w8"}, "pipeline tiny, a w8"),
        ("ptq", {"model": "tiny", "scheme": "a,b,c,d,e,f"}, "ptq tiny a, b, c, d and 2 more"),
        ("evaluate", {"model": "/data/My Models/Phi.gguf"}, "evaluate phi"),
        ("evaluate", {"model": "models:/edgequant-tiny/3"}, "evaluate edgequant-tiny v3"),
        ("evaluate", {"model": f"runs:/{'0123456789abcdef' * 2}/checkpoint"}, "evaluate checkpoint of 01234567"),
        ("export", {"model": {"kind": "hub", "name": "phi-1.5"}, "format": "auto"}, "export phi-1.5"),
        ("report", {"title": "edgequant report"}, "report"),
        ("qat", {"model": "two\nlines", "scheme": None}, "qat two lines"),
        ("promote", {"model": None}, "promote"),
        ("demo", {}, "demo"),
    ],
)
def test_a_run_is_named_by_its_workflow_its_model_and_what_is_made_of_it(workflow, config, name):
    assert run_name(workflow, config) == name


def test_a_run_of_several_models_names_them_wherever_it_is_shown():
    config = {"model": "phi-1.5", "models": "tiny,smollm2-135m", "scheme": "w8"}
    assert headline_parameters(config) == {"model": "tiny, smollm2-135m", "scheme": "w8"}
    asked = asked_for("pipeline", config)
    assert "tiny,smollm2-135m" in asked and "phi" not in asked


def test_a_checkpoint_goes_by_the_model_that_it_was_made_from(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"edgequant_model": "smollm2-135m"}))
    assert run_name("evaluate", {"model": str(folder)}) == "evaluate smollm2-135m"
    (folder / "config.json").write_text("[not an object")
    assert run_name("evaluate", {"model": f"{folder}/"}) == "evaluate checkpoint"


def test_a_name_is_no_longer_than_a_table_bears():
    assert len(run_name("qat", {"model": "x" * 5000, "scheme": "w8"})) <= 120


def test_a_name_that_mlflow_made_up_is_replaced_and_a_persons_own_is_kept(store, monkeypatch):
    from mlflow.utils.name_utils import _generate_random_name

    assert all(is_generated(_generate_random_name()) for _ in range(50))
    assert not any(map(is_generated, ("qat tiny", "my-run-1", "nightly", "", "a-b")))
    for given, shown in (("bold-ant-123", "qat smollm2-135m w4a8-g32+emb4"), ("nightly", "nightly")):
        launched = store.create_run("0", run_name=given).info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", launched)
        with tracking.workflow_run("qat", CONFIG):
            pass
        assert store.get_run(launched).info.run_name == shown


def test_a_run_has_about_twelve_tags(store):
    parent, child = measured_run()
    for run in (parent, child):
        tags = store.get_run(run.id).data.tags
        assert len(tags) <= 15, sorted(tags)
        assert len([name for name in tags if not name.startswith("mlflow.")]) <= 7


def test_measured_models_are_compared_by_parameters(store):
    parent, child = measured_run(steps=40, learning_rate=1e-4)
    params = store.get_run(child.id).data.params
    assert params == {
        "model": "m", "scheme": "w8", "variant": "qat", "dataset": "disaster", "limit": "None", "seed": "3",
        "steps": "40", "learning_rate": "0.0001",
    }  # fmt: skip
    assert store.get_run(parent.id).data.params["model"] == "smollm2-135m"


def test_a_resumed_run_keeps_the_parameters_that_it_had(store):
    with tracking.workflow_run("qat", CONFIG) as run:
        tracking.log_params({"learning_rate": 1e-4})
        tracking.log_params({"learning_rate": 2e-4, "steps": 5})
    params = store.get_run(run.id).data.params
    assert (params["learning_rate"], params["steps"]) == ("0.0001", "5")


def test_a_measured_model_has_the_data_sets_that_it_was_evaluated_on_as_inputs(store):
    _, child = measured_run()
    (given,) = store.get_run(child.id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("domain", "0" * 36)


def test_metrics_are_those_that_people_compare_and_the_table_has_all_of_them(store):
    _, child = measured_run()
    assert store.get_run(child.id).data.metrics == {"domain/perplexity": 20.0, "latency/decode_ms_per_token": 5.0}
    table = json.loads(artifact(child.id, "metrics.json"))
    assert table["columns"] == ["metric", "value", "low", "high"]
    assert ["domain/perplexity", 20.0, 19.0, 21.5] in table["data"]
    assert tracking.all_metrics(child.id) == MEASURED


def test_bounds_that_come_in_a_later_call_are_found_beside_the_others(store):
    with tracking.workflow_run("evaluate", {}) as run:
        tracking.log_metrics({"a/x": 1.0, "a/x_ci_low": 0.5, "a/x_ci_high": 2.0})
        tracking.log_metrics({"b/x": 3.0, "b/x_ci_low": 2.5, "b/x_ci_high": 4.0, "c/plain": 9.0})
    found = {"a/x": 1.0, "a/x_ci_low": 0.5, "a/x_ci_high": 2.0, "b/x": 3.0, "b/x_ci_low": 2.5, "b/x_ci_high": 4.0}
    assert tracking.all_metrics(run.id) == found | {"c/plain": 9.0}


def test_the_metrics_of_a_run_made_before_there_was_a_table_are_those_in_the_store(store):
    with tracking.workflow_run("evaluate", {}) as run:
        mlflow.log_metrics(MEASURED)
    assert tracking.all_metrics(run.id) == MEASURED and tracking.details_of(run.id) == {}


def test_no_metric_that_a_task_shows_first_is_taken_for_a_detail():
    from edgequant.tracking.details import split

    shown = {name: 1.0 for task in TASKS for name, metric in task.display.items() if metric.prominence != "detail"}
    assert split(shown)[1] == {}


def test_an_experiment_is_model_training_and_offers_a_view_of_known_metrics(store):
    parent, _ = measured_run()
    tags = store.get_experiment(parent.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags[f"mlflow.sharedViewState.{tracking.VIEW}"])
    assert {type(view["name"]), type(view["createdAt"]), type(view["state"])} == {str, int}  # else MLflow ignores it
    columns = json.loads(view["state"])["selectedColumns"]
    assert all(re.fullmatch(r"(params|metrics)\.`[\w/]+`", column) for column in columns)
    assert set(METRICS) <= set(described_metrics())


def test_charts_of_the_view_begin_with_what_people_compare(store):
    """Without the view MLflow draws one for each metric, by the alphabet."""
    parent, _ = measured_run()
    state = json.loads(
        json.loads(store.get_experiment(parent.experiment_id).tags[f"mlflow.sharedViewState.{tracking.VIEW}"])["state"]
    )
    (section,), charts = state["compareRunSections"], state["compareRunCharts"]
    assert {chart["metricSectionId"] for chart in charts} == {section["uuid"]} and state["isAccordionReordered"]
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    drawn = [chart.get("metricKey") or (chart["xaxis"]["key"], chart["yaxis"]["key"]) for chart in charts]
    assert drawn[:3] == ["domain/perplexity", "size/checkpoint_gb", ("size/checkpoint_gb", "domain/perplexity")]
    assert {name for name in drawn if isinstance(name, str)} <= set(described_metrics())


def test_what_a_person_has_set_on_the_experiment_stays(store):
    parent, _ = measured_run()
    store.set_experiment_tag(parent.experiment_id, "mlflow.experimentKind", "finetuning")
    measured_run()
    assert store.get_experiment(parent.experiment_id).tags["mlflow.experimentKind"] == "finetuning"


def test_every_address_opens_a_page_of_model_training(store):
    parent, child = measured_run()
    pages = [
        parent.url, tracking.runs_url("1", tracking.VIEW), tracking.compare_url("1", [parent.id, child.id]),
        tracking.version_url("edgequant-tiny", "3"),
    ]  # fmt: skip
    for page in pages:
        route = urlsplit(urlsplit(page).fragment)
        assert parse_qs(route.query)["workflowType"] == ["machine_learning"]
    compared = parse_qs(urlsplit(urlsplit(pages[2]).fragment).query)
    assert json.loads(compared["runs"][0]) == [parent.id, child.id] and json.loads(compared["experiments"][0]) == ["1"]


def test_a_run_says_what_it_was_asked_while_it_runs(store):
    with tracking.workflow_run("qat", CONFIG | {"dataset": "tick`s"}) as run:
        told = store.get_run(run.id).data.tags["mlflow.note.content"]
    assert told == "Asked: **qat** of model `smollm2-135m`, scheme `w4a8-g32+emb4`, dataset `tick's`, seed `3`"
