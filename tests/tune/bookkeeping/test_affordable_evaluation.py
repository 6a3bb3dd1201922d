"""Trials are measured on no more than a quarter of their time pays for, all of a search on as much."""

from __future__ import annotations

import pytest
from search_specs import search_spec

from edgequant.evaluation.settings import EvaluationSettings
from edgequant.training.settings import TrainingSettings


def limit_of(steps, limit=200, objectives=("boolq/accuracy", "squad/f1"), **training):
    settings = TrainingSettings(steps=steps, learning_rate=1e-3, **training)
    spec = search_spec(objectives=list(objectives), training=settings, evaluation=EvaluationSettings(limit=limit))
    assert spec.evaluation.limit == limit  # of the best trial
    return spec.trial.evaluation.limit


def test_a_trial_is_measured_on_what_a_quarter_of_its_time_pays_for(capsys):
    short, longer, long = (limit_of(steps) for steps in (32, 64, 10_000))
    assert 20 <= short < longer < long == 200
    assert longer == pytest.approx(2 * short, abs=1)
    assert f"on {short} questions of a task rather than 200" in capsys.readouterr().err
    assert limit_of(32, distillation_weight=1.0) > short  # a teacher takes time as well
    assert limit_of(1) == 20  # fewer say nothing
    assert limit_of(32, limit=10) == 10
    assert limit_of(32, objectives=("domain/perplexity",)) == 200


def test_the_longest_training_decides_for_all():
    space = {"steps": {"integers": [1, 10_000]}}
    spec = search_spec(objectives=["boolq/accuracy"], space=space, evaluation=EvaluationSettings(limit=200))
    assert spec.trial.evaluation.limit == 200
