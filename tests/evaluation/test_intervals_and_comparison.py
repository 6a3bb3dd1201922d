"""Bootstrap intervals and the paired question "is B worse than A by more than d?"."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from edgequant.errors import UserError
from edgequant.evaluation.statistics.comparison import compare, mcnemar
from edgequant.evaluation.statistics.intervals import Bootstrap
from edgequant.evaluation.statistics.medians import median_bounds
from edgequant.evaluation.tasks.boolq import boolq_metrics


def _items(values, name="correct"):
    return [{"id": str(at), name: float(value)} for at, value in enumerate(values)]


def test_the_interval_of_a_proportion_agrees_with_its_normal_approximation():
    values = np.arange(1000) % 10 < 7
    metrics = Bootstrap(4000).mean("x", 100 * values)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000) * 100
    assert metrics["x"] == 70
    assert metrics["x_ci_low"] == pytest.approx(70 - half, abs=0.3)
    assert metrics["x_ci_high"] == pytest.approx(70 + half, abs=0.3)


def test_the_interval_agrees_with_scipy():
    values = np.random.default_rng(1).exponential(2, 300)
    ours = Bootstrap(5000).mean("x", values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    assert (ours["x_ci_low"], ours["x_ci_high"]) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(1).random(100)
    assert Bootstrap(200, seed=1).mean("x", values) == Bootstrap(200, seed=1).mean("x", values)
    assert Bootstrap(200, seed=1).mean("x", values) != Bootstrap(200, seed=2).mean("x", values)


def test_balanced_accuracy_of_always_yes_is_half_whatever_the_mix():
    items = [{"gold": at < 70, "correct": float(at < 70), "margin": 1.0, "over_long": False} for at in range(100)]
    metrics = boolq_metrics("boolq/", items, Bootstrap(100))
    assert metrics["boolq/accuracy"] == 70
    assert metrics["boolq/balanced_accuracy"] == 50
    assert [metrics[f"boolq/{name}"] for name in ("true_yes", "false_no", "true_no", "false_yes")] == [70, 0, 0, 30]


def test_the_exact_mcnemar_p_value_is_the_binomial_one():
    a, b = np.array([1] * 10 + [0] * 3 + [1] * 50), np.array([0] * 10 + [1] * 3 + [1] * 50)
    # 3 of 13 discordant pairs favour B: 2 * P(X <= 3), X ~ Binomial(13, 1/2)
    assert mcnemar(a, b) == pytest.approx(2 * sum(stats.binom.pmf(k, 13, 0.5) for k in range(4)))
    assert mcnemar(a, a) == 1


def test_a_clear_loss_is_worse_a_small_one_is_not_and_few_items_are_undecided():
    random = np.random.default_rng(0)
    a = random.random(2000) < 0.7
    broken = a & (random.random(2000) < 0.9)
    clear = compare(_items(a), _items(broken), "correct", margin=1)
    assert clear.worse and not clear.not_worse and clear.p_worse < 0.01 and clear.p_mcnemar < 1e-6
    same = compare(_items(a), _items(a), "correct", margin=1)
    assert same.not_worse and not same.worse and same.difference == 0 and same.p_worse == 1
    few = compare(_items(a[:20]), _items(np.roll(a[:20], 1)), "correct", margin=1)
    assert not few.worse and not few.not_worse and few.verdict.startswith("undecided")


def test_pairing_makes_the_interval_narrower_than_two_separate_ones():
    random = np.random.default_rng(0)
    a = random.random(1000) < 0.6
    b = np.where(random.random(1000) < 0.02, ~a, a)
    paired = compare(_items(a), _items(b), "correct")
    alone = Bootstrap(2000).mean("x", 100 * a)
    assert paired.ci_high - paired.ci_low < 0.5 * (alone["x_ci_high"] - alone["x_ci_low"])


def test_items_are_matched_by_id_not_by_position():
    a, b = _items([1, 0, 1, 0]), _items([1, 0, 1, 0])[::-1]
    assert compare(a, b, "correct").difference == 0


def test_different_items_are_refused():
    with pytest.raises(UserError, match="same items"):
        compare(_items([1, 0]), _items([1, 0, 1]), "correct")


def test_bounds_of_a_median_cover_it_as_often_as_they_say() -> None:
    """Simulated, of a skewed distribution whose median is known: of five values their range, 93.75 %."""
    draw = np.random.default_rng(0)
    for count, least in ((5, 0.9375), (6, 0.95), (20, 0.95), (101, 0.95)):
        samples = draw.exponential(1.0, (4000, count))
        bounds = [median_bounds(row.tolist(), 0.95) for row in samples]
        covered = np.mean([low <= math.log(2) <= high for low, high in bounds])
        assert least - 0.015 < covered < 0.985, count
    assert median_bounds([1.0, 2.0, 3.0, 4.0], 0.95) is None
