import json
import math

import fake_candidates
import pytest
from search_specs import RATE, search_spec

from edgequant.errors import UserError
from edgequant.training.settings import TrainingSettings


def run(tmp_path, resources, train, **options):
    """A search under a run of its own; returns its spec, its trials, the run's id."""
    from edgequant import tracking
    from edgequant_tune.driver import run_search

    with tracking.workflow_run("tune", {"test": 1}) as parent:
        spec = search_spec(train, output=str(tmp_path / "out"), **options).on(resources, parent.id)
        records = run_search(spec, parent)
    return spec, records, parent.id


def children(store, parent):
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    runs = store.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_name: run for run in runs}


def test_trials_are_finished_nested_runs_with_parameters_and_live_metrics(tmp_path, store, ray_here):
    _, records, parent = run(tmp_path, ray_here, fake_candidates.bowl)
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
        "trial": records[0].id,
    }
    assert {key: first.tags[f"edgequant.{key}"] for key in tags} == tags
    history = store.get_metric_history(runs["trial 1"].info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(i, pytest.approx(1 + 1 / i)) for i in range(1, 9)]


@pytest.mark.long
def test_only_checkpoints_that_nothing_beats_stay_on_disk(tmp_path, store, ray_here):
    from edgequant_tune.trial_records import ranked

    spec, records, _ = run(tmp_path, ray_here, fake_candidates.bowl)
    best = ranked(records, spec.objectives)[0]
    kept = {folder.name for folder in (spec.trial.folder / "trials").iterdir()}
    assert kept == {best.id, records[0].id}, "the recipe's stays too"
    assert abs(math.log10(best.values["learning_rate"] / 1e-4)) <= 1.0  # no worse than the first trial


@pytest.mark.long
def test_failed_and_diverged_trials_do_not_stop_the_search(tmp_path, store, ray_here):
    from edgequant_tune.results import table
    from edgequant_tune.trial_records import ranked

    space = RATE | {"batch_size": {"choice": [2, 4, 8]}}
    spec, records, parent = run(tmp_path, ray_here, fake_candidates.fragile, space=space, trials=8)
    failed = [record for record in records if record.status == "failed"]
    assert failed and all(record.values["batch_size"] == 8 for record in failed)
    assert {record.values["batch_size"] for record in ranked(records, spec.objectives)} == {4}  # NaN never wins
    runs = children(store, parent)
    for record in failed:
        run_of = runs[record.name]
        assert run_of.info.status == "FAILED"
        assert "batch_size 8 does not fit" in run_of.data.tags["edgequant.error"]
        assert [file.path for file in store.list_artifacts(run_of.info.run_id)] == ["traceback.txt"]
    assert any("batch_size 8 does not fit" in row.get("error", "") for row in table(spec, records))


@pytest.mark.long
def test_a_search_in_which_nothing_works_says_why(tmp_path, store, ray_here):
    from edgequant import tracking
    from edgequant_tune.results import log_search

    spec, records, _ = run(tmp_path, ray_here, fake_candidates.broken, trials=2)
    with pytest.raises(RuntimeError, match="disk is gone"), tracking.workflow_run("tune", {}) as again:
        log_search(spec, records, again)


def test_the_scheduler_stops_what_lags_behind_and_its_run_says_so(tmp_path, store, ray_here):
    spec, records, parent = run(
        tmp_path, ray_here, fake_candidates.bowl, trials=10, scheduler="asha", concurrent_trials=1
    )
    assert spec.trial.rungs == (2, 4)
    stopped = [record for record in records if record.status == "stopped"]
    assert stopped and all(record.step in spec.trial.rungs for record in stopped)
    runs = children(store, parent)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for record in records:
        assert ("edgequant.stopped_by" in runs[record.name].data.tags) == (record.status == "stopped")


@pytest.mark.long
def test_two_objectives_keep_the_trade_offs(tmp_path, store, ray_here):
    from edgequant_tune.figures import figures
    from edgequant_tune.trial_records import pareto_front

    space = RATE | {"scheme": {"choice": ["w4a8-g32+emb4", "w8a8"]}}
    both = ["domain/perplexity", "size/checkpoint_gb"]
    spec, records, parent = run(
        tmp_path, ray_here, fake_candidates.bowl, space=space, objectives=both, trials=8, scheduler="auto"
    )
    assert all(record.status == "finished" for record in records)
    front = pareto_front(records, spec.objectives)
    assert {record.values["scheme"] for record in front} == {"w4a8-g32+emb4", "w8a8"}
    kept = {record.id for record in (*front, records[0])}
    assert {folder.name for folder in (spec.trial.folder / "trials").iterdir()} == kept
    schemes = {name: run.data.tags["edgequant.scheme"] for name, run in children(store, parent).items()}
    assert schemes == {record.name: record.values["scheme"] for record in records}
    assert set(figures(records, spec.space, spec.objectives)) == {
        "figures/pareto.html",
        "figures/importance_domain_perplexity.html",
        "figures/importance_size_checkpoint_gb.html",
        "figures/parallel_coordinates.html",
        "figures/history.html",
        "figures/hypervolume.html",
    }


@pytest.mark.long
def test_the_time_budget_ends_the_search_and_leaves_no_run_open(tmp_path, store, ray_here):
    long = TrainingSettings(steps=40000)
    _, records, parent = run(
        tmp_path, ray_here, fake_candidates.bowl, training=long, trials=3, time_budget_minutes=10 / 60
    )
    assert {record.status for record in records} == {"stopped"}
    runs = children(store, parent).values()
    assert runs and {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["edgequant.stopped_by"] for run in runs} == {"time budget"}


@pytest.mark.long
def test_the_record_on_disk_is_what_was_found(tmp_path, store, ray_here):
    spec, records, _ = run(tmp_path, ray_here, fake_candidates.bowl, trials=2)
    lines = [json.loads(line) for line in (spec.trial.folder / "trials.jsonl").read_text().splitlines()]
    ends = {entry["id"]: entry["values"] for entry in lines if entry["status"] == "finished"}
    assert ends == {record.id: record.values for record in records}
    assert len(lines) == 2 * len(records)  # one when a trial begins, one when it ends


def test_a_search_that_ray_ends_before_its_last_trial_has_not_finished(tmp_path, store, ray_here, monkeypatch):
    from ray import tune

    class EndsAtOnce:
        def __init__(self, *_given, **_more):
            pass

        def fit(self):
            pass

    monkeypatch.setattr(tune, "Tuner", EndsAtOnce)
    told = r"the search ended after 0 of 4 trials.*--resume true goes on with it"
    with pytest.raises(UserError, match=told):
        run(tmp_path, ray_here, fake_candidates.bowl, trials=4)
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    assert [one.info.status for one in store.search_runs(experiments)] == ["FAILED"]


@pytest.mark.long
@pytest.mark.parametrize("begun_with", [None, {"format": 1}])
def test_an_interrupted_search_of_another_version_is_refused_by_name(tmp_path, store, ray_here, begun_with):
    from edgequant import tracking
    from edgequant_tune.driver import run_search

    spec, _, parent = run(tmp_path, ray_here, fake_candidates.bowl, trials=1)
    (spec.trial.folder / "format.json").unlink()
    if begun_with:
        (spec.trial.folder / "format.json").write_text(json.dumps(begun_with))
    before = (spec.trial.folder / "calls.txt").read_text()
    with (
        pytest.raises(UserError, match=rf"{parent}' was begun by another version of edgequant.*without --resume"),
        tracking.workflow_run("tune", {"test": 1}) as again,
    ):
        run_search(spec, again)
    assert (spec.trial.folder / "calls.txt").read_text() == before
