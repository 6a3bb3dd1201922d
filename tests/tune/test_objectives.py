import math

import pytest

from edgequant.errors import UserError
from edgequant_tune.objectives import dominates, read_objectives
from edgequant_tune.trial_records import TrialRecord, pareto_front, ranked


def record(number, perplexity, size, status="finished"):
    metrics = {"domain/perplexity": perplexity, "size/checkpoint_gb": size}
    return TrialRecord(number=number, id=str(number), values={}, status=status, metrics=metrics)


BOTH = read_objectives(["domain/perplexity", "size/checkpoint_gb"])


def test_directions_are_known_and_may_be_said():
    perplexity, accuracy, own = read_objectives(["domain/perplexity", "boolq/accuracy", "max:size/checkpoint_gb"])
    assert (perplexity.mode, accuracy.mode, own.mode) == ("min", "max", "max")


@pytest.mark.parametrize("names", [[], ["domain/perplexity", "min:domain/perplexity"], ["my/own"]])
def test_objectives_that_cannot_be_meant_are_refused(names):
    with pytest.raises(UserError, match="objective"):
        read_objectives(names)


def test_a_missing_or_infinite_metric_never_wins():
    objective = BOTH[0]
    assert objective.cost({}) == objective.cost({"domain/perplexity": math.nan}) == math.inf
    assert not dominates({}, {"domain/perplexity": 1e9, "size/checkpoint_gb": 1e9}, BOTH)


def test_the_front_holds_what_nothing_beats_and_only_finished_trials():
    trials = [
        record(1, 10, 8),
        record(2, 12, 4),
        record(3, 12, 8),
        record(4, 9, 9, "stopped"),
        record(5, math.inf, 1),
    ]
    assert [one.number for one in pareto_front(trials, BOTH)] == [1, 2]
    assert [one.number for one in ranked(trials, BOTH[:1])] == [1, 2, 3]
