"""The searcher: no duplicates, slots that look for different things, trials without a result, the same again."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
from search_specs import search_spec

from edgequant_tune.search_algorithm import METRICS, SearchAlgorithm
from edgequant_tune.searcher.acquisition import log_hypervolume_improvement
from edgequant_tune.searcher.gaussian_process import GaussianProcess
from edgequant_tune.searcher.observation import Observation, points
from edgequant_tune.searcher.proposals import Proposals
from edgequant_tune.space.hyperparameter import Space
from edgequant_tune.trial_records import TrialRecord

RATE: dict[str, Any] = {"learning_rate": {"log_uniform": [1e-6, 1e-2]}}
SMALL: dict[str, Any] = {
    "learning_rate": {"choice": [1e-4, 1e-3, 1e-2]},
    "lora_rank": {"choice": [0, 8]},
    "lora_alpha": {"choice": [4.0, 64.0], "when": {"lora_rank": ">0"}},
}


def space_of(lines: dict[str, Any]) -> Space:
    return search_spec(space=lines).space


def bowl(values: Any) -> float:
    return (math.log10(values["learning_rate"]) + 4) ** 2


def played(proposals: Proposals, trials: int, slots: int = 1) -> list[float]:
    """The costs of trials that end in the order in which they began."""
    running: list[str] = []
    costs = []
    for number in range(trials):
        proposals.ask(str(number))
        running.append(str(number))
        if len(running) == slots:
            name = running.pop(0)
            costs.append(bowl(proposals.trials[name].values))
            proposals.tell(name, "finished", [costs[-1]])
    return costs


@pytest.mark.parametrize("slots", [1, 8])
def test_it_finds_the_bottom_of_a_bowl_that_random_search_comes_nowhere_near(slots):
    """Of 24 random draws over four decades the best is 0.08 decades off in the mean.

    Where eight run at a time, seeds 3 and 5 come to 0.002 to 0.009 decades with one kind of CPU's arithmetic or another
    (five of OpenBLAS's kernels), seed 4 to the same with all.
    """
    best = {s: min(played(Proposals(space_of(RATE), seed=s, slots=slots), 24 + slots, slots)) for s in (3, 4, 5)}
    assert best[4] < 0.002**2 and max(best.values()) < 0.01**2


@pytest.mark.parametrize("seed", range(4))
def test_trials_that_run_at_a_time_do_not_all_look_at_the_same_place(seed):
    """Six trials fit a parabola, so that every function the model draws has its minimum where the others have it."""
    proposals = Proposals(space_of(RATE | {"distillation_weight": {"uniform": [0.0, 1.0]}}), seed=seed, slots=6)
    first, at_a_time = [str(number) for number in range(6)], [f"later {number}" for number in range(6)]
    for name in first:
        proposals.ask(name)
    for name in first:
        values = proposals.trials[name].values
        proposals.tell(name, "finished", [bowl(values) + (values["distillation_weight"] - 0.6) ** 2])
    asked = [proposals.ask(name).values for name in at_a_time]
    places = [(math.log10(values["learning_rate"]) / 4, values["distillation_weight"]) for values in asked]
    apart = [max(abs(a - c), abs(b - d)) for (a, b), (c, d) in itertools.combinations(places, 2)]
    assert sum(distance < 0.02 for distance in apart) <= 1


def test_constraints_come_before_looking_elsewhere():
    """A fifth of the space keeps the constraint, and all that run at a time stay there."""
    proposals = Proposals(space_of(RATE | {"distillation_weight": {"uniform": [0.0, 1.0]}}), seed=1, slots=6)
    for number in range(24):
        weight = proposals.ask(str(number)).values["distillation_weight"]
        proposals.tell(str(number), "finished", [bowl(proposals.trials[str(number)].values)], [weight - 0.2])
    asked = [proposals.ask(f"later {number}").values["distillation_weight"] for number in range(6)]
    assert sum(weight <= 0.2 for weight in asked) >= 5


def test_what_a_running_trial_will_tell_is_foretold_near_it_and_not_elsewhere():
    at = np.array([[0.0], [0.3], [1.0]])
    model = GaussianProcess(at, np.array([1.0, 0.0, 2.0]), np.array([False])).believing(np.array([[0.65]]))
    assert model.foretold(np.array([[0.0], [0.64], [0.66]])).tolist() == [False, True, True]
    assert not model.without_beliefs.foretold(np.array([[0.64]])).any()


def test_hypervolume_is_added_where_the_front_leaves_room():
    """Costs x and 1 - x: on the front nothing is added, below it the area up to the worst values."""
    at = np.linspace(0, 1, 9)[:, None]
    known = [GaussianProcess(at, values, np.array([False])) for values in (at[:, 0], 1 - at[:, 0])]
    front, worst, rng = np.array([[0.9, 0.3], [0.3, 0.9]]), np.array([1.1, 1.1]), np.random.default_rng(0)
    worth = log_hypervolume_improvement(known, np.array([[0.5], [0.35], [0.1]]), front, worst, rng)
    # at 0.5: (0.9 - 0.5) x (0.9 - 0.5); at 0.35: 0.55 x 0.25; at 0.1: (0.3 - 0.1) x (1.1 - 0.9); of 0.8 x 0.8
    assert np.exp(worth) == pytest.approx(np.array([0.16, 0.1375, 0.04]) / 0.64, rel=0.1)


@pytest.mark.parametrize("feasible", [1, 12])
@pytest.mark.parametrize("size", [1.0, 4e9])
def test_constraints_decide_where_an_objective_is_the_same_in_all_that_keep_them(feasible, size):
    """Weight 0 to 0.5 keeps the constraint, at one size; beyond it models are smaller."""
    proposals = Proposals(space_of(RATE | {"distillation_weight": {"uniform": [0.0, 1.0]}}), seed=2, slots=1)
    for number in (*range(feasible), *range(12, 24)):
        values = {"learning_rate": 10 ** (-6 + 4 * (number % 7) / 7), "distillation_weight": (number + 0.5) / 24}
        excess = values["distillation_weight"] - 0.5
        costs = [bowl(values), size * (1.0 if excess <= 0 else 0.9)]
        proposals.learn(str(number), values, 0, "finished", costs, [excess])
    assert [proposals.ask(f"later {n}").values["distillation_weight"] <= 0.55 for n in range(4)] == [True] * 4


def test_no_configuration_is_tried_twice_and_a_finite_space_comes_to_an_end():
    """Three rates, without an adapter or with one of two scales: 9 configurations, not 12."""
    proposals = Proposals(space_of(SMALL), slots=4)
    found = [proposals.ask(str(number)) for number in range(11)]
    assert [one is None for one in found] == [False] * 9 + [True] * 2
    assert len({repr(one.values) for one in found if one}) == 9
    assert proposals.ask("3") is found[3], "asked again, it is the same trial"


def test_a_model_that_sees_one_best_value_does_not_propose_it_again():
    space = space_of({"batch_size": {"choice": [1, 2, 4, 8, 16, 32]}, "gradient_accumulation": {"choice": [1, 2]}})
    proposals = Proposals(space)
    for number in range(12):
        one = proposals.ask(str(number))
        assert one is not None
        proposals.tell(str(number), "finished", [abs(math.log2(one.values["batch_size"]) - 2)])
    assert len({repr(one.values) for one in proposals.trials.values()}) == 12


def test_slots_that_run_at_a_time_look_in_different_places():
    proposals = Proposals(space_of(RATE), slots=8, seed=1)
    for number in range(8):
        one = proposals.ask(str(number))
        assert one is not None
        proposals.tell(str(number), "finished", [bowl(one.values)])
    rates = sorted(math.log10(proposals.ask(f"next {number}").values["learning_rate"]) for number in range(8))
    assert min(b - a for a, b in itertools.pairwise(rates)) > 1e-4
    assert sum(abs(rate + 4) < 1 for rate in rates) >= 5, "most of them where it is good"


def test_the_first_trials_cover_every_part_of_every_range():
    proposals = Proposals(space_of(RATE), slots=8)
    rates = [math.log10(proposals.ask(str(number)).values["learning_rate"]) for number in range(8)]
    assert {math.floor(2 * (rate + 6)) for rate in rates} == set(range(8)), "half a decade each"


def test_replicates_follow_each_other_and_the_next_configuration_is_another():
    proposals = Proposals(space_of(RATE), replicates=3)
    found = [proposals.ask(str(number)) for number in range(6)]
    assert [one.replicate for one in found] == [0, 1, 2, 0, 1, 2]
    assert len({repr(one.values) for one in found[:3]}) == 1 != len({repr(one.values) for one in found})


def test_a_search_that_went_on_proposes_what_it_would_have_proposed():
    whole = Proposals(space_of(RATE), slots=2, seed=7)
    played(whole, 9, slots=2)
    again = pickle.loads(pickle.dumps(whole))
    assert again.ask("10").values == whole.ask("10").values


def test_stopped_and_failed_trials_count_as_bad_ones_and_a_diverged_one_hides_nothing():
    finished = [Observation({}, 0, "finished", (cost,)) for cost in (1.0, 2.0, 3.0, 1e9)]
    others = [Observation({}, 0, state, costs) for state, costs in (("stopped", (1.5,)), ("stopped", (9.0,)),
              ("stopped", (math.inf,)), ("failed", ()), ("pending", ()))]  # fmt: skip
    costs = {index: one[0][0] for index, one in points([*finished, *others]).items()}
    assert [costs[index] for index in range(3)] == [1.0, 2.0, 3.0] and 3.0 < costs[3] < 60
    assert costs[4] == 3.0, "no better than the median, because it lagged behind"
    assert 3.0 < costs[5] < costs[7] == costs[3] and costs[6] > 3.0
    assert 8 not in costs and points(others) == {}


def test_a_gaussian_process_goes_through_what_it_was_told_and_is_unsure_elsewhere():
    at = np.linspace(0, 0.5, 6)[:, None]
    model = GaussianProcess(at, np.sin(6 * at[:, 0]), np.array([False]))
    mean, deviation = model.predict(np.array([[0.2], [0.45], [0.95]]))
    assert np.allclose(mean[:2], np.sin([1.2, 2.7]), atol=0.02)
    assert deviation[2] > 5 * deviation[:2].max()
    believing = model.believing(np.array([[0.95]]))
    assert believing.predict(np.array([[0.95]]))[1] < deviation[2] / 3, "where it has looked, it need not look"


def test_its_likelihood_has_the_gradient_that_it_says():
    rng = np.random.default_rng(0)
    at, choices = rng.random((12, 3)), np.array([False, False, True])
    at[:, 2] = rng.integers(0, 3, 12)
    model = GaussianProcess(at, rng.random(12), choices)
    centre, spread, theta = np.zeros(6), np.ones(6), np.array([0.3, -0.2, 0.1, 0.2, -0.5, -3.0])
    gradient = model._loss(theta, centre, spread)[1]
    steps = 1e-6 * np.eye(6)
    numeric = [
        (model._loss(theta + e, centre, spread)[0] - model._loss(theta - e, centre, spread)[0]) / 2e-6 for e in steps
    ]
    assert np.allclose(gradient, numeric, rtol=1e-3, atol=1e-3)


def test_what_ray_tells_is_what_the_searcher_knows():
    search = SearchAlgorithm(search_spec(space=RATE, constraints=["size/checkpoint_gb<=2"]))
    for name in "abcde":
        search.suggest(name)
    report = {METRICS + "domain/perplexity": 9.0, METRICS + "size/checkpoint_gb": 3.0, "complete": True}
    search.on_trial_complete("a", report)
    search.on_trial_complete("b", report | {"complete": False})
    search.on_trial_complete("c", report | {METRICS + "domain/perplexity": math.nan})
    search.on_trial_complete("d", None, error=True)
    known = search.proposals.trials
    assert [known[name].state for name in "abcde"] == ["finished", "stopped", "failed", "failed", "pending"]
    assert (known["a"].costs, known["a"].excesses, known["b"].costs) == ((9.0,), (0.5,), (9.0,))


def test_a_search_learns_from_records_and_repeats_what_was_interrupted():
    spec = search_spec(space=SMALL | {"seed": {"replicates": 2}})
    first = SearchAlgorithm(spec)
    names = [f"trial {number}" for number in range(5)]
    values = [first.suggest(name) for name in names]
    records = [
        TrialRecord(number=i, id=names[i], values=values[i], status="finished", metrics={"domain/perplexity": 9.0 + i})
        for i in range(4)
    ]
    for record in records:
        report = {METRICS + name: value for name, value in record.metrics.items()}
        first.on_trial_complete(record.id, report | {"complete": True})
    second = SearchAlgorithm(spec)
    second.learn(records)
    second.repeat([values[4]])
    assert second.suggest("again") == values[4]
    assert second.suggest("next") == first.suggest("next") != values[4]


def test_seeds_are_replicates_and_belong_to_what_a_trial_gets():
    spec = search_spec(space=RATE | {"seed": {"replicates": 2}})
    search = SearchAlgorithm(spec)
    one, other = search.suggest("a"), search.suggest("b")
    assert (one["seed"], other["seed"]) == (0, 1) and one["learning_rate"] == other["learning_rate"]
    assert spec.trial.with_values(other).run.seed == 1
