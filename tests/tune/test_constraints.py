"""Constraints of a search: read, checked, kept by the best trial, and told where no trial keeps them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_specs import search_spec

from edgequant.errors import UserError
from edgequant.evaluation.backends.llama_cpp.library import version
from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings
from edgequant.workflows.settings import RunSettings
from edgequant_tune import objective_tasks, results
from edgequant_tune.objectives import (
    UNMEASURED,
    VIOLATION,
    Constraint,
    read_constraints,
    read_objectives,
    violation,
)
from edgequant_tune.search_algorithm import METRICS, SearchAlgorithm
from edgequant_tune.train_candidate import Candidate, qat_candidate
from edgequant_tune.trial import run_trial
from edgequant_tune.trial_records import TrialRecord, pareto_front, prune_dominated, ranked, table

PERPLEXITY = read_objectives(["domain/perplexity"])


def record(number: int, perplexity: float, beyond: float | None = None, status: Any = "finished") -> TrialRecord:
    metrics = {"domain/perplexity": perplexity, "size/checkpoint_gb": perplexity}
    metrics |= {} if beyond is None else {VIOLATION: beyond}
    return TrialRecord(number=number, id=str(number), values={}, status=status, metrics=metrics)


def test_constraints_are_read_as_they_are_written():
    found = read_constraints(["deploy/size_gb<=0.1", " squad/f1 >= 4e1 "])
    assert found == (Constraint("deploy/size_gb", "<=", 0.1), Constraint("squad/f1", ">=", 40.0))
    assert [str(one) for one in found] == ["deploy/size_gb<=0.1", "squad/f1>=40"]


@pytest.mark.parametrize(
    "line",
    ["", "deploy/size_gb", "deploy/size_gb<0.1", "deploy/size_gb<=", "deploy/size_gb<=nan", "<=1", "a/b<=1 GB", "a=<1"],
)
def test_what_is_no_constraint_is_refused_by_what_it_says(line):
    with pytest.raises(UserError, match=r"constraint must be METRIC<=NUMBER or METRIC>=NUMBER"):
        read_constraints([line])


def test_a_share_of_what_is_in_per_cent_is_refused_before_a_trial_is_tried():
    said = r"^constraint 'boolq/accuracy>=0.7': min 0.7 is 0.7 %, since .* in per cent \(0 to 100\); give 70 for 70 %"
    with pytest.raises(UserError, match=said):
        search_spec(constraints=("boolq/accuracy>=0.7",))
    with pytest.raises(UserError, match=r"is a share \(0 to 1\); give 0.95 for 95 %"):
        read_constraints(["parity/argmax_agreement>=95"])
    meant = ["boolq/accuracy>=0", "squad/exact_match>=1", "squad/f1<=0.5", "parity/argmax_agreement>=0.95"]
    assert len(read_constraints(meant)) == 4


def test_two_bounds_of_a_metric_from_the_same_side_are_refused_and_from_both_sides_are_a_range():
    with pytest.raises(UserError, match="must each bound another metric"):
        read_constraints(["deploy/size_gb<=0.1", "deploy/size_gb<=0.2"])
    assert len(read_constraints(["deploy/size_gb<=0.1", "deploy/size_gb>=0.05"])) == 2


def test_the_excess_is_a_share_of_the_bound_and_nothing_where_it_is_kept():
    most, least = read_constraints(["deploy/size_gb<=0.1", "squad/f1>=40"])
    assert (most.excess({"deploy/size_gb": 0.1}), least.excess({"squad/f1": 40})) == (0, 0)
    assert most.excess({"deploy/size_gb": 0.15}) == pytest.approx(0.5)
    assert least.excess({"squad/f1": 30}) == pytest.approx(0.25)
    assert most.excess({}) == least.excess({"squad/f1": math.nan}) == UNMEASURED
    assert violation((most, least), {"deploy/size_gb": 0.15, "squad/f1": 30})[VIOLATION] == pytest.approx(0.75)
    assert violation((), {}) == {}


def test_a_better_trial_that_breaks_a_constraint_comes_behind_and_its_checkpoint_goes(tmp_path: Path):
    trials = [record(1, 9.0, 0.5), record(2, 12.0, 0.0), record(3, 11.0, 0.0), record(4, 8.0, 0.2)]
    assert [one.number for one in ranked(trials, PERPLEXITY)] == [3, 2, 4, 1]
    assert [one.number for one in pareto_front(trials, PERPLEXITY)] == [3]
    for one in trials:
        (tmp_path / one.id).mkdir()
    prune_dominated(tmp_path, trials, PERPLEXITY)
    assert {folder.name for folder in tmp_path.iterdir()} == {"1", "3"}, "the first is the recipe's"
    rows = table(trials, PERPLEXITY, model="tiny", scheme="q4_0")
    assert [row["constraints"] for row in rows] == ["kept", "kept", "broken", "broken"]
    assert [one.number for one in pareto_front([trials[0], trials[3]], PERPLEXITY)] == [4], "the least broken"


def test_without_constraints_nothing_changes():
    trials = [record(1, 9.0), record(2, 12.0)]
    assert [one.number for one in ranked(trials, PERPLEXITY)] == [1, 2]
    assert "constraints" not in table(trials, PERPLEXITY, model="tiny", scheme="q4_0")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraints": ["deploy/sise_gb<=1"]}, "constraint must be a metric of what ships, got 'deploy/sise_gb'"),
        ({"objectives": ["min:deploy/format"]}, "objective must be a metric of what ships"),
        ({"constraints": ["nothing/real<=1"]}, "constraint must be a metric that some task measures"),
        ({"objectives": ["deploy/headroom_gb"]}, "objective 'deploy/headroom_gb' needs a device_profile"),
        ({"device_profile": "nowhere"}, "device_profile 'nowhere' not found"),
        ({"method": "finetune", "constraints": ["deploy/size_gb<=1"]}, "needs method qat, got 'finetune'"),
        ({"method": "finetune", "device_profile": "phone-4gb"}, "device_profile 'phone-4gb' needs method qat"),
    ],
)
def test_goals_that_no_trial_could_measure_are_refused_before_ray_starts(options, message):
    with pytest.raises(UserError, match=message):
        search_spec(**options)


def test_times_need_their_runtime(monkeypatch):
    monkeypatch.setattr(objective_tasks, "version", lambda: None)
    with pytest.raises(UserError, match=r"'deploy/decode_ms_per_token' needs llama.cpp to be timed; pip install"):
        search_spec(objectives=["deploy/decode_ms_per_token"])
    assert search_spec(objectives=["deploy/size_gb"]).trial.timing.left_out, "a size takes no runtime"


@pytest.mark.skipif(version() is None, reason="xllamacpp is not installed")
def test_trials_are_timed_where_a_goal_or_a_device_asks_for_it_and_on_their_own_cpus():
    assert search_spec().trial.timing.left_out
    asked = search_spec(constraints=["deploy/decode_ms_per_token<=9"], cpus_per_trial=1.5).trial.timing
    assert (asked.left_out, asked.threads) == ("", 1)
    spec = search_spec(device_profile="edge-2c-1g")
    assert spec.trial.timing.profile.name == "edge-2c-1g"
    assert spec.trial.constraints == (Constraint("deploy/fits", ">=", 1.0),), "to fit is a constraint"
    assert spec.trial.evaluation.tasks == ("domain_perplexity",)
    assert set(search_spec(constraints=["boolq/accuracy>=50"]).trial.evaluation.tasks) == {"domain_perplexity", "boolq"}


def measured(trial: Any, work_dir: Path, on_report: Any) -> Candidate:
    return Candidate({"domain/perplexity": 9.0, "deploy/size_gb": 0.15}, work_dir)


def test_a_trial_reports_how_far_it_is_beyond_its_constraints(tmp_path: Path):
    spec = search_spec(measured, constraints=["deploy/size_gb<=0.1"], output=str(tmp_path))
    reports: list[Any] = []
    run_trial(spec.trial, {"learning_rate": 1e-4}, "a", reports.append)
    assert reports[-1]["metrics"][VIOLATION] == pytest.approx(0.5)


def test_the_search_learns_which_trials_break_constraints():
    """The objective pulls to a rate of 1, the constraint allows a quarter of that."""
    kept = {}
    for constraints in ([], ["size/checkpoint_gb<=0.25"]):
        spec = search_spec(space={"learning_rate": {"uniform": [0.001, 1.0]}}, constraints=constraints)
        search = SearchAlgorithm(spec)
        rates = []
        for number in range(20):
            rate = search.suggest(str(number))["learning_rate"]
            report = {METRICS + "domain/perplexity": 10 - rate, METRICS + "size/checkpoint_gb": rate}
            search.on_trial_complete(str(number), report | {"complete": True})
            rates.append(rate)
        kept[len(constraints)] = [rate for rate in rates[6:] if rate <= 0.25]
        if constraints:
            assert 0.24 < max(kept[1]) <= 0.25, "the best one that keeps it"
    assert len(kept[0]) <= 3 and len(kept[1]) >= 7, kept


@pytest.mark.long
def test_the_size_of_what_ships_is_part_of_every_qat_trial(tmp_path: Path):
    """1.05 MB of `tiny` in fp16: 4.5 bits of 16 and the tokenizer."""
    spec = search_spec(
        scheme="q4_0+embq4_0", output=str(tmp_path), run=RunSettings(device="cpu", dtype="float32"),
        training=TrainingSettings(steps=1, learning_rate=1e-4, batch_size=1, sequence_length=32),
        evaluation=EvaluationSettings(limit=20, window=128, bootstrap_resamples=10),
    )  # fmt: skip
    (tmp_path / "work").mkdir()
    metrics, checkpoint = qat_candidate(spec.trial, tmp_path / "work", lambda *_: None)
    assert checkpoint.is_dir() and 68 < metrics["deploy/reduction_vs_fp16"] < 100 * (1 - 4.5 / 16)
    assert 0 < metrics["deploy/size_gb"] < 1e-3 and "deploy/decode_ms_per_token" not in metrics


@pytest.mark.parametrize(("beyond", "said"), [(0.3, "breaks deploy/size_gb<=0.1 least"), (0.05, "keeps")])
def test_a_search_says_whether_its_best_trial_keeps_the_constraints(beyond, said):
    spec = search_spec(constraints=["deploy/size_gb<=0.1"])
    best = replace(record(7, 9.0), metrics={"domain/perplexity": 9.0, "deploy/size_gb": beyond})
    (line,) = results._constraints(spec, best)
    assert "trial 7" in line and said in line
