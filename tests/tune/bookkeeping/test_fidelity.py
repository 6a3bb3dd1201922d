"""When trials may be compared in training, on which text, and what a search knows of trials before it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import fake_candidates
import pytest
from ray.tune.schedulers import TrialScheduler
from search_specs import RATE, search_spec

from edgequant import tracking
from edgequant.errors import UserError
from edgequant.training.settings import TrainingSettings
from edgequant_tune.fidelity.scheduler import METRIC, scheduler_of
from edgequant_tune.trial_records import TrialRecord


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "domain"),
        ({"objectives": ["wikitext2/perplexity"]}, "wikitext2"),
        ({"constraints": ["size/reduction_vs_fp16>=70"]}, "domain"),  # which all trials keep, or none
        ({"trials": 7}, None),
        ({"objectives": ["boolq/accuracy"]}, None),
        ({"objectives": ["size/checkpoint_gb"]}, None),
        ({"objectives": ["domain/perplexity", "wikitext2/perplexity"]}, None),
        ({"constraints": ["boolq/accuracy>=50"]}, None),
        ({"constraints": ["size/reduction_vs_fp16>=70"], "space": {"scheme": {"choice": ["w8", "w4-g32"]}}}, None),
        ({"space": {"steps": {"integers": [4, 8]}}}, None),
        ({"space": {"sequence_length": {"choice": [32, 64]}}}, None),
    ],
)
def test_trials_are_stopped_by_a_loss_only_where_it_predicts_what_is_optimised(options, text):
    spec = search_spec(scheduler="auto", **({"trials": 8} | options))
    assert spec.trial.rung_text == text and spec.trial.rungs == ((2, 4) if text else ())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objectives": ["boolq/accuracy"]}, "do not predict boolq/accuracy; use none"),
        ({"objectives": ["domain/perplexity", "wikitext2/perplexity"]}, "cannot judge a trade-off"),
        ({"space": {"steps": {"integers": [4, 8]}}}, "trials that differ in steps; use none"),
    ],
)
def test_successive_halving_that_would_mislead_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        search_spec(scheduler="asha", **options)


def test_the_loss_at_a_rung_is_of_the_text_that_trials_are_scored_on():
    from edgequant.models.tiny import tiny_tokenizer
    from edgequant_tune.train_candidate import TrialReporter

    tokenizer = tiny_tokenizer()
    training = TrainingSettings(steps=200, batch_size=4, sequence_length=64, learning_rate=1e-3)
    spec = search_spec(scheduler="asha", objectives=["domain/perplexity"], training=training)
    scored = [("floods", f"selection text number {number}, of some length. ") for number in range(99)]
    reporter = TrialReporter(spec.trial, tokenizer, {"domain": scored, "boolq": None}, lambda *_: None)
    rows = reporter._rows
    assert len(rows) == 200 * 4 // 40  # a twentieth of the training on both rungs together
    said = tokenizer.decode(rows.flatten())
    assert said.count("selection text number") >= 15


def test_a_resumed_search_compares_with_trials_before_it():
    before = [
        TrialRecord(number=i, id=f"{i:04d}", values={}, status="stopped", rung_losses={"2": loss})
        for i, loss in enumerate([1.0, 2.0, 3.0, 4.0], start=1)
    ]

    def decides(earlier, loss):
        scheduler = scheduler_of((2, 4), 8, earlier)
        trial = SimpleNamespace(trial_id="new")
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, {"step": 2, METRIC: loss})

    assert decides(before, 3.5) == TrialScheduler.STOP and decides(before, 1.5) == TrialScheduler.CONTINUE
    assert decides([], 3.5) == TrialScheduler.CONTINUE  # with nothing to compare with


@pytest.fixture(scope="module")
def searched(tmp_path_factory, ray_here, open_store):
    """A finished search of three trials, then the same with five, in one store."""
    from edgequant_tune.bookkeeping.trial_runs import name_best
    from edgequant_tune.driver import run_search
    from edgequant_tune.results import full_table

    folder = tmp_path_factory.mktemp("searched")
    with open_store(folder):
        sessions = []
        for trials, resume in ((3, False), (5, True)):
            config = {"model": "tiny", "method": "qat", "trials": trials, "dataset": "disaster", "scheme": "w8"}
            with tracking.workflow_run("tune", config, resume=resume, grows=("trials",)) as run:
                spec = search_spec(
                    fake_candidates.bowl, output=str(folder / "out"), trials=trials, concurrent_trials=1,
                    scheduler="asha", training=TrainingSettings(steps=4, learning_rate=1e-3),
                ).on(ray_here, run.id)  # fmt: skip
                records = run_search(spec, run)
                finished = [record for record in records if record.status == "finished"]
                name_best(min(finished, key=lambda one: one.metrics["domain/perplexity"]), run, of=len(records))
                tracking.log_table(full_table(spec, records), "trials.json")
            sessions.append((run, spec, records))
        with tracking.workflow_run("tune", config, resume=True, grows=("trials",)) as run:
            sessions.append((run, spec, []))
        yield sessions


@pytest.mark.long
def test_more_trials_are_added_to_a_finished_search(searched):
    (first, spec, three), (again, _, five), (anew, _, _) = searched
    assert again.id == first.id and again.resumed
    assert [record.number for record in five] == [1, 2, 3, 4, 5]
    assert five[:3] == three  # kept as they were, none trained again
    begun = [line.split()[0] for line in (spec.trial.folder / "calls.txt").read_text().splitlines()]
    assert begun == ["0001", "0002", "0003", "0004", "0005"]
    tags = tracking.client().get_run(first.id).data.tags
    assert tags["edgequant.trials"] == "5"
    best = tracking.client().get_run(tags["edgequant.best_run_id"])
    assert best.info.run_name == tags["edgequant.best_trial"]
    assert len({record.values["learning_rate"] for record in five}) == 5
    assert anew.id != first.id  # it has its five: the same asked again is a new search


@pytest.mark.long
def test_a_new_search_learns_from_an_earlier_one_of_the_same_model(searched):
    from edgequant_tune.bookkeeping.warm_start import earlier_trials

    run, spec, records = searched[1]
    config = {"model": "tiny", "method": "qat", "dataset": "disaster", "scheme": "w8"}
    scored_on = "validation"
    earlier = earlier_trials(run.id, config, ["learning_rate"], spec.objectives, scored_on)
    finished = [record for record in records if record.status == "finished"]
    assert [(one.values, one.metrics["domain/perplexity"]) for one in earlier] == [
        (one.values, pytest.approx(one.metrics["domain/perplexity"])) for one in finished
    ]
    twice = earlier_trials(f"{run.id}, {run.id}", config, ["learning_rate"], spec.objectives, scored_on)
    assert len({one.id for one in twice}) == 2 * len(finished)
    for change, said in (
        ({"model": "smollm2-135m"}, "is a search of model 'tiny', not of 'smollm2-135m'"),
        ({"dataset": "wikitext-2"}, "measured with dataset disaster, this search is with wikitext-2"),
        ({"scheme": "w4-g32"}, "measured with scheme w8"),
    ):
        with pytest.raises(UserError, match=said):
            earlier_trials(run.id, config | change, ["learning_rate"], spec.objectives, scored_on)
    with pytest.raises(UserError, match="has no finished trial with boolq/accuracy"):
        earlier_trials(
            run.id, config, ["learning_rate"], search_spec(objectives=["boolq/accuracy"]).objectives, scored_on
        )
    with pytest.raises(UserError, match="was scored on validation, this search's trials are on wikitext2: half"):
        earlier_trials(run.id, config, ["learning_rate"], spec.objectives, "wikitext2: half")
    with pytest.raises(UserError, match="warm_start 'no-such-run' must be the id of a search's run"):
        earlier_trials("no-such-run", config, ["learning_rate"], spec.objectives, scored_on)


def test_what_is_learned_decides_what_is_proposed(tmp_path):
    """Twelve earlier trials lie on a bowl: the first proposal of its own is near its ground."""
    import math

    from edgequant_tune.bookkeeping.ledger import Ledger
    from edgequant_tune.driver import _searcher

    spec = search_spec(space=RATE)
    rates = [10 ** (-6 + 4 * i / 11) for i in range(12)]
    earlier = [
        TrialRecord(
            number=i + 1, id=f"earlier {i}", values={"learning_rate": rate}, status="finished",
            metrics={"domain/perplexity": 10 + math.log10(rate / 1e-4) ** 2},
        )
        for i, rate in enumerate(rates)
    ]  # fmt: skip
    spec = replace(spec, trial=replace(spec.trial, folder=tmp_path))
    ledger = Ledger(tmp_path, spec.objectives, tmp_path / "trials")

    def proposals(known):
        searcher = _searcher(spec, ledger, known)
        assert searcher.suggest("0") == spec.recipe  # the settings as they are come first, whatever is known
        return [abs(math.log10(searcher.suggest(str(i))["learning_rate"] / 1e-4)) for i in range(1, 6)]

    assert sorted(proposals(earlier))[2] < 0.7 and max(proposals(earlier)) < max(proposals([]))
