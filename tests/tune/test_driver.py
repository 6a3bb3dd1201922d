import json
import math

import pytest

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.quantization.settings import QuantizationSettings
from edgequant.training.settings import LoraSettings, TrainingSettings
from edgequant_tune import plan as plan_module
from edgequant_tune.plan import check_plan, make_search

RATE = {"learning_rate": {"log_uniform": [1e-6, 1e-2]}}


def search_for(monkeypatch, tmp_path, run_id, resources, *, candidate, space=None, steps=8, **changed):
    monkeypatch.setitem(plan_module.CANDIDATES, "qat", f"fake_candidates:{candidate}")
    arguments = {
        "model": "tiny", "method": "qat", "lora": LoraSettings(),
        "scheme": "w4a8-g32+emb4", "text": "disaster", "space": space or RATE,
        "objectives": ["domain/perplexity"], "trials": 5, "training": TrainingSettings(steps=steps, learning_rate=1e-3),
        "quantization": QuantizationSettings(), "minutes": None, "scheduler": "none", "concurrent": None,
        "cpus": 1.0, "gpus": 0.0,
    } | changed  # fmt: skip
    return make_search(
        check_plan(**arguments), run_id, resources, EvaluationSettings(), None, str(tmp_path / "out"), "cpu", 0
    )


def run(monkeypatch, tmp_path, resources, **changed):
    """A search under a run of its own; returns the search, its outcomes, the run's id."""
    from edgequant import tracking
    from edgequant_tune import results
    from edgequant_tune.driver import run_search

    with tracking.workflow_run("tune", {"test": 1}) as parent:
        search = search_for(monkeypatch, tmp_path, parent.id, resources, **changed)
        outcomes = run_search(search, results.callbacks(search, parent))
    return search, outcomes, parent.id


def children(store, parent):
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    runs = store.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_name: run for run in runs}


def test_trials_are_finished_nested_runs_with_parameters_and_live_metrics(monkeypatch, tmp_path, store, ray_here):
    _, outcomes, parent = run(monkeypatch, tmp_path, ray_here, candidate="bowl")
    runs = children(store, parent)
    assert sorted(runs) == [f"trial {i}" for i in range(1, 6)]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    first = runs["trial 1"].data
    assert float(first.params["learning_rate"]) == 1e-3  # the recipe as it is comes first
    assert first.metrics["domain/perplexity"] == pytest.approx(11 + 4)  # one decade off, four bits fewer
    tags = {
        "variant": "trial",
        "model": "tiny",
        "scheme": "w4a8-g32+emb4",
        "phase": "tune",
        "trial": outcomes[0].id,
    }
    assert {key: first.tags[f"edgequant.{key}"] for key in tags} == tags
    history = store.get_metric_history(runs["trial 1"].info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(i, pytest.approx(1 + 1 / i)) for i in range(1, 9)]


def test_only_checkpoints_that_nothing_beats_stay_on_disk(monkeypatch, tmp_path, store, ray_here):
    from edgequant_tune.trial_records import ranked

    search, outcomes, _ = run(monkeypatch, tmp_path, ray_here, candidate="bowl")
    best = ranked(outcomes, search.objectives)[0]
    assert [folder.name for folder in (search.folder / "trials").iterdir()] == [best.id]
    assert abs(math.log10(best.values["learning_rate"] / 1e-4)) <= 1.0  # no worse than the first trial


def test_failed_and_diverged_trials_do_not_stop_the_search(monkeypatch, tmp_path, store, ray_here):
    from edgequant_tune.results import table
    from edgequant_tune.trial_records import ranked

    space = RATE | {"batch_size": {"choice": [2, 4, 8]}}
    search, outcomes, parent = run(monkeypatch, tmp_path, ray_here, candidate="fragile", space=space, trials=8)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert failed and all(outcome.values["batch_size"] == 8 for outcome in failed)
    assert {outcome.values["batch_size"] for outcome in ranked(outcomes, search.objectives)} == {4}  # NaN never wins
    runs = children(store, parent)
    for outcome in failed:
        run_of = runs[outcome.name]
        assert run_of.info.status == "FAILED"
        assert "batch_size 8 does not fit" in run_of.data.tags["edgequant.error"]
        assert [file.path for file in store.list_artifacts(run_of.info.run_id)] == ["traceback.txt"]
    assert any("batch_size 8 does not fit" in row.get("error", "") for row in table(search, outcomes))


def test_a_search_in_which_nothing_works_says_why(monkeypatch, tmp_path, store, ray_here):
    from edgequant import tracking
    from edgequant_tune.results import log_search

    search, outcomes, _ = run(monkeypatch, tmp_path, ray_here, candidate="broken", trials=2)
    with pytest.raises(RuntimeError, match="disk is gone"), tracking.workflow_run("tune", {}):
        log_search(search, outcomes)


def test_the_scheduler_stops_what_lags_behind_and_its_run_says_so(monkeypatch, tmp_path, store, ray_here):
    search, outcomes, parent = run(
        monkeypatch, tmp_path, ray_here, candidate="bowl", trials=10, scheduler="asha", concurrent=1
    )
    assert search.job.rungs == (2, 4)
    stopped = [outcome for outcome in outcomes if outcome.status == "stopped"]
    assert stopped and all(outcome.step in search.job.rungs for outcome in stopped)
    runs = children(store, parent)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for outcome in outcomes:
        assert ("edgequant.stopped_by" in runs[outcome.name].data.tags) == (outcome.status == "stopped")


def test_two_objectives_keep_the_trade_offs(monkeypatch, tmp_path, store, ray_here):
    from edgequant_tune.figures import figures
    from edgequant_tune.trial_records import pareto_front

    space = RATE | {"scheme": {"choice": ["w4a8-g32+emb4", "w8a8"]}}
    both = ["domain/perplexity", "size/checkpoint_gb"]
    search, outcomes, parent = run(
        monkeypatch, tmp_path, ray_here, candidate="bowl", space=space, objectives=both, trials=8, scheduler="auto"
    )
    assert all(outcome.status == "finished" for outcome in outcomes)
    front = pareto_front(outcomes, search.objectives)
    assert {outcome.values["scheme"] for outcome in front} == {"w4a8-g32+emb4", "w8a8"}
    assert {folder.name for folder in (search.folder / "trials").iterdir()} == {outcome.id for outcome in front}
    schemes = {name: run.data.tags["edgequant.scheme"] for name, run in children(store, parent).items()}
    assert schemes == {outcome.name: outcome.values["scheme"] for outcome in outcomes}
    assert set(figures(outcomes, search.space, search.objectives)) == {
        "figures/pareto.html",
        "figures/importance_domain_perplexity.html",
        "figures/importance_size_checkpoint_gb.html",
        "figures/parallel_coordinates.html",
        "figures/history.html",
    }


def test_the_time_budget_ends_the_search_and_leaves_no_run_open(monkeypatch, tmp_path, store, ray_here):
    _, outcomes, parent = run(monkeypatch, tmp_path, ray_here, candidate="bowl", steps=40000, trials=3, minutes=10 / 60)
    assert {outcome.status for outcome in outcomes} == {"stopped"}
    runs = children(store, parent).values()
    assert runs and {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["edgequant.stopped_by"] for run in runs} == {"time budget"}


def test_the_record_on_disk_is_what_was_found(monkeypatch, tmp_path, store, ray_here):
    search, outcomes, _ = run(monkeypatch, tmp_path, ray_here, candidate="bowl", trials=2)
    kept = json.loads((search.folder / "trials.json").read_text())
    assert [entry["values"] for entry in kept] == [outcome.values for outcome in outcomes]
